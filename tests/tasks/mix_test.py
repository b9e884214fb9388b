# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import inspect
import os
import pathlib

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as configs
from soupjax.tasks import mix

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "mix.py"


@pytest.fixture
def folder(tmp_path):
  for k, value in enumerate([1.0, 3.0]):
    tree = {"body": np.full(5, value, "f"), "head.x": np.full(2, value, "f")}
    sj.save_params(tmp_path / f"m{k}.safetensors", tree)
  return tmp_path


def run(folder, arg="uniform", /, *, dry_run=False, **settings):
  settings.setdefault("ingredients", str(folder / "m*"))
  settings.setdefault("out", str(folder / "soup.npz"))
  mix.run(configs.load(str(CONFIG), arg, **settings), dry_run=dry_run)
  return sj.load_params(settings["out"])


def test_uniform(folder, capsys):
  assert run(folder)["body"].tolist() == [2] * 5
  text = capsys.readouterr().out
  assert "m0" in text and "Wrote " in text and "GB/s" in text
  assert sj.provenance(folder / "soup.npz")["ingredients"][0]["content_hash"]


@pytest.mark.parametrize("between", [",", ", ", " ,\n"])
def test_several_paths(folder, between):
  both = between.join(str(folder / f"m{k}.safetensors") for k in range(2))
  assert run(folder, ingredients=f" {both}, ")["body"].tolist() == [2] * 5


def test_a_path_with_commas(folder):
  (folder / "lr=0.1,wd=0").mkdir()
  for k in range(2):
    name = f"m{k}.safetensors"
    (folder / name).rename(folder / "lr=0.1,wd=0" / name)
  first = f"{folder}/lr=0.1,wd=0/m0.safetensors"
  assert run(folder, ingredients=first)["body"].tolist() == [1] * 5
  out = str(folder / "o.npz")
  both = f"{first},{folder}/lr=0.1,wd=0/m1*"
  assert run(folder, ingredients=both, out=out)["body"].tolist() == [2] * 5


def test_several_patterns(folder):
  both = f"{folder}/m1*,{folder}/m0*"
  soup = run(folder, "weighted([1, 0])", ingredients=both)
  assert soup["body"].tolist() == [3] * 5


@pytest.mark.parametrize(
  "rule,settings,body,head",
  [
    ("weighted", {"rule.weights": (3.0, 1.0)}, 1.5, 1.5),
    ("weighted([3, 1])", {}, 1.5, 1.5),
    ("uniform", {"rule": "linear(weights=[3, 1])"}, 1.5, 1.5),
    ("uniform", {"rule": {"name": "linear", "weights": [3, 1]}}, 1.5, 1.5),
    ("linear([1, 1], normalize=False)", {}, 4, 4),
    ("schedule", {"rule.kind": "linear"}, 7 / 3, 7 / 3),
    ("schedule('ema', decay=0.25)", {}, 2.5, 2.5),
    ("schedule('uniform', last=1)", {}, 3, 3),
    ("interpolate", {}, 1.5, 1.5),
    ("interpolate(0.25)", {"rule.alpha": 0.75}, 1.75, 1.75),
    ("lerp({'d.x': 0.0, '': 0.5})", {}, 1.5, 1),
    ("task_arithmetic", {"rule.scale": {"d.x": 0.0, "": 0.5}}, 2, 1),
    ("ties(1.0)", {"rule.scale": 0.25}, 1.5, 1.5),
    ("slerp", {"rule.t": 0.5}, 2, 2),
    ("uniform", {"select": {"d.x": "keep"}}, 2, 1),
    ("uniform", {"select": "d.x=keep"}, 2, 1),
    ("uniform", {"select": (("d.x", (0, 1)),)}, 2, 3),
    ("uniform", {"select": "d.x=[0, 1], body=0.25"}, 1.25, 3),
    ("uniform", {"select": "head[.]x{1,2}=(0,1),=keep"}, 1, 3),
  ],
)
def test_rules(folder, rule, settings, body, head):
  ends = {"base": str(folder / "m0.safetensors")}
  if rule.startswith("ties"):
    ends["ingredients"] = str(folder / "m1.safetensors")
  soup = run(folder, rule, **ends, **settings)
  assert np.allclose(soup["body"], body) and np.allclose(soup["head.x"], head)


