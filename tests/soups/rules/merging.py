# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Merging of small trees, for tests."""

import numpy as np

import soupjax as sj


def mix(rule, trees, base=None, **more):
  """Merges trees in memory, or arrays as the leaf "w"."""

  def named(name, tree):
    tree = tree if isinstance(tree, dict) else {"w": tree}
    tree = {k: np.asarray(v) for k, v in tree.items()}
    tree = {k: v.astype("f") if v.dtype == "d" else v for k, v in tree.items()}
    return sj.Ingredient.from_params(name, tree)

  result = sj.mix(
    rule,
    [named(f"m{k}", tree) for k, tree in enumerate(trees)],
    base=None if base is None else named("base", base),
    **more,
  ).params
  return {k: np.asarray(v) for k, v in result.items()}
