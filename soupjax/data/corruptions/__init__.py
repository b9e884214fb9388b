# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Corruptions of images of any size: ImageNet-C, typographic attacks."""

from soupjax.data.corruptions.corrupt import CORRUPTIONS as CORRUPTIONS
from soupjax.data.corruptions.corrupt import corrupt as corrupt
from soupjax.data.corruptions.typographic import typographic as typographic