def test_statistics_may_be_paths(folder):
  fishers = [str(folder / f"m{k}.safetensors") for k in range(2)]
  soup = run(folder, f"fisher({fishers})")
  assert abs(soup["body"] - 2.5).max() < 1e-6  # (1 * 1 + 3 * 3) / 4.


def test_the_other_settings(folder):
  soup = run(
    folder,
    "interpolate(0.25)",
    ingredients=str(folder / "m1.safetensors"),
    base=str(folder / "m0.safetensors"),
    dtype="float16",
    out=str(folder / "soup"),
    format="safetensors",
    shard_bytes=8,
  )
  assert soup["body"].tolist() == [1.5] * 5 and soup["body"].dtype == "f2"
  assert len(os.listdir(folder / "soup")) == 3


@pytest.mark.parametrize("name", sorted(sj.rules.RULES))
def test_the_arguments_of_a_rule_are_keys_of_its_config(name):
  rule = configs.load(str(CONFIG), name).rule
  assert rule.name == name
  parameters = inspect.signature(sj.rules.RULES.get(name)).parameters
  assert set(rule) - {"name"} == set(parameters) - {"count"}
  for key, parameter in parameters.items():
    if parameter.default is not parameter.empty:
      assert rule[key] == parameter.default


def test_every_rule_of_the_package_is_in_the_registry():
  returns_rule = {
    name
    for name, value in vars(sj.rules).items()
    if inspect.isfunction(value)
    and inspect.signature(value).return_annotation is sj.rules.Rule
  }
  assert len(returns_rule) >= 16 and returns_rule <= set(sj.rules.RULES)


def test_the_defaults_of_the_config_are_those_of_the_rule():
  config = configs.load(str(CONFIG), "della(0.5)")
  from_config = mix.rule_of(config.rule, 2)
  assert from_config.settings == sj.rules.della(0.5).settings


def test_dry_run(folder, capsys):
  with pytest.raises(ValueError, match="soup.npz"):  # Nothing was written.
    run(folder, dry_run=True)
  assert "memory" in capsys.readouterr().out


@pytest.mark.parametrize(
  "rule,settings,culprit",
  [
    ("uniform", {"rule.weights": (1.0, 2.0)}, "'rule.weights'"),
    ("uniform", {"rule": "uniform(weights=[1, 2])"}, "'weights'"),
    ("interpolate", {"rule": {"name": "lerp", "weights": [1]}}, "'weights'"),
    ("schedule('linear', last=3)", {}, "last=3"),
    ("schedule('linear', decay=0.5)", {}, "decay="),
    ("uniform", {"ingredients": ""}, "--config.ingredients"),
    ("uniform", {"out": ""}, "--config.out"),
    ("weighted", {}, "--config.rule.weights"),
    ("slerp", {}, "--config.rule.t"),
    ("interpolate", {}, "base"),
    ("ties", {}, "base"),
    ("ties(dense=1)", {}, "'dense'.*'density'"),
    ("ties(0.1, density=1)", {}, "density"),
    ("ties(0)", {}, "density"),
    ("ties(density=", {}, "'ties.density='"),
    ("ties(density=x)", {}, "'ties.density=x.'"),
    ("ties()|dare()", {}, "'ties..|dare..'"),
    ("tie", {}, "'tie'.*'ties'"),
    ("no_such_module.rule", {}, "no_such_module"),
    ("math.no_such", {}, "math.no_such"),
    ("operator.abs(a=1)", {}, "'a'|no signature"),
    ("uniform", {"rule": {"name": "ties(0.2)", "scale": 1}}, "ties.0.2."),
    ("uniform", {"rule": 3}, "got 3"),
    ("uniform", {"rule": {"density": 3}}, "'density': 3"),
    ("uniform", {"select": "head"}, "'head'"),
    ("uniform", {"select": "head=skip,head=keep"}, "'head' twice"),
    ("uniform", {"select": "head=drop"}, "'drop'.*'head'"),
    ("uniform", {"select": ("head", "keep")}, "'head', 'keep'"),
    ("uniform", {"max_host_bytes": 10}, "max_host_bytes=10"),
  ],
)
def test_bad_input_is_named(folder, rule, settings, culprit):
  with pytest.raises(ValueError, match=culprit):
    run(folder, rule, **settings)
  assert not (folder / "soup.npz").exists()


