# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the only package that reads and writes weight files."""

from collections.abc import Sequence
import os
from typing import Any

from soupjax.checkpoints.open import find_ingredients
from soupjax.lazy import submodules
from soupjax.soups.core.ingredient import Ingredient, open_models


@open_models.register(str)
@open_models.register(os.PathLike)
def _(
  first: Any, models: Sequence[Any], names: Sequence[str]
) -> list[Ingredient]:
  """Opens paths and patterns where a function takes models."""
  del first, names
  return find_ingredients(models)


__getattr__, __dir__ = submodules(__name__, __path__)
