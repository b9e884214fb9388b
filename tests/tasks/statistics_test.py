# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics from the shell, and merges with their files."""

import re
import shutil

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import models
from soupjax.models import pretrained
from soupjax.soups.core import tree
from soupjax.tasks import mix, statistics

ROOT = helpers.ROOT / "configs"
MODEL = models.ViT(
  num_classes=10, patch_size=8, width=8, depth=1, mlp_dim=8, num_heads=2,
  pool_type="gap", head_zeroinit=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
  """Two models in files with our names, and the first one with timm's."""
  folder = tmp_path_factory.mktemp("pool")
  images = np.zeros((1, 16, 16, 3), np.float32)
  for k, name in enumerate("ab"):
    params = jax.jit(MODEL.init)(jax.random.key(k), images)["params"]
    sj.save_params(folder / f"{name}.safetensors", params)
  params = sj.load_params(folder / "a.safetensors")
  pretrained.save_exported(folder / "timm.safetensors", params, MODEL, "timm")
  return folder


def config_of(pool, names="[ab]", **changes):
  values = {
    "ingredients": str(pool / f"{names}.safetensors"),
    "data.name": "digits",
    "data.minival": "minival",
    "data.eval_ops": "value_range(-1, 1)",
    "model.num_heads": 2,
    "images": 6,
    "data.batch_size": 4,
  }
  return config_lib.load(
    str(ROOT / "statistics.py"), "", **{**values, **changes}
  )


@pytest.fixture(scope="module")
def made(pool, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("statistics") / "run"
  statistics.run(config_of(pool), workdir)
  return workdir


def images():
  source = sj.data.open_source("digits", "minival")
  chosen = [source[k]["image"] for k in range(0, 300, 50)]
  pixels = np.stack([np.broadcast_to(x, (16, 16, 3)) for x in chosen])
  return (pixels / np.float32(255)) * 2 - 1


def flat(path):
  return tree.flatten(sj.load_params(path))[0]


def test_fisher_is_the_mean_of_squared_gradients(pool, made):
  params = sj.load_params(pool / "a.safetensors")
  key, squares = jax.random.key(0), []

  def log_probs(params, image):
    logits = MODEL.apply({"params": params}, image[None])[0]
    return jax.nn.log_softmax(logits[0])

  gradient = jax.jit(jax.grad(lambda p, image, k: log_probs(p, image)[k]))
  log_probs_ = jax.jit(log_probs)
  for i, batch in enumerate(np.split(images(), [4])):
    keys = jax.random.split(jax.random.fold_in(key, i), len(batch))
    for image, label_key in zip(batch, keys):
      label = jax.random.categorical(label_key, log_probs_(params, image))
      squares.append(
        jax.tree.map(
          lambda g: np.asarray(g, np.float64) ** 2,
          gradient(params, image, label),
        )
      )
  total = jax.tree.map(lambda *x: sum(x), *squares)
  found = flat(made / "a.safetensors" / "fisher.safetensors")
  for leaf, x in tree.flatten(total)[0].items():
    scale = np.abs(x).max() / 6
    np.testing.assert_allclose(
      found[leaf], x / 6, atol=1e-4 * scale + 1e-12, err_msg=leaf
    )


def test_grams_and_a_merge_by_regmean(pool, made, tmp_path):
  params = sj.load_params(pool / "a.safetensors")
  grams = flat(made / "a.safetensors" / "grams.safetensors")
  features = np.asarray(MODEL.apply({"params": params}, images())[1])
  expected = features.T @ features / 6
  np.testing.assert_allclose(grams["head/kernel"], expected, atol=1e-5)
  names = [pool / "a.safetensors", pool / "b.safetensors"]
  paths = [str(made / n.name / "grams.safetensors") for n in names]
  merged = flat(merge("regmean", "grams", names, paths, tmp_path))
  mean = tree.flatten(sj.uniform_soup(names))[0]
  a, b = (tree.flatten(sj.load_params(n))[0] for n in names)
  changed = {k for k, x in mean.items() if np.abs(merged[k] - x).max() > 1e-3}
  assert changed == {*grams}
  out = next(leaf for leaf in grams if leaf.endswith("out/kernel"))
  share = [flat(path)[out].astype("d") for path in paths]
  share = [0.9 * g + 0.1 * np.diag(np.diag(g)) for g in share]
  target = sum(g @ x[out].reshape(8, 8) for g, x in zip(share, (a, b)))
  exact = np.linalg.solve(sum(share), target)
  np.testing.assert_allclose(merged[out].reshape(8, 8), exact, atol=1e-3)


def merge(rule, key, names, paths, folder):
  """Merges with statistics as the shell does; returns the path of the soup."""
  out = folder / f"{rule}.safetensors"
  config = config_lib.load(
    str(ROOT / "mix.py"),
    rule,
    **{
      "ingredients": ",".join(map(str, names)),
      "out": str(out),
      f"rule.{key}": paths,
    },
  )
  mix.run(config)
  return out


def test_files_of_other_libraries(pool, made, tmp_path):
  workdir = tmp_path / "run"
  statistics.run(config_of(pool, "timm", **{"model.act": "gelu"}), workdir)
  folder = workdir / "timm.safetensors"
  path = folder / "fisher.safetensors"
  timm = pool / "timm.safetensors"
  again = shutil.copy(timm, tmp_path / "again.safetensors")
  names, paths = [timm, again], [str(path)] * 2
  merged = flat(merge("fisher", "fishers", names, paths, tmp_path))
  original = flat(timm)
  for leaf, x in merged.items():
    np.testing.assert_allclose(x, original[leaf], atol=1e-6)
  # Names and layout differ, the numbers do not.
  ours = tree.flatten(pretrained.load_pretrained(path, MODEL))[0]
  for leaf, x in flat(made / "a.safetensors" / "fisher.safetensors").items():
    np.testing.assert_allclose(ours[leaf], x, atol=1e-7 + 1e-4 * x.max())
  first = flat(folder / "model.safetensors")
  grams = flat(folder / "grams.safetensors")
  assert {*grams} < {*first} == {*flat(pool / "a.safetensors")}
  path.unlink()
  before = (folder / "grams.safetensors").stat().st_mtime_ns
  statistics.run(
    config_of(pool, "timm", **{"model.act": "gelu"}), workdir
  )  # Only what is missing.
  assert path.exists()
  assert (folder / "grams.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"kinds": "fisher+hessian"}, "kinds must be .*'fisher.hessian'"),
    ({"images": -1}, "images must be .* -1"),
    ({"model.scan": True}, "kinds=fisher"),
  ],
)
def test_statistics_that_cannot_be(pool, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    statistics.run(config_of(pool, **changes), tmp_path / "run")


def test_a_dry_run_says_what_it_needs(pool, made, tmp_path, capsys):
  statistics.run(config_of(pool), tmp_path / "run", dry_run=True)
  text = capsys.readouterr().out
  sizes = {"fisher": 0, "grams": 0}
  for name in sizes:
    for path in made.glob(f"*/{name}.safetensors"):
      leaves = sj.open_ingredient(path).specs.values()
      sizes[name] += sum(4 * leaf.size for leaf in leaves)
    assert f"{name} {sizes[name] / 1e3:.3g} kB" in text
  assert re.search(r"host memory .*the program", text)
  assert "Gram matrices" in text
  assert not (tmp_path / "run").exists()
