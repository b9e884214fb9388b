# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Estimates of dry runs against measured memory and disk."""

import os
import pathlib
import re

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.tasks import estimate

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
needs_status = pytest.mark.skipif(
  not os.path.exists("/proc/self/status"), reason="memory is in /proc"
)


def bytes_on_disk(path) -> int:
  path = pathlib.Path(path)
  files = [path] if path.is_file() else path.rglob("*")
  return sum(f.stat().st_size for f in files if f.is_file())


def planned(text) -> dict[str, float]:
  """Bytes of host memory, device memory and disk in a plan; 0 for none."""
  sizes = {}
  for name in ("host memory", "device memory", "disk space"):
    line = re.search(rf"^  {name}  +(none|([\d.e+]+) (\w+))", text, re.M)
    value, unit = line[2], line[3]
    sizes[name] = float(value) * UNITS[unit] if value else 0.0
  return sizes


def dry_run(*arguments) -> dict[str, float]:
  done = helpers.soupjax(*arguments, "--dry_run")
  assert done.returncode == 0, done.stderr
  return planned(done.stdout)


def test_lines():
  text = str(
    estimate.Estimate(
      host={"imports": 2e8, "blocks": 1.2e9, "nothing": 0},
      device={},
      disk={"soup": 1234},
      free=5e12,
    )
  )
  assert text.splitlines() == [
    "Needs about",
    "  host memory    1.4 GB a process: blocks 1.2 GB, imports 200 MB",
    "  device memory  none",
    "  disk space     1.23 kB: soup 1.23 kB (5 TB are free)",
  ]
  assert planned(text) == {
    "host memory": 1.4e9,
    "device memory": 0,
    "disk space": 1230,
  }


@needs_status
@pytest.mark.parametrize(
  "rule,columns,mebibytes,name",
  [
    ("linear", 512, 16, "soup.safetensors"),
    ("linear", 2048, 64, "soup"),
    # The rule has large temporary arrays.
    ("dare(0.5)", 1024, 48, "soup.npz"),
  ],
)
def test_mix(tmp_path, rule, columns, mebibytes, name):
  rng = np.random.default_rng(0)
  for k in range(2):
    leaf = rng.standard_normal((1024, columns), np.float32)
    model = {f"l{i}": leaf for i in range(8)}
    sj.save_params(tmp_path / f"m{k}.safetensors", model)
  command = (
    f"--config={helpers.ROOT / 'configs' / 'mix.py'}:{rule}",
    f"--config.ingredients={tmp_path / 'm*'}",
    f"--config.base={tmp_path / 'm0.safetensors'}",
    f"--config.out={tmp_path / name}",
    f"--config.block_bytes={mebibytes << 20}",
    "--config.threads=4",
  )
  sizes = dry_run(*command)
  peak, _ = helpers.peaks(*command)
  assert sizes["host memory"] == pytest.approx(peak, rel=0.2)
  assert sizes["device memory"] == 0
  written = bytes_on_disk(tmp_path / name)
  assert sizes["disk space"] == pytest.approx(written, rel=0.2)


@needs_status
@pytest.mark.parametrize("depth,batch", [(1, 8), (3, 32)])
def test_finetune(tmp_path, depth, batch):
  settings = {
    "model.width": 512,
    "model.depth": depth,
    "model.mlp_dim": 2048,
    "model.num_heads": 8,
    "data.batch_size": batch,
    "data.eval_batch_size": 8,
    "data.num_train": 150,
    "hyper.total": "4steps",
    "hyper.warmup": "2steps",
    "probe.total": "0steps",
    "steps_per_call": 1,
    "checkpoint": "2steps",
  }
  command = (
    f"--config={helpers.DIGITS}",
    f"--workdir={tmp_path / 'run'}",
    *(f"--config.{key}={value}" for key, value in settings.items()),
  )
  sizes = dry_run(*command)
  peak, disk = helpers.peaks(*command)
  assert sizes["host memory"] == pytest.approx(peak, rel=0.2)
  assert sizes["disk space"] == pytest.approx(disk, rel=0.2)


@pytest.fixture(params=[1, 3], ids=["small", "large"])
def models(request, tmp_path):
  """Flags of a task for three ViTs of some depth."""
  options = {
    "patch_size": 8,
    "width": 512,
    "depth": request.param,
    "mlp_dim": 2048,
    "num_heads": 8,
    "pool_type": "gap",
  }
  model = sj.models.ViT(num_classes=10, **options)
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  for k in range(3):
    rng = np.random.default_rng(k)
    params = jax.tree.map(
      lambda x, rng=rng: 0.02 * rng.standard_normal(x.shape, np.float32), shapes
    )
    sj.save_params(tmp_path / f"m{k}.safetensors", params)
  settings = {
    "ingredients": tmp_path / "m*",
    "data.name": "digits_row:0",
    "data.minival": "minival",
    "data.num_classes": 10,
    "data.image_size": 16,
    "data.eval_ops": "value_range(-1, 1)",
    **{f"model.{key}": value for key, value in options.items()},
  }
  return [f"--config.{key}={value}" for key, value in settings.items()]


@pytest.mark.slow
@needs_status
@pytest.mark.parametrize("task", ["cook", "diagnose"])
def test_cook_and_diagnose(models, tmp_path, task):
  more = ["--config.cook.learned.steps=2"] if task == "cook" else []
  check(task, models + more, tmp_path, has_disk=task == "cook")


@pytest.mark.slow
@needs_status
@pytest.mark.parametrize("models", [1], indirect=True)
@pytest.mark.parametrize("method", ["addition", "window"])
def test_search(models, tmp_path, method):
  unused = ("name", "minival", "num_classes")  # The sets are in `tasks`.
  unused = tuple(f"--config.data.{key}=" for key in unused)
  more = ["--config.tasks=a=digits_row:0:minival=minival:test=test"]
  if method == "addition":
    more += [f"--config.initial={tmp_path / 'm0.safetensors'}"]
    more += ["--config.search.points=3"]
  models = [flag for flag in models if not flag.startswith(unused)]
  check("search", models + more, tmp_path, method)


@pytest.mark.slow
@needs_status
@pytest.mark.parametrize("models", [1], indirect=True)
def test_statistics(models, tmp_path):
  check("statistics", [*models, "--config.images=40"], tmp_path)


def check(task, flags, tmp_path, arg="", *, has_disk=True):
  """Compares the estimates of a task with its peaks."""
  command = (
    f"--config={helpers.ROOT / 'configs' / task}.py:{arg}".rstrip(":"),
    f"--workdir={tmp_path / 'run'}",
    *flags,
  )
  sizes = dry_run(*command)
  peak, disk = helpers.peaks(*command)
  assert sizes["host memory"] == pytest.approx(peak, rel=0.2)
  if has_disk:
    assert sizes["disk space"] == pytest.approx(disk, rel=0.2)
