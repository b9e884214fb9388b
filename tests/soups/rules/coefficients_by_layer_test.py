# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients over depth, where layers are an axis of the leaves."""

from helpers import vit_specs
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.models.pretrained import foreign
from soupjax.soups.core import tree

VALUES = [0.2, 0.8]
# The same where layers are an axis.
IN_STACKS = {"encoderblock/": VALUES, "embed": 0.2, "": 0.8}
# Of the three layers, at depth 0, 1/2 and 1.
EACH = [0.2, 0.5, 0.8]
RULES = {
  "lerp": sj.rules.lerp,
  "task_arithmetic": sj.rules.task_arithmetic,
  "weighted": lambda x: sj.rules.task_arithmetic(x, weights=[0.3, 0.6]),
  "ties": lambda x: sj.rules.ties(0.3, x),
  "ties, leaf": lambda x: sj.rules.ties(0.3, x, scope="leaf"),
  "slerp": sj.rules.slerp,
  "slerp, model": lambda x: sj.rules.slerp(x, scope="model"),
  "breadcrumbs": lambda x: sj.rules.breadcrumbs(0.3, 0.01, x),
  "dare": lambda x: sj.rules.dare(0.5, x),
  "dare, elect": lambda x: sj.rules.dare(0.5, x, elect=True),
  "della": lambda x: sj.rules.della(0.5, 0.1, x),
  "sce": lambda x: sj.rules.sce(0.3, x),
  "iso_c": lambda x: sj.rules.iso_c(x, rows={"block/.*Dense_./kernel": 2}),
}
# Those that ask nothing of a leaf, so that its layers may be leaves as well.
ELEMENTWISE = ["lerp", "task_arithmetic", "weighted", "ties", "slerp, model"]


def _models():
  specs = vit_specs(width=6, depth=3, scan=True)
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), specs)
    for _ in range(3)
  ]


BASE, *FINETUNED = _models()


def _apart(params):
  """Leaf -> array, with every block by itself."""
  return foreign.unstacked(tree.flatten(params)[0])


def _mix(rule, pool, base, **settings):
  named = [
    sj.Ingredient.from_params(f"model {k}", one) for k, one in enumerate(pool)
  ]
  if rule.needs_base:
    settings["base"] = sj.Ingredient.from_params("base", base)
  return tree.flatten(sj.mix(rule, named, **settings).params)[0]


def _stacks(leaves):
  return {k for k in leaves if "encoderblock/" in k}


@pytest.mark.parametrize("name", RULES)
def test_each_layer_is_that_of_its_own_number(name):
  result = _mix(RULES[name](IN_STACKS), FINETUNED, BASE)
  assert len(_stacks(result)) == 16
  expected = [_mix(RULES[name](one), FINETUNED, BASE) for one in EACH]
  for i, one in enumerate(expected):
    for leaf in _stacks(result):
      assert np.array_equal(result[leaf][i], one[leaf][i]), (leaf, i)
  # Leaves before and after the layers.
  for leaf, one in {"embedding/kernel": 0, "head/kernel": -1}.items():
    assert np.array_equal(result[leaf], expected[one][leaf])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_scanned_or_in_a_loop_is_the_same(name):
  result = _apart(_mix(RULES[name](IN_STACKS), FINETUNED, BASE))
  loops = [_apart(one) for one in FINETUNED]
  expected = _mix(RULES[name](VALUES), loops, _apart(BASE))
  assert result.keys() == expected.keys()
  for leaf, one in result.items():
    assert np.array_equal(one, expected[leaf]), leaf


@pytest.mark.parametrize("name", ["lerp", "ties", "dare", "sce", "slerp"])
def test_the_same_bits_however_it_is_cut(name):
  expected = _mix(RULES[name](IN_STACKS), FINETUNED, BASE)
  # Less than a layer of the larger leaves, one, and a few.
  for block_bytes in 300, 4_000:
    result = _mix(
      RULES[name](IN_STACKS), FINETUNED, BASE, block_bytes=block_bytes
    )
    for leaf, one in expected.items():
      assert np.array_equal(result[leaf], one), (leaf, block_bytes)
  mesh = jax.make_mesh((2, 3), ("a", "b"), devices=jax.devices()[:6])
  for axes in ("b", "a"), (None, ("a", "b")):

    def place(leaf, spec, axes=axes):
      del leaf
      fits = len(spec.shape) > 1 and not (
        spec.shape[0] % 3 or spec.shape[1] % 6
      )
      axes = axes if fits else ()
      return jax.sharding.NamedSharding(mesh, jax.P(*axes))

    result = _mix(RULES[name](IN_STACKS), FINETUNED, BASE, sharding=place)
    for leaf, one in expected.items():
      assert np.array_equal(result[leaf], one), (leaf, axes)


def test_from_checkpoints_with_chunks(tmp_path):
  expected = _mix(sj.rules.lerp(IN_STACKS), FINETUNED, BASE)
  paths = []
  for k, one in enumerate([BASE, *FINETUNED]):
    paths.append(tmp_path / f"{k}")
    sj.save_params(paths[-1], one)
  result = sj.mix(
    sj.rules.lerp(IN_STACKS), paths[1:], base=paths[0], block_bytes=2_000
  ).params
  for leaf, one in tree.flatten(result)[0].items():
    assert np.array_equal(one, expected[leaf]), leaf


def test_part_of_the_way_to_the_base():
  select = {"Dense_0": 0.25, "": 1.0}
  result = _mix(sj.rules.lerp(IN_STACKS), FINETUNED, BASE, select=select)
  loops = [_apart(one) for one in FINETUNED]
  expected = _mix(sj.rules.lerp(VALUES), loops, _apart(BASE), select=select)
  for leaf, one in _apart(result).items():
    assert np.array_equal(one, expected[leaf]), leaf


def test_task_vectors_go_by_layer_too():
  vector = sj.TaskVector(BASE, FINETUNED[0])
  result = tree.flatten(vector.apply_to(BASE, scale=IN_STACKS))[0]
  expected = _mix(sj.rules.task_arithmetic(IN_STACKS), FINETUNED[:1], BASE)
  for leaf, one in expected.items():
    assert np.array_equal(result[leaf], one), leaf


def test_lists_go_along_an_axis_that_is_there():
  pool = [sj.Ingredient.from_params("one", FINETUNED[0])]
  base = sj.Ingredient.from_params("base", BASE)

  def refused(alpha, match):
    with pytest.raises(ValueError, match=match):
      sj.mix(sj.rules.lerp(alpha), pool, base=base)

  refused({"": VALUES}, "shape")
  refused(
    {"encoder_norm/|block/": VALUES, "": 0.5},
    r"encoder_norm/\|block/.*\(3, 6\).*'Transformer",
  )
  refused({"pos_embedding": VALUES, "": 0.5}, "pos_embedding")
  refused({"encoderblock/": [], "": 0.5}, r"encoderblock/.*got \[\]")
  refused({"encoderblock/": [[0.5]], "": 0.5}, "encoderblock/.*0.5")
  refused({"encoderblock/": [0.5, np.nan], "": 0.5}, "encoderblock/.*nan")
  # A list by itself does not say which leaves have layers as an axis.
  refused(VALUES, r"scanned model.*\{'Transformer/encoderblock/': \[...\]")


def test_one_number_in_a_list_is_that_number():
  result, expected = (
    _mix(sj.rules.lerp({"block/": one, "": 0.8}), FINETUNED, BASE)
    for one in ([0.2], 0.2)
  )
  for leaf, one in expected.items():
    assert np.array_equal(result[leaf], one), leaf
