# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The check for NaN and infinity, of models in memory and in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import crc32, nonfinite
from soupjax.soups.core.ingredient import Storage, box_by_box

SIZE = 23


def stored(name, leaves, *, chunks=None, checksums=None, seen=None):
  """An ingredient that is read in boxes, as from a file."""

  def read_box(leaf, box, out):
    if seen is not None:
      seen.append((leaf, box))
    np.copyto(out, leaves[leaf][box].reshape(-1))

  return sj.Ingredient(
    name=name,
    specs={
      k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in leaves.items()
    },
    treedef=jax.tree.structure(leaves),
    reader=lambda leaf, index: pytest.fail("read as a whole"),
    path=f"{name}.file",
    storage=Storage(
      read=box_by_box(read_box),
      order=tuple(reversed(leaves)),
      chunks=chunks or {},
      checksums=checksums or {},
    ),
  )


def leaves(dtype=np.float32):
  return {
    "b": np.ones((), dtype),
    "empty": np.ones((0, 3), dtype),
    "count": np.int64(2**40),
    "w": np.ones((SIZE, 2), dtype),
  }


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(nonfinite, "_ELEMENTS", 6)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_finds_any_element_of_a_file(small_blocks, dtype, value):
  nonfinite.check_finite([stored("a", leaves(dtype))])
  for row in range(SIZE):
    bad = leaves(dtype)
    bad["w"][row, 1] = value
    with pytest.raises(ValueError, match="'b'.*'w'"):
      nonfinite.check_finite([stored("a", leaves(dtype)), stored("b", bad)])


def test_names_the_first_of_several():
  bad = leaves()
  bad["b"] = np.float32(np.nan)
  pool = [stored(name, bad) for name in "abc"]
  with pytest.raises(ValueError, match="'a'.*NaN.*'b'"):
    nonfinite.check_finite(pool)


def test_reads_chunks_as_they_are_stored(small_blocks):
  seen = []
  chunks = {"w": (5, 2)}
  nonfinite.check_finite([stored("a", leaves(), chunks=chunks, seen=seen)])
  edges = [box[0].start for leaf, box in seen if leaf == "w"]
  assert len(edges) > 2 and all(edge % 5 == 0 for edge in edges)
  assert not any(leaf == "count" for leaf, _ in seen)


def test_compares_checksums_over_blocks(small_blocks):
  good = leaves()
  sums = {k: crc32.crc32(np.atleast_1d(x)) for k, x in good.items()}
  nonfinite.check_finite([stored("a", good, checksums=sums)])
  good["w"][3, 0] = 2
  with pytest.raises(ValueError, match="'w'.*a.file"):
    nonfinite.check_finite([stored("a", good, checksums=sums)])


def test_models_in_memory_are_checked_too():
  good, bad = {"w": np.ones(3, np.float32)}, {"w": np.float32([1, np.inf, 1])}
  pool = [
    sj.Ingredient.from_params(name, params)
    for name, params in (("a", good), ("b", bad))
  ]
  nonfinite.check_finite(pool[:1])
  with pytest.raises(ValueError, match="'b'.*NaN"):
    nonfinite.check_finite(pool)


@pytest.mark.parametrize(
  "dtype", ["float16", "bfloat16", "float32", "float64", "int16", "float8_e5m2"]
)
def test_single_numbers_that_are_not_finite(dtype):
  dtype = jax.numpy.dtype(dtype)
  array = np.arange(-8, 8).astype(dtype)
  assert nonfinite.is_finite(array) and nonfinite.is_finite(array[:0])
  if dtype.kind != "i":
    assert nonfinite.is_finite(np.full(3, -jax.numpy.finfo(dtype).max, dtype))
    for value in (np.nan, -np.nan, np.inf, -np.inf):
      array[3] = value
      assert not nonfinite.is_finite(array)