def test_the_mean_of_files_has_a_program_for_devices(folder, capsys):
  paths = {
    "ingredients": f"{folder}/m?.safetensors",
    "out": f"{folder}/x.npz",
  }
  config = configs.load(str(CONFIG), "uniform", **paths)
  (program,) = mix.programs(config, jax.devices())
  assert program.name == "mean of 2 x 'body', the largest leaf"
  assert "m0" in capsys.readouterr().out  # The plan.
  config = configs.load(str(CONFIG), "ties(0.2)", **paths)
  with pytest.raises(ValueError, match="'ties' runs on the CPUs.*uniform"):
    mix.programs(config, jax.devices())


def write_adapters(tmp_path):
  """Writes a base and two adapters of it; returns the pattern of the latter."""
  base = {"q.weight": np.ones((3, 2), "f"), "q.bias": np.ones(3, "f")}
  sj.save_params(tmp_path / "base.safetensors", base)
  for k, alpha in enumerate((2, 6)):
    folder = tmp_path / f"run{k}" / "adapter"
    factors = {"q.lora_A.weight": (2, 2), "q.lora_B.weight": (3, 2)}
    sj.save_params(
      folder / "adapter_model.safetensors",
      {k: np.ones(shape, "f") for k, shape in factors.items()},
    )
    (folder / "adapter_config.json").write_text(
      f'{{"peft_type": "LORA", "r": 2, "lora_alpha": {alpha}}}'
    )
  return str(tmp_path / "run*" / "adapter")


def test_adapters_on_a_base(tmp_path, capsys):
  pattern = write_adapters(tmp_path)
  with pytest.raises(ValueError, match="run0/adapter.*--config.base"):
    run(tmp_path, ingredients=pattern)
  settings = {"base": str(tmp_path / "base.safetensors")}
  soup = run(tmp_path, ingredients=pattern, **settings)
  assert soup["q.weight"].tolist() == [[5, 5]] * 3  # 1 + (2 + 6) / 2
  assert soup["q.bias"].tolist() == [1] * 3
  text = capsys.readouterr().out
  assert "run0" in text and "base.safetensors" in text


def test_an_adapter_of_adapters(tmp_path, capsys):
  settings = {"ingredients": write_adapters(tmp_path), "format": "adapter"}
  settings["out"] = str(tmp_path / "mixed")
  config = configs.load(str(CONFIG), "weighted([3, 1])", **settings, rank=1)
  assert mix.run(config, dry_run=True) is None
  assert not (tmp_path / "mixed").exists()
  mix.run(config)
  assert "q  rank 1  error 0.00%" in capsys.readouterr().out
  model = sj.open_adapter(tmp_path / "mixed", tmp_path / "base.safetensors")
  np.testing.assert_allclose(model.read("q.weight"), np.full((3, 2), 4), 1e-6)


@pytest.mark.parametrize(
  "rule,settings,message",
  [
    ("ties(1.0)", {"format": "adapter"}, "'ties' gives no adapter.*base"),
    ("uniform", {"format": "adapter", "dtype": "float32"}, "dtype='float32'"),
    ("uniform", {"rank": 4}, "rank=4.*format=adapter"),
  ],
)
def test_settings_that_adapters_lack(tmp_path, rule, settings, message):
  pattern = write_adapters(tmp_path)
  with pytest.raises(ValueError, match=message):
    run(tmp_path, rule, ingredients=pattern, **settings)
