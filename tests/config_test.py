# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import ml_collections
from ml_collections import config_dict
import pytest

from soupjax import config

CONFIG = """
import ml_collections
def get_config(arg=None):
  return ml_collections.ConfigDict({
    "seed": 0, "sweep": {"size": 8, "total": (1, 2)}, "arg": str(arg),
  })
"""


@pytest.fixture
def path(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  return str(tmp_path / "config.py")


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
    ("res=big", "res .*int.*'big'"),
    ("size=3", "'size'.*'res', 'x'"),
    ("x=maybe", "x .*'maybe'"),
  ],
)
def test_parse_arg_bad(arg, message):
  with pytest.raises(ValueError, match=message):
    config.parse_arg(arg, res=1, x=False)


def test_load_overrides_and_locks(path):
  c = config.load(path, **{"sweep.size": 3, "seed": 7})
  assert (c.sweep.size, c.seed) == (3, 7)
  with pytest.raises((KeyError, AttributeError)):
    c.sweep.sizes = 4
  for key in ("sweep.sizes", "sweeps.size", "sweep.size.x", "nothing", "arg.N"):
    with pytest.raises(ValueError, match=f"{key!r}"):
      config.load(path, **{key: 1})
  with pytest.raises(ValueError, match="nowhere.py"):
    config.load("nowhere.py")
  assert config.load(path, "scratch").arg == "scratch"


def test_differences():
  old = {"a": 1, "b": {"c": [1, 2], "d": 3}}
  assert config.differences(old, old) == []
  assert config.differences(old, {"a": 2, "b": {"c": [1], "e": 3}}) == [
    "a: 1 before, 2 now",
    "b.c: [1, 2] before, [1] now",
    "b.d: 3 before, not there now",
    "b.e: not there before, now 3",
  ]


def test_to_dict_is_json(path):
  c = config.to_dict(config.load(path))
  assert c == {"seed": 0, "arg": "None", "sweep": {"size": 8, "total": [1, 2]}}


@pytest.mark.parametrize(
  "duration,expected",
  [
    ("10epochs", 200),
    ("0.5epochs", 10),
    ("1epoch", 20),
    ("500steps", 500),
    ("1000examples", 20),
    ("1e3examples", 20),
  ],
)
def test_durations_have_units(duration, expected):
  steps = config.steps(duration, batch_size=50, num_examples=1000)
  assert steps == expected


@pytest.mark.parametrize(
  "duration", ["10", 10, "epochs", "10weeks", "1.2.3steps"]
)
def test_durations_without_a_unit_are_named(duration):
  with pytest.raises(ValueError, match="hyper.total"):
    config.steps(duration, batch_size=1, num_examples=1, name="hyper.total")


def test_epochs_of_unknown_length_are_an_error():
  assert config.steps("5steps", batch_size=1, num_examples=None) == 5
  with pytest.raises(ValueError, match="examples"):
    config.steps("5epochs", batch_size=1, num_examples=None)


def test_random_search_draws_from_the_papers_ranges():
  members = list(config.random_search(300, seed=1))
  assert members[:5] == list(config.random_search(5, seed=1))
  assert members[:5] != list(config.random_search(5, seed=2))

  def values(key):
    return [m[key] for m in members if key in m]

  for key, low, high in (
    ("hyper.learning_rate", 1e-6, 1e-4),
    ("hyper.weight_decay", 1e-4, 10**-0.2),
    ("hyper.label_smoothing", 0, 0.25),
    ("hyper.mixup", 0, 0.9),
    ("data.augment.randaug_magnitude", 1, 20),
  ):
    drawn = values(key)
    assert low <= min(drawn) <= low + 0.1 * (high - low)
    assert high - 0.15 * (high - low) <= max(drawn) <= high
  epochs = {int(e.removesuffix("epochs")) for e in values("hyper.total")}
  assert epochs == set(range(4, 17))
  assert set(values("data.augment.randaug_layers")) == {0, 1, 2}
  for key, share in (
    ("hyper.label_smoothing", 0.5),
    ("hyper.mixup", 0.5),
  ):
    zeros = sum(v == 0 for v in values(key)) / len(members)
    assert abs(zeros - share) < 0.1
  minimal = sum(v == 90 for v in values("data.augment.crop_min")) / 300
  assert abs(minimal - 1 / 3) < 0.1
  assert len({m["seed"] for m in members}) == 300


