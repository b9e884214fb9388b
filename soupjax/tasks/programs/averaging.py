# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The mean of checkpoint files on the devices of a mesh, to be compiled."""

from collections.abc import Sequence
from typing import Any

from soupjax.soups import average
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient, sharding_of
from soupjax.tasks.programs.report import Program, bytes_on_each, on_mesh


def program(ingredients: Sequence[Ingredient], sharding: Any) -> Program:
  """Returns the program that takes most memory in `sj.uniform_soup`.

  Leaves are averaged one after another, so this is that of the largest leaf,
  beside the soup.

  Args:
    ingredients: of one architecture.
    sharding: of the soup, as in `Ingredient.load`.
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
