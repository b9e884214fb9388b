# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The program that averages checkpoint files on a mesh, ready to compile."""

from collections.abc import Sequence
from typing import Any

from soupjax.soups import average
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient, sharding_of
from soupjax.tasks.programs.report import Program, bytes_on_each, on_mesh


def program(ingredients: Sequence[Ingredient], sharding: Any) -> Program:
  """Returns the program of `sj.uniform_soup` that takes the most memory.

  Leaves are averaged one after another, so it is the mean of the largest leaf,
  computed while the soup is in memory.

  Args:
    ingredients: the models, of one architecture.
    sharding: sharding of the soup, as in `Ingredient.load`.
  """
  specs = {
    leaf: on_mesh(spec, sharding_of(sharding, leaf, spec))
    for leaf, spec in ingredients[0].specs.items()
  }
  floats = [leaf for leaf, spec in specs.items() if tree.is_float(spec)]
  largest = max(floats, key=lambda leaf: bytes_on_each(specs[leaf]))
  function, args, options = average.abstract_sum(ingredients, largest, sharding)
  return Program(
    name=f"mean of {len(ingredients)} x {largest!r}, the largest leaf",
    function=function,
    args=args,
    options=options,
    beside={"soup": bytes_on_each(specs)},
    advice=lambda needed, room: (
      "Split large leaves over the devices, as sharding.preset='fsdp' does; at "
      f"least {needed / room:.1f} parts are needed."
    ),
  )
