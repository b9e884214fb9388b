# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Our rules beside those of others, where they are installed: pip install
soupjax[bench]. Float32 sums of theirs differ from ours in the last bits."""

import numpy as np
import pytest
import safetensors.numpy

import soupjax as sj

WEIGHTS = [0.5, 0.3, 0.4]


def tree(seed):
  rng = np.random.default_rng(seed)
  return {
    "matrix": rng.normal(size=(24, 16)).astype(np.float32),
    "vector": rng.normal(size=50).astype(np.float32),
  }


BASE = tree(0)
TREES = [
  {name: BASE[name] + np.float32(0.3) * tree(k)[name] for name in BASE}
  for k in (1, 2, 3)
]


def ours(rule, count):
  actual = [
    sj.Ingredient.from_params(f"m{k}", one)
    for k, one in enumerate(TREES[:count])
  ]
  base = sj.Ingredient.from_params("base", BASE) if rule.needs_base else None
  return sj.mix(rule, actual, base=base).params


def check(theirs, rule, count=3, atol=1e-6):
  mine = ours(rule, count)
  assert set(theirs) == set(mine)
  for name, value in mine.items():
    np.testing.assert_allclose(theirs[name], value, rtol=0, atol=atol)


def mergekit(folder, method, trees, *, base=None, each=None, **parameters):
  """Runs the code behind mergekit-pytorch on files."""
  raw = pytest.importorskip("mergekit.scripts.merge_raw_pytorch")
  from mergekit.graph import Executor
  from mergekit.options import MergeOptions

  def saved(name, one):
    path = str(folder / f"{name}.safetensors")
    safetensors.numpy.save_file(one, path)
    return path

  config = {
    "merge_method": method,
    "models": [
      {"model": saved(f"m{k}", one), "parameters": each[k] if each else {}}
      for k, one in enumerate(trees)
    ],
    "parameters": parameters,
  }
  if base is not None:
    config["base_model"] = saved("base", base)
    config["models"].append({"model": config["base_model"]})
  config = raw.RawPyTorchMergeConfig.model_validate(config)
  out = str(folder / "out")
  tasks = raw.plan_flat_merge(config, out, False, False, MergeOptions())
  Executor(tasks, math_device="cpu", storage_device="cpu").execute()
  return safetensors.numpy.load_file(f"{out}/model.safetensors")


def each(**settings):
  return [{"weight": weight, **settings} for weight in WEIGHTS]


def test_mergekit_linear(tmp_path):
  theirs = mergekit(tmp_path, "linear", TREES, each=each())
  check(theirs, sj.rules.linear(WEIGHTS))


def test_mergekit_linear_not_normalised(tmp_path):
  theirs = mergekit(tmp_path, "linear", TREES, each=each(), normalize=False)
  check(theirs, sj.rules.linear(WEIGHTS, normalize=False))


def test_mergekit_task_arithmetic(tmp_path):
  theirs = mergekit(
    tmp_path,
    "task_arithmetic",
    TREES,
    base=BASE,
    each=each(),
    **{"lambda": 0.7},
  )
  check(theirs, sj.rules.task_arithmetic(0.7, weights=WEIGHTS))


def test_mergekit_ties(tmp_path):
  theirs = mergekit(
    tmp_path,
    "ties",
    TREES,
    base=BASE,
    each=each(density=0.3),
    normalize=True,
  )
  check(theirs, sj.rules.ties(0.3, weights=WEIGHTS, compat="mergekit"))
  # The paper trims over the whole model: another result.
  with pytest.raises(AssertionError):
    check(theirs, sj.rules.ties(0.3, weights=WEIGHTS))


@pytest.mark.parametrize("elect", [False, True])
def test_mergekit_breadcrumbs(tmp_path, elect):
  theirs = mergekit(
    tmp_path,
    "breadcrumbs_ties" if elect else "breadcrumbs",
    TREES,
    base=BASE,
    each=each(density=0.4, gamma=0.1),
    normalize=elect,
  )
  check(theirs, sj.rules.breadcrumbs(0.4, 0.1, weights=WEIGHTS, elect=elect))


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_mergekit_dare(tmp_path, elect, rescale):
  # Means over many equal rows: the random numbers are others.
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(3, 1, 8)).astype("f")
  base = {"matrix": np.zeros((200_000, 8), "f")}
  trees = [{"matrix": base["matrix"] + row} for row in rows]
  theirs = mergekit(
    tmp_path,
    "dare_ties" if elect else "dare_linear",
    trees,
    base=base,
    each=each(density=0.4),
    normalize=elect,
    rescale=rescale,
  )["matrix"]
  rule = sj.rules.dare(
    0.4, weights=WEIGHTS, elect=elect, rescale=rescale, compat="mergekit"
  )
  ours = sj.mix(
    rule,
    [sj.Ingredient.from_params(f"m{k}", one) for k, one in enumerate(trees)],
    base=sj.Ingredient.from_params("base", base),
  ).params["matrix"]
  for statistic in (np.mean, np.std, lambda x, axis: (x != 0).mean(axis)):
    np.testing.assert_allclose(
      statistic(ours, 0), statistic(theirs, 0), rtol=0, atol=0.015
    )


@pytest.mark.parametrize("elect", [False, True])
def test_mergekit_della(tmp_path, elect):
  # Means over many equal rows: the random numbers are others.
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(3, 1, 8)).astype("f")
  base = {"matrix": np.zeros((200_000, 8), "f")}
  trees = [{"matrix": base["matrix"] + row} for row in rows]
  theirs = mergekit(
    tmp_path,
    "della" if elect else "della_linear",
    trees,
    base=base,
    each=each(density=0.5, epsilon=0.3),
    normalize=elect,
    rescale=True,
  )["matrix"]
  rule = sj.rules.della(
    0.5, 0.3, weights=WEIGHTS, elect=elect, compat="mergekit"
  )
  ours = sj.mix(
    rule,
    [sj.Ingredient.from_params(f"m{k}", one) for k, one in enumerate(trees)],
    base=sj.Ingredient.from_params("base", base),
  ).params["matrix"]
  for statistic in (np.mean, np.std, lambda x, axis: (x != 0).mean(axis)):
    np.testing.assert_allclose(
      statistic(ours, 0), statistic(theirs, 0), rtol=0, atol=0.015
    )


@pytest.mark.parametrize("count", [2, 3])
def test_mergekit_model_stock(tmp_path, count):
  theirs = mergekit(tmp_path, "model_stock", TREES[:count], base=BASE)
  check(theirs, sj.rules.model_stock(), count)


def test_mergekit_slerp(tmp_path):
  theirs = mergekit(tmp_path, "slerp", TREES[1:2], base=TREES[0], t=0.3)
  check(theirs, sj.rules.slerp(0.3), 2)


def test_mergekit_sce(tmp_path):
  theirs = mergekit(tmp_path, "sce", TREES, base=BASE, select_topk=0.2)
  check(theirs, sj.rules.sce(0.2))


def test_mergekit_karcher(tmp_path):
  # Theirs stops at a step of 1e-5.
  check(mergekit(tmp_path, "karcher", TREES), sj.rules.karcher(), atol=2e-5)


def peft(method, **settings):
  merges = pytest.importorskip("peft.utils.merge_utils")
  torch = pytest.importorskip("torch")
  merged = {}
  for name, start in BASE.items():
    deltas = [torch.tensor(one[name] - start) for one in TREES]
    weights = torch.tensor(WEIGHTS)
    actual = getattr(merges, method)(deltas, weights, **settings)
    merged[name] = start + actual.numpy()
  return merged


def test_peft_ties():
  theirs = peft("ties", density=0.3)
  check(theirs, sj.rules.ties(0.3, weights=WEIGHTS, compat="peft"))
  with pytest.raises(AssertionError):
    check(theirs, sj.rules.ties(0.3, weights=WEIGHTS, compat="mergekit"))


def test_peft_magnitude_prune():
  theirs = peft("magnitude_prune", density=0.3)
  check(theirs, sj.rules.breadcrumbs(0.3, 0, weights=WEIGHTS))


def test_peft_task_arithmetic():
  check(peft("task_arithmetic"), sj.rules.task_arithmetic(weights=WEIGHTS))
