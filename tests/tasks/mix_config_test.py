# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import os
import pathlib

import numpy as np
import pytest

import soupjax as sj
from soupjax import config as configs
from soupjax.tasks import mix

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "soups"


@pytest.fixture
def folder(tmp_path):
  for k, value in enumerate([1.0, 3.0]):
    tree = {"body": np.full(5, value, "f"), "head": np.full(2, value, "f")}
    sj.save_params(tmp_path / f"m{k}.safetensors", tree)
  return tmp_path


def run(folder, name, *, dry_run=False, **settings):
  settings.setdefault("ingredients", str(folder / "m*"))
  settings.setdefault("out", str(folder / "soup.npz"))
  name, _, arg = name.partition(":")
  config = configs.load(str(CONFIGS / f"{name}.py"), arg or None, **settings)
  mix.mix(config, dry_run=dry_run)
  return sj.load_params(settings["out"])


def test_uniform(folder, capsys):
  assert run(folder, "uniform")["body"].tolist() == [2] * 5
  text = capsys.readouterr().out
  assert "m0" in text and "Wrote " in text and "GB/s" in text
  assert sj.provenance(folder / "soup.npz")["ingredients"][0]["content_hash"]


@pytest.mark.parametrize("between", [",", ", ", " ,\n"])
def test_several_paths(folder, between):
  both = between.join(str(folder / f"m{k}.safetensors") for k in range(2))
  found = run(folder, "uniform", ingredients=f" {both}, ")
  assert found["body"].tolist() == [2] * 5


def test_weighted(folder):
  found = run(folder, "weighted", weights=(3.0, 1.0))
  assert found["head"].tolist() == [1.5] * 2


def test_schedule(folder):
  found = run(folder, "weighted", schedule="linear")
  assert np.allclose(found["head"], (1 + 2 * 3) / 3)
  again = {"overwrite": True, "schedule": "ema"}
  found = run(folder, "weighted", arguments='{"decay": 0.25}', **again)
  assert np.allclose(found["head"], 0.25 * 1 + 0.75 * 3)
  with pytest.raises(ValueError, match="last 3 of 2"):
    run(folder, "weighted", schedule="linear", arguments='{"last": 3}')


@pytest.mark.parametrize(
  "name,settings,text",
  [
    ("merge:linear", {"weights": (1.0, 2.0)}, "'linear' takes arguments here"),
    ("uniform", {"weights": (1.0, 2.0)}, "weights=.*takes no settings"),
    ("uniform", {"arguments": "{}"}, "arguments=.*takes no settings"),
    ("uniform", {"schedule": "ema"}, "schedule=.*takes no settings"),
    ("weighted", {"weights": (1.0, 2.0), "alpha": 0.5}, "alpha=0.5 would"),
    ("weighted", {"weights": (1.0, 2.0), "arguments": "{}"}, "takes weights"),
    ("weighted", {"weights": (1.0, 2.0), "schedule": "ema"}, "weights=.*and"),
    ("interpolate", {"weights": (1.0, 2.0)}, "takes alpha here"),
    ("merge:lerp", {"alpha": 0.2}, "alpha=0.2 would be ignored"),
  ],
)
def test_nothing_is_ignored(folder, name, settings, text):
  with pytest.raises(ValueError, match=text):
    run(folder, name, base=str(folder / "m0.safetensors"), **settings)
  assert not (folder / "soup.npz").exists()


def test_interpolate_and_the_other_settings(folder):
  found = run(
    folder,
    "interpolate",
    ingredients=str(folder / "m1.safetensors"),
    base=str(folder / "m0.safetensors"),
    alpha=0.25,
    select=(("head", "keep"),),
    dtype="float16",
    out=str(folder / "soup"),
    format="safetensors",
    shard_bytes=8,
  )
  assert found["body"].tolist() == [1.5] * 5 and found["body"].dtype == "f2"
  assert found["head"].tolist() == [1] * 2
  assert len(os.listdir(folder / "soup")) == 3


def test_merge_by_name(folder):
  base = str(folder / "m0.safetensors")
  found = run(
    folder,
    "merge:task_arithmetic",
    base=base,
    arguments='{"scale": {"head": 0.0, "": 0.5}}',
  )
  assert found["body"].tolist() == [2] * 5 and found["head"].tolist() == [1] * 2
  one = str(folder / "m1.safetensors")
  found = run(
    folder,
    "merge:ties",
    base=base,
    ingredients=one,
    arguments='{"density": 1.0, "scale": 0.25}',
    overwrite=True,
  )
  assert found["body"].tolist() == [1.5] * 5
  found = run(
    folder,
    "merge:slerp",
    arguments='{"t": 0.5}',
    overwrite=True,
  )
  assert abs(found["body"] - 2).max() < 1e-6
  found = run(
    folder,
    "merge:fisher",
    arguments=f'{{"fishers": ["{base}", "{one}"]}}',
    overwrite=True,
  )
  assert abs(found["body"] - 2.5).max() < 1e-6  # (1 * 1 + 3 * 3) / 4.


def test_every_named_rule_exists():
  assert all(callable(getattr(sj.rules, name)) for name in mix.NAMED)


def test_several_patterns(folder):
  both = f"{folder}/m1*,{folder}/m0*"
  found = run(folder, "weighted", ingredients=both, weights=(1.0, 0.0))
  assert found["body"].tolist() == [3] * 5


def test_dry_run(folder, capsys):
  config = configs.load(
    str(CONFIGS / "uniform.py"),
    ingredients=str(folder / "m*"),
    out=str(folder / "soup.npz"),
  )
  assert mix.mix(config, dry_run=True).report is None
  assert "memory" in capsys.readouterr().out
  assert not (folder / "soup.npz").exists()


@pytest.mark.parametrize(
  "name,settings,text",
  [
    ("uniform", {"ingredients": ""}, "--config.ingredients"),
    ("uniform", {"out": ""}, "--config.out"),
    ("weighted", {}, "--config.weights"),
    ("interpolate", {}, "base"),
    ("uniform", {"rule": "x"}, "rule='x'"),
    ("merge:x", {}, "rule='x' is none of.*'ties'"),
    ("merge:ties", {}, "needs a base"),
    (
      "merge:ties",
      {"arguments": '{"dense": 1}'},
      "density.*(missing|unexpected)",
    ),
    ("merge:ties", {"arguments": "density=1"}, "JSON"),
    ("merge:ties", {"arguments": '{"density": 0}'}, "density"),
    ("uniform", {"max_host_bytes": 10}, "max_host_bytes=10"),
  ],
)
def test_what_is_missing_is_named(folder, name, settings, text):
  with pytest.raises(ValueError, match=text):
    run(folder, name, **settings)
  assert not (folder / "soup.npz").exists()
