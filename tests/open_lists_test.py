# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Configs can name rules, models and image ops of modules outside soupjax."""

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.data import preprocess
from soupjax.tasks import mix
from soupjax.tasks.finetune import config as finetune_config

EXTRAS = """
from flax import linen as nn
import jax.numpy as jnp, numpy as np
import soupjax as sj
def _median(stack, base, values):
  return jnp.median(stack, axis=0) * values["scale"]
def median(scale=1.0):
  values = {"scale": np.float32(scale)}
  return sj.rules.Rule(name="m", combine=_median, values=lambda count: values)
class Linear(nn.Module):
  num_classes: int
  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1)), {}
def invert(image):
  return 255 - np.asarray(image)
"""
CONFIG = """
from soupjax.tasks.finetune import config
def get_config(arg=None):
  c = config.default_config()
  c.data.name, c.data.image_size, c.data.num_classes = "digits", 16, 10
  c.data.batch_size, c.hyper.total, c.hyper.warmup = 16, "3steps", "1steps"
  c.data.minival = "minival"
  return c.lock()
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "extras.py").write_text(EXTRAS.strip())
  (tmp_path / "config.py").write_text(CONFIG)
  for k, value in enumerate([1.0, 3.0, 8.0]):
    tree = {"head": np.full(4, value, "f")}
    sj.save_params(tmp_path / f"m{k}.safetensors", tree)
  return tmp_path


def test_a_rule(folder):
  done = helpers.soupjax(
    "--config=configs/mix.py:extras.median",
    f"--config.ingredients={folder}/m*",
    f"--config.out={folder}/soup.npz",
    "--config.rule.scale=2",
    path=[folder],
  )
  assert done.returncode == 0, done.stderr
  assert sj.load_params(folder / "soup.npz")["head"].tolist() == [6] * 4


def test_a_model_and_an_image_op(folder):
  done = helpers.soupjax(
    f"--config={folder}/config.py",
    "--config.model.name=extras.Linear",
    "--config.model.variant=",
    "--config.data.train_ops=extras.invert|value_range(-1, 1)",
    "--config.data.eval_ops=extras.invert|value_range(-1, 1)",
    f"--workdir={folder}/run",
    path=[folder],
  )
  assert done.returncode == 0, done.stderr
  params = sj.load_params(folder / "run" / "ingredients" / "last")
  assert params["head"]["kernel"].shape == (16 * 16 * 3, 10)


@pytest.mark.parametrize(
  "rule,culprit",
  [
    ("extras.mean", "extras.mean"),
    ("missing.mean", "missing"),
    ("extras.median(scala=2)", "'scala'.*'scale'"),
    ({"name": "extras.median", "scala": 2}, "'scala'.*'scale'"),
    ({"name": "extras.median(2)", "scale": 2}, "extras.median.2."),
    ("extras.invert(2)", "extras.invert"),
  ],
)
def test_bad_rules_are_named(folder, monkeypatch, rule, culprit):
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(ValueError, match=culprit):
    mix.rule_of(rule, 2)


@pytest.mark.parametrize(
  "changes,culprit",
  [
    ({"model.name": "extras.Linear"}, "'variant'.*'B/16'"),
    ({"model.name": "extras.invert", "model.variant": ""}, "extras.invert"),
    ({"model.name": "extras.Lineal"}, "extras.Lineal"),
    ({"loss": "extras.hinge"}, "extras.hinge"),
  ],
)
def test_bad_models_and_losses_are_named(folder, monkeypatch, changes, culprit):
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(ValueError, match=culprit):
    finetune_config.check(config_lib.load(str(folder / "config.py"), **changes))


def test_an_unknown_image_op_is_named(folder, monkeypatch):
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(ValueError, match="extras.invers"):
    preprocess.Preprocess("extras.invers")
