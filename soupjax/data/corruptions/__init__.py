# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The corruptions of ImageNet-C, computed on images of any size."""

from soupjax.data.corruptions.corrupt import CORRUPTIONS as CORRUPTIONS
from soupjax.data.corruptions.corrupt import corrupt as corrupt
