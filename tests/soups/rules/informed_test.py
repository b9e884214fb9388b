# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
from helpers import mix_trees as mix
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules


def arrays(count, shape=(40,), seed=0):
  return np.random.default_rng(seed).normal(size=(count, *shape)).astype("f")


def test_fisher_by_hand():
  fishers = [{"w": np.array(f, "f")} for f in ([1.0, 3.0], [3.0, 1.0])]
  trees = [[0.0, 0.0], [4.0, 8.0]]
  assert mix(rules.fisher(fishers), trees)["w"].tolist() == [3, 2]
  # 3 * 1 against 1 * 3.
  result = mix(rules.fisher(fishers, weights=[3, 1]), trees)["w"]
  assert np.abs(result - [2, 0.8]).max() < 1e-6


def test_equal_fishers_interpolate():
  trees = arrays(2)
  one = {"w": arrays(1, seed=1)[0] ** 2 * 1e-6}
  result = mix(rules.fisher([one, one], weights=[0.75, 0.25]), trees)["w"]
  exact = 0.75 * trees[0].astype("d") + 0.25 * trees[1]
  assert np.abs(result - exact).max() < 2e-7
  result = mix(rules.fisher([one] * 2), [trees[0]] * 2)["w"]
  assert np.array_equal(result, trees[0])


def test_fisher_floor():
  fishers = [{"w": np.array([f], "f")} for f in (0.0, 1e-30)]
  result = mix(rules.fisher(fishers), [[0.0], [1.0]])["w"]
  assert result == 0.5
  result = mix(rules.fisher(fishers, floor=1e-35), [[0.0], [1.0]])["w"]
  assert result > 0.9999


def test_fishers_from_files(tmp_path):
  trees, fishers = arrays(2), arrays(2, seed=1) ** 2
  paths = []
  for k, f in enumerate(fishers):
    paths.append(str(tmp_path / f"f{k}.safetensors"))
    sj.save_params(paths[-1], {"w": f})
  out = str(tmp_path / "soup.safetensors")
  mix(rules.fisher([{"w": f} for f in fishers]), trees)
  expected = mix(rules.fisher([{"w": f} for f in fishers]), trees)["w"]
  result = sj.mix(
    rules.fisher(paths),
    [sj.Ingredient.from_params(str(k), {"w": t}) for k, t in enumerate(trees)],
    out=out,
    hash_inputs=True,
  )
  assert np.array_equal(sj.load_params(out)["w"], expected)
  recorded = sj.provenance(out)["statistics"]
  assert [entry["path"] for entry in recorded] == paths
  assert all(int(entry["content_hash"], 16) for entry in recorded)
  assert result.report.bytes_read == 4 * 160


def test_regmean_fits_the_outputs_best():
  kernels = arrays(2, (5, 3))
  inputs = arrays(2, (50, 5), seed=1).astype("d")
  grams = [{"w": (x.T @ x).astype("f")} for x in inputs]
  result = mix(rules.regmean(grams, share=1.0), kernels)["w"]
  stacked = np.concatenate(inputs)
  outputs = np.concatenate([x @ w for x, w in zip(inputs, kernels)])
  exact = np.linalg.lstsq(stacked, outputs)[0]
  assert np.abs(result - exact).max() < 1e-5


def test_regmean_off_the_diagonal_and_elsewhere():
  kernels = arrays(2, (4, 3))
  trees = [{"w": k, "b": k[0]} for k in kernels]
  grams = [{"w": np.array(x @ x.T)} for x in arrays(2, (4, 9), seed=1)]
  result = mix(rules.regmean(grams, share=0.0), trees)
  weights = np.stack([np.diag(g["w"]) for g in grams])[..., None]
  exact = (weights * kernels).sum(0) / weights.sum(0)
  assert np.abs(result["w"] - exact).max() < 1e-5
  assert np.abs(result["b"] - kernels[:, 0].mean(0)).max() < 1e-6


def test_regmean_of_inputs_that_never_occur():
  kernels = arrays(2, (3, 2))
  gram = np.diag([1.0, 2.0, 0.0]).astype("f")
  result = mix(rules.regmean([{"w": gram}, {"w": 3 * gram}]), kernels)["w"]
  exact = 0.25 * kernels[0] + 0.75 * kernels[1]
  assert np.abs(result - exact)[:2].max() < 1e-6
  assert np.abs(result - kernels.mean(0))[2].max() < 1e-6
  result = mix(rules.regmean([{"w": gram}] * 2), [kernels[0]] * 2)["w"]
  assert np.array_equal(result, kernels[0])


def test_bad_input():
  trees = arrays(2, (3, 2))
  good = {"w": np.ones((3, 2), "f")}
  for fishers, text in [
    ([good], "1 trees .* 2 ingredients"),
    ([good, {"x": np.ones(3, "f")}], "nothing for 'w'.*\n.*'x'"),
    ([good, {"w": np.ones((2, 3), "f")}], r"\(2, 3\) for 'w', not \(3, 2\)"),
  ]:
    with pytest.raises(ValueError, match=text):
      mix(rules.fisher(fishers), trees, dry_run=True)
  with pytest.raises(ValueError, match="fisher"):
    rules.fisher([])
  with pytest.raises(ValueError, match="floor"):
    rules.fisher([good], floor=0)
  with pytest.raises(ValueError, match="positive"):
    mix(rules.fisher([good] * 2, weights=[1, 0]), trees)
  with pytest.raises(ValueError, match="regmean|fisher"):
    mix(
      rules.regmean([{"w": np.ones((3, 3), "f")}] * 2),
      [{"w": [1.0], "v": [1.0]}] * 2,
    )
  with pytest.raises(ValueError, match="'typo'"):
    mix(rules.regmean([{"typo": np.ones((3, 3), "f")}] * 2), trees)
  with pytest.raises(ValueError, match="share"):
    rules.regmean([good], share=2)


@pytest.mark.parametrize("value", [-1e-3, np.nan, np.inf])
def test_fishers_that_make_no_sense(value):
  trees = arrays(2, (3, 2))
  good = {"w": np.ones((3, 2), "f")}
  bad = {"w": np.array(good["w"])}
  bad["w"][1, 1] = value
  with pytest.raises(ValueError, match="'fisher'.*'w'.* least"):
    mix(rules.fisher([good, bad]), trees)


def test_grams_that_make_no_sense():
  trees = arrays(2, (3, 2))
  gram = np.array([[1, -0.5, 0], [-0.5, 1, 0], [0, 0, 1]], "f")
  mix(rules.regmean([{"w": gram}] * 2), trees)  # Products may be negative.
  bad = {"w": np.full((3, 3), np.nan, "f")}
  with pytest.raises(ValueError, match="'regmean'.*nan.*'w'"):
    mix(rules.regmean([{"w": gram}, bad]), trees)
