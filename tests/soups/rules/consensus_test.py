# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules
from soupjax.soups.engine import first_pass
from soupjax.soups.engine import plan as planning
from soupjax.soups.rules import consensus, thresholds


def mix(rule, deltas, base=None, **more):
  """Merges models that differ by `deltas` from a base, zero if not given."""
  deltas = [d if isinstance(d, dict) else {"w": d} for d in deltas]
  deltas = [{k: np.asarray(v, "f") for k, v in d.items()} for d in deltas]
  if base is None:
    base = {k: np.zeros_like(v) for k, v in deltas[0].items()}
  result = sj.mix(
    rule,
    [
      sj.Ingredient.from_params(f"m{k}", {n: base[n] + d[n] for n in d})
      for k, d in enumerate(deltas)
    ],
    base=sj.Ingredient.from_params("base", base),
    **more,
  ).params
  return {k: np.asarray(v) for k, v in result.items()}


# Two task vectors of five elements; density 0.6 keeps three of each.
FIRST = [4.0, -3.0, 2.0, 1.0, 0.5]  # Trimmed: 4, -3, 2, 0, 0.
SECOND = [-1.0, -6.0, 0.5, 3.0, 2.0]  # Trimmed: 0, -6, 0, 3, 2.


def test_ties_by_hand():
  result = mix(rules.ties(0.6, 1.0), [FIRST, SECOND])["w"]
  # A single remaining model counts alone.
  assert result.tolist() == [4, -4.5, 2, 3, 2]
  result = mix(rules.ties(0.6, 0.5), [FIRST, SECOND])["w"]
  assert result.tolist() == [2, -2.25, 1, 1.5, 1]


def test_ties_elects_by_the_sum():
  deltas = [[1.0, 2.0], [2.0, 2.0], [-4.0, -4.0]]
  # 1 + 2 - 4 < 0: only the third agrees; 2 + 2 - 4 = 0: nobody.
  assert mix(rules.ties(1.0), deltas)["w"].tolist() == [-4, 0]
  for compat in ("mergekit", "peft"):
    result = mix(rules.ties(1.0, compat=compat), deltas)["w"]
    assert result.tolist() == [-4, 2]


def test_ties_trims_over_the_model_or_a_leaf():
  deltas = [{"a": [9.0, 8.0], "b": [1.0, 2.0]}] * 2
  result = mix(rules.ties(0.5), deltas)
  assert result["a"].tolist() == [9, 8] and result["b"].tolist() == [0, 0]
  result = mix(rules.ties(0.5, scope="leaf"), deltas)
  assert result["a"].tolist() == [9, 0] and result["b"].tolist() == [0, 2]
  result = mix(rules.ties(0.5, compat="peft"), deltas)
  assert result["a"].tolist() == [9, 0]


def test_ties_weights():
  deltas = [[2.0, 2.0, 3.0], [4.0, -3.0, -2.0]]
  weights = [1.0, 3.0]
  # (1 * 2 + 3 * 4) / 4; 2 - 9 < 0; 3 - 6 < 0.
  result = mix(rules.ties(1.0, weights=weights), deltas)["w"]
  assert result.tolist() == [3.5, -3, -2]
  result = mix(rules.ties(1.0, weights=weights, compat="mergekit"), deltas)["w"]
  assert result.tolist() == [3.5, -3, -2]
  # Elects without weights, 2 - 3 < 0 < 3 - 2, and divides by the number.
  result = mix(rules.ties(1.0, weights=weights, compat="peft"), deltas)["w"]
  assert result.tolist() == [7, -9, 3]


def test_a_negative_weight_votes_the_other_way():
  # -1 * 2 and 3 * -1 are both negative, and so is their mean, -5 / 2.
  result = mix(rules.ties(1.0, weights=[-1.0, 3.0]), [[2.0], [-1.0]])["w"]
  assert result == -2.5


def test_how_many_are_kept():
  assert consensus.rank_of(0.29, 100) == 29
  assert consensus.rank_of(0.01, 5) == 1
  assert consensus.rank_of(1.0, 7) == 7


def test_magnitudes_are_the_same_in_numpy_and_in_jax():
  values = [0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, -1.0, 3e38, np.inf]
  stack = np.array([values], "f")
  result = thresholds.magnitudes(stack, np.zeros(8, "f"))[0]
  assert (result[:4] == 0).all() and (np.diff(result[4:].astype("q")) > 0).all()
  zero = jnp.zeros(8, np.float32)
  delta = jax.jit(consensus.float32_delta)(stack[0], zero)
  assert np.array_equal(jax.jit(consensus.magnitude)(delta), result)


@pytest.mark.parametrize("unit", [7, 100])
def test_thresholds_do_not_depend_on_units(unit, monkeypatch):
  rng = np.random.default_rng(0)
  deltas = [{"a": rng.normal(size=(9, 31)), "b": rng.normal(size=50)}] * 2
  expected = mix(rules.ties(0.3), deltas)
  monkeypatch.setattr(first_pass, "_UNIT_BYTES", 0)
  monkeypatch.setattr(first_pass, "_UNIT_ELEMENTS", unit)
  for threads in (1, 3):
    result = mix(rules.ties(0.3), deltas, threads=threads)
    for leaf, value in expected.items():
      assert np.array_equal(result[leaf], value)


