# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from other libraries, and back: see docs/pretrained.md."""

from soupjax.checkpoints.companions import file_beside as file_beside
from soupjax.models.pretrained.convert import HEAD as HEAD
from soupjax.models.pretrained.convert import as_ingredient as as_ingredient
from soupjax.models.pretrained.convert import export as export
from soupjax.models.pretrained.convert import load_pretrained as load_pretrained
from soupjax.models.pretrained.convert import options as options
from soupjax.models.pretrained.convert import save_exported as save_exported
from soupjax.models.pretrained.detect import Detected as Detected
from soupjax.models.pretrained.detect import detect as detect
from soupjax.models.pretrained.families import under as under
from soupjax.models.pretrained.families import without as without
