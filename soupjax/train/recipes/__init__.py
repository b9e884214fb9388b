# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training objectives beyond a loss on logits, one per file.

A config refers to a function that returns a `Recipe` by its import path, or by
its name alone if it is decorated with `register`.
"""

from soupjax.train.recipes.base import PLAIN as PLAIN
from soupjax.train.recipes.base import RECIPES as RECIPES
from soupjax.train.recipes.base import Recipe as Recipe
from soupjax.train.recipes.base import of as of
from soupjax.train.recipes.car_ft import car_ft as car_ft
from soupjax.train.recipes.car_ft import context_kl as context_kl
from soupjax.train.recipes.flyp import flyp as flyp
from soupjax.train.recipes.lit import lit as lit
from soupjax.train.recipes.pairs import draw_prompts as draw_prompts
from soupjax.train.recipes.pairs import same_class as same_class

register = RECIPES.register
