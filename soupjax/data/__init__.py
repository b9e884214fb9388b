# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images, and what is done to them."""

from soupjax.data.dataset import Dataset as Dataset
from soupjax.data.dataset import batch_indices as batch_indices
from soupjax.data.digits import Digits as Digits
from soupjax.data.digits import load_digits as load_digits
