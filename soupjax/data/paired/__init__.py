# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images with classes or captions, in CSV files or WebDataset shards."""

from soupjax.data.paired.base import by_caption as by_caption