def test_thresholds_of_many_models_hold_32_histograms(monkeypatch):
  rng = np.random.default_rng(0)
  stack = rng.normal(size=(40, 50)).astype("f")
  rows, read = set(), first_pass.LeafReader._read

  def counted(*args):
    stack, base = read(*args)
    rows.add(len(stack))
    return stack, base

  monkeypatch.setattr(first_pass.LeafReader, "_read", counted)
  plan = planning.make(
    rules.ties(0.3),
    [sj.Ingredient.from_params(str(k), {"w": w}) for k, w in enumerate(stack)],
    base=sj.Ingredient.from_params("base", {"w": np.zeros(50, "f")}),
  )
  found = thresholds.largest(first_pass.LeafReader(plan), ["w"], [1, 15])
  order = np.sort(np.abs(stack))[:, ::-1]
  assert np.array_equal(found.view("f"), order[:, [0, 14]])
  assert rows == {32, 8}


def test_ties_of_equal_magnitudes_keeps_all_of_them():
  result = mix(rules.ties(0.5), [[1.0, -1.0, 1.0, -1.0]])["w"]
  assert result.tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("density", [0.01, 0.2, 0.29, 0.77, 1.0])
def test_ties_against_sorting(density):
  rng = np.random.default_rng(0)
  base = rng.normal(size=5000).astype("f")
  size = 10.0 ** rng.integers(-30, 3, 5000)
  stack = np.stack([base + rng.normal(size=5000) * size for _ in range(3)])
  stack = stack.astype("f")
  deltas = stack - base
  kept = max(1, int(density * 5000 + 1e-6))
  order = np.sort(np.abs(deltas))[:, ::-1]
  # The masks are those of float32 deltas, the sums are exact.
  mask = np.abs(deltas) >= order[:, kept - 1, None]
  trimmed = np.where(mask, stack.astype(np.float64) - base, 0)
  sign = np.sign(trimmed.sum(0))
  agree = (np.sign(trimmed) == sign) & (trimmed != 0)
  tau = (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)
  result = sj.mix(
    rules.ties(density),
    [sj.Ingredient.from_params(str(k), {"w": w}) for k, w in enumerate(stack)],
    base=sj.Ingredient.from_params("base", {"w": base}),
  ).params["w"]
  exact = base.astype(np.float64) + tau
  size = np.maximum(np.abs(exact), np.abs(tau)).astype("f")
  assert (np.abs(result - exact) <= np.spacing(size)).all()
  untouched = ~agree.any(0)
  assert np.array_equal(np.asarray(result)[untouched], base[untouched])


def test_bad_numbers():
  for density in (0.0, 1.5, -0.1, float("nan"), None):
    with pytest.raises(ValueError, match="density"):
      rules.ties(density)
  with pytest.raises(ValueError, match="scope='tensor'"):
    rules.ties(scope="tensor")
  with pytest.raises(ValueError, match="compat='mergekitt'"):
    rules.ties(compat="mergekitt")
  with pytest.raises(ValueError, match="2 ingredients"):
    mix(rules.ties(weights=[1.0]), [FIRST, SECOND])
  with pytest.raises(ValueError, match="needs a base"):
    sj.mix(rules.ties(), [sj.Ingredient.from_params("m", {"w": np.ones(2)})])


def test_sce_by_hand():
  # Variances 0, 4, 1, 0.25; half of the elements are the second and third.
  first, second = [1.0, 3.0, 2.0, 0.5], [1.0, -1.0, 4.0, 1.5]
  # Energies 9 + 4 and 1 + 16, of 30. Signs of the sums: plus, plus.
  result = mix(rules.sce(0.5), [first, second])["w"]
  expected = [0, 3, (13 * 2 + 17 * 4) / 30, 0]
  assert np.abs(result - expected).max() < 1e-6


@pytest.mark.parametrize("kept", [1, 2, 37, 99, 100])
def test_the_largest_are_those_that_sorting_finds(kept):
  rng = np.random.default_rng(kept)
  sizes = rng.integers(0, 30, size=(20, 5)).astype("f") * np.float32(1e-30)
  sizes[0, 0] = np.inf
  result = consensus._largest(sizes, np.int32(kept))
  assert np.array_equal(result, sizes >= np.sort(sizes, axis=None)[-kept])
  # Neighbouring numbers.
  close = (1 << 23) + rng.permutation(100).astype(np.uint32)
  close = close.view(np.float32)
  result = consensus._largest(close, np.int32(kept))
  assert np.array_equal(result, close >= np.sort(close)[-kept])


def test_sce_bad_input():
  with pytest.raises(ValueError, match="at least 2"):
    mix(rules.sce(0.5), [[1.0]])
  with pytest.raises(ValueError, match="density"):
    rules.sce(0)
