# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images with a class or a caption each: CSV files and WebDataset shards."""

from soupjax.data.paired.base import by_caption as by_caption