@pytest.mark.parametrize(
  "grid,rates", [(config.standard_grid, 4), (config.extreme_grid, 8)]
)
def test_grids_have_every_combination_and_seeds_of_their_own(grid, rates):
  members = list(grid())
  assert len(members) == 48
  assert len({m["hyper.learning_rate"] for m in members}) == rates
  assert {m["hyper.mixup"] for m in members} == {0.0, 0.5}
  assert len({m["seed"] for m in members}) == 48


def test_seeds():
  assert list(config.seeds(3)) == [{"seed": k} for k in range(3)]


SWEEP = """
import ml_collections
def get_config(arg=None):
  return ml_collections.ConfigDict({"lr": 1.0, "n": {"k": 1}})
"""


@pytest.mark.parametrize(
  "get_sweep",
  [
    "def get_sweep():\n  yield {'lr': 2.0}",
    "def get_sweep(arg=None):\n  yield {'lr': float(arg)}",
    "def get_sweep(arg):\n  return [{'lr': float(arg)}]",
  ],
)
def test_a_sweep_is_loaded_with_or_without_its_argument(tmp_path, get_sweep):
  (tmp_path / "c.py").write_text(SWEEP + get_sweep)
  assert config.load_sweep(str(tmp_path / "c.py"), "2") == [{"lr": 2.0}]


def test_configs_without_members_are_named(tmp_path):
  path = tmp_path / "c.py"
  path.write_text(SWEEP)
  with pytest.raises(ValueError, match=r"get_sweep\(\)"):
    config.load_sweep(str(path))
  assert config.load_sweep(str(path), required=False) == []
  path.write_text(SWEEP + "def get_sweep():\n  return []")
  with pytest.raises(ValueError, match="yields nothing"):
    config.load_sweep(str(path))


def test_an_updated_config_is_a_locked_copy():
  old = ml_collections.ConfigDict({"lr": 1.0, "n": {"k": 1, "t": (1, 2)}})
  new = config.updated(old, {"n.k": 2, "n.t": (3,)})
  assert (old.n.k, new.n.k, new.n.t) == (1, 2, (3,)) and new.is_locked
  with pytest.raises(ValueError, match="'n.x'"):
    config.updated(old, {"n.x": 2})
  with pytest.raises(ValueError, match="wrong type"):
    config.updated(old, {"n.k": "two"})


def test_an_updated_config_has_the_types_of_the_old_one():
  old = ml_collections.ConfigDict({"any": config_dict.placeholder(object)})
  new = config.updated(config.updated(old, {"any": 1}), {"any": "text"})
  assert new.any == "text"


def test_problems_are_raised_together():
  problems = config.Problems(ml_collections.ConfigDict({"n": {"k": 0}, "x": 1}))
  problems.expect("n.k", "positive", lambda v: v > 0)
  problems.expect("x", "a text", lambda v: len(v) > 0)
  problems.expect("x", "positive", lambda v: v > 0)
  problems.attempt(int, "two")
  problems.attempt(int, "3")
  with pytest.raises(ValueError, match="n.k .*0\n.*x .*text.*1\n.*'two'"):
    problems.raise_if_any()


def test_a_config_is_a_python_file(tmp_path):
  path = tmp_path / "config.txt"
  path.write_text("def get_config(arg=None): pass\n")
  with pytest.raises(ValueError, match="config.txt"):
    config.load(str(path))
