# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The only package that touches files of weights."""

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
  """Opens paths and patterns wherever a model is asked for."""
  del first, names
  return find_ingredients(models)


__getattr__, __dir__ = submodules(__name__, __path__)
