# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
from helpers import mix_trees as mix
import numpy as np
import pytest

from soupjax.soups import rules


def near(result, expected, size=1e-5):
  assert np.abs(result - np.asarray(expected)).max() <= size


def test_tsv_by_hand():
  # Two tasks in orthogonal directions: the largest triple of each survives.
  first, second = np.diag([4.0, 0.0, 1.0]), np.diag([0.0, 3.0, 0.5])
  base = np.zeros((3, 3), "f")
  result = mix(rules.tsv(), [first, second], base)["w"]
  near(result, np.diag([4.0, 3.0, 0.0]))
  near(mix(rules.tsv(0.5), [first, second], base)["w"], result / 2)


def test_tsv_of_one_task_is_that_task():
  rng = np.random.default_rng(0)
  base, tuned = rng.normal(size=(2, 5, 7)).astype("f")
  near(mix(rules.tsv(), [tuned], base)["w"], tuned)


def test_tsv_makes_overlapping_tasks_orthogonal():
  rng = np.random.default_rng(0)
  deltas = rng.normal(size=(2, 6, 4)).astype("f")
  result = mix(rules.tsv(), deltas, np.zeros((6, 4), "f"))["w"]
  # The singular values are the largest halves of those of the tasks.
  sizes = [np.linalg.svd(d, compute_uv=False)[:2] for d in deltas]
  near(np.linalg.svd(result, compute_uv=False), np.sort(np.ravel(sizes))[::-1])


def test_iso_c_by_hand():
  deltas = [np.diag([4.0, -1.0]), np.diag([1.0, 0.0])]
  # The sum is diag(5, -1); the mean of 5 and 1 is 3.
  result = mix(rules.iso_c(), deltas, np.zeros((2, 2), "f"))["w"]
  near(result, np.diag([3.0, -3.0]))
  near(mix(rules.iso_c(0.1), deltas, np.ones((2, 2), "f"))["w"].shape, (2, 2))


@pytest.mark.parametrize("make", [rules.tsv, rules.iso_c])
def test_other_leaves_than_matrices_get_the_mean(make):
  base = {
    "b": np.ones(3, "f"),
    "s": np.float32(1),
    "c": np.ones((2, 2, 2), "f"),
  }
  trees = [{k: v + d for k, v in base.items()} for d in (1, 3)]
  result = mix(make(0.5), trees, base)
  for value in result.values():
    near(value, np.full(value.shape, 2.0))


def test_rows():
  rng = np.random.default_rng(0)
  deltas = rng.normal(size=(2, 6, 2, 2)).astype("f")
  base = np.zeros((6, 2, 2), "f")
  for n, shape in ((1, (6, 4)), (2, (12, 2))):
    result = mix(rules.tsv(rows={"w": n}), deltas, base)["w"]
    flat = mix(rules.tsv(), deltas.reshape(2, *shape), base.reshape(shape))
    near(result.reshape(shape), flat["w"])
  for bad in (1.7, True, "1"):
    with pytest.raises(ValueError, match=r"rows\['w'\]"):
      rules.tsv(rows={"w": bad})
  with pytest.raises(ValueError, match="rows"):
    mix(rules.tsv(rows={"w(": 1}), deltas, base)
  with pytest.raises(ValueError, match="'x'"):
    mix(rules.tsv(rows={"x": 1}), deltas, base)
  with pytest.raises(ValueError, match="3 axes.*'w'"):
    mix(rules.tsv(rows={"w": 3}), deltas, base)
