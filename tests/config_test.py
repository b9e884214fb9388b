# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import pathlib

import pytest

from soupjax import config

DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


def test_parse_arg():
  defaults = {"runlocal": False, "res": 224, "variant": "B/16", "lr": 0.1}
  c = config.parse_arg("runlocal,res=128,variant=S/8", **defaults)
  assert c.to_dict() == {
    "runlocal": True,
    "res": 128,
    "variant": "S/8",
    "lr": 0.1,
  }
  assert config.parse_arg(None, **defaults).to_dict() == defaults
  assert config.parse_arg("runlocal=False", **defaults).runlocal is False


@pytest.mark.parametrize(
  "arg,message",
  [
    ("res=big", "res=big is not int"),
    ("size=3", r"Unknown config argument 'size': allowed are \['res', 'x'\]"),
    ("x=maybe", "x is true or false"),
  ],
)
def test_parse_arg_bad(arg, message):
  with pytest.raises(ValueError, match=message):
    config.parse_arg(arg, res=1, x=False)


def test_load_overrides_and_locks():
  c = config.load(str(DIGITS), **{"sweep.size": 3, "seed": 7})
  assert (c.sweep.size, c.seed) == (3, 7)
  with pytest.raises((KeyError, AttributeError)):
    c.sweep.sizes = 4
  for key in ("sweep.sizes", "sweeps.size", "sweep.size.x", "nothing"):
    with pytest.raises(ValueError, match="no config key"):
      config.load(str(DIGITS), **{key: 1})
  with pytest.raises(ValueError, match="no config file"):
    config.load("nowhere.py")
  assert config.load(str(DIGITS), "scratch").pretrain.total_steps == 0


def test_differences():
  old = {"a": 1, "b": {"c": [1, 2], "d": 3}}
  assert config.differences(old, old) == []
  assert config.differences(old, {"a": 2, "b": {"c": [1], "e": 3}}) == [
    "a: 1 before, 2 now",
    "b.c: [1, 2] before, [1] now",
    "b.d: 3 before, not there now",
    "b.e: not there before, now 3",
  ]


def test_to_dict_is_json():
  c = config.to_dict(config.load(str(DIGITS)))
  assert c["sweep"]["total_steps"] == [100, 200]
  assert c["pretrain"]["affine"]["degrees"] == 27.0
