# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""All searches of benchmarks/digit_tasks, shrunk: choices, heads, tables."""

import importlib
import json
import pathlib
import subprocess
import sys

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib

FOLDER = helpers.ROOT / "benchmarks" / "digit_tasks"
# As python does for a script in that folder.
sys.path.insert(0, str(FOLDER))
run = importlib.import_module("run")
sys.path.remove(str(FOLDER))

# Runs the commands in one process, which compiles once, and prints which they
# were. Only the model of "parity" is trained; others move at random. Reports
# are empty. At the end, the objective of blackbox.py, without other optimisers.
SCRIPT = """
import json, pathlib, sys, types
import jax, numpy as np
import run
import soupjax as sj
from soupjax import config as config_lib
from soupjax import report
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import run as finetune_lib
from soupjax.tasks.search import run as search_lib

commands, rng = [], np.random.default_rng(0)
report.write_search_report = lambda path: (path / "report.html").touch()

def soupjax(config, workdir, *flags, **values):
  commands.append([config, str(workdir), flags, values])
  path, _, arg = config.partition(":")
  loaded = config_lib.load(path, arg, **values)
  if loaded.task == "search":
    search_lib.run(loaded, workdir)
  elif workdir.name == "parity":
    finetune_lib.run(loaded, workdir)
  else:
    settings.check(loaded)
    if loaded.init.path:
      start = sj.load_params(loaded.init.path)
    else:
      images = np.zeros((1, 16, 16, 3), "f")
      model = settings.build_model(loaded)
      start = jax.jit(model.init)(jax.random.key(0), images)["params"]
    if not flags:
      save(workdir, start, loaded.freeze)
      return
    save(workdir, start, (), "initial")  # With a probe.
    start = sj.load_params(workdir / "initial")
    for k in range(len(config_lib.load_sweep(path, arg))):
      save(workdir / f"member_{{k:03d}}", start, ())

def save(workdir, start, freeze, name="ingredients/last"):
  move = lambda x: np.asarray(x + 0.02 * rng.normal(size=x.shape), "f")
  moved = jax.tree.map(move, start)
  if freeze:
    moved["head"] = start["head"]
  sj.save_params(workdir / name / "model.safetensors", moved)

run.soupjax, run.SHIFTS = soupjax, ("noise", "new_writers")
lab = run.Lab(pathlib.Path({workdir!r}), 0, short=True)
run.run(lab)
value = None
if {first}:
  for name in ("cma", "nevergrad"):
    sys.modules[name] = types.ModuleType(name)
  import blackbox
  value = blackbox.objective(lab, run.PATCHING)([0.5, 0.5])
print(json.dumps([commands, run.record_of(lab), value]))
"""


def run_all(workdir, first):
  """Returns the commands, the record, and a score of blackbox.py."""
  code = SCRIPT.format(workdir=str(workdir), first=first)
  done = helpers.soupjax(code=code, path=[FOLDER], timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """The directory of a run of all searches, and what `run_all` returns."""
  workdir = tmp_path_factory.mktemp("searches")
  return workdir, run_all(workdir, True)


def searched(workdir, name):
  return json.loads((workdir / "searches" / name / "search.json").read_text())


def best_of(history):
  (best,) = (c for c in history if c["chosen"])
  return best


def test_tables_have_all_models(done):
  tables = done[1][1]["accuracies"]
  expected = {
    "wise_ft": ["pretrained", "upright", "wise_ft: at_0.5", "wise_ft: chosen"],
    "addition": [
      *("pretrained", *run.ADDED),
      *("addition: at_0.3", "addition: chosen", "uniform: chosen"),
      *("entropy_model: chosen", "entropy_layer: chosen"),
    ],
    "negation": ["pretrained", "inverted", "negation: chosen"],
    "analogy": [
      *("pretrained", "inverted", "rotated", "rotated_inverted", "upright"),
      *("analogy: at_1", "analogy: chosen"),
    ],
    "paint": [
      *("pretrained", "rotated", "paint_rotated: chosen"),
      *("mirrored", "paint_mirrored: chosen"),
      *("joint", "paint_joint: chosen", "second"),
      *("paint_second: after_rotated", "paint_second: chosen"),
      *("paint_parallel: at_equal", "paint_parallel: chosen"),
    ],
    "pools": [
      f"{pool}: {model}"
      for pool in ("diwa", "ratatouille")
      for model in ("pretrained", "best run", "uniform", "chosen")
    ],
  }
  assert {k: sorted(v) for k, v in tables.items()} == {
    k: sorted(v) for k, v in expected.items()
  }
  paint = tables["paint"]["paint_rotated: chosen"]
  assert {*paint} - {"mean", "combined"} == {*run.PATCHING, *run.SUPPORTED}
  means = [
    np.mean([paint[t] for t in g]) for g in (run.PATCHING, run.SUPPORTED)
  ]
  assert paint["combined"] == pytest.approx(np.mean(means))
  assert list(tables["pools"]["diwa: best run"]) == ["test", "8 shifts"]
  for name, table in tables.items():
    text = run.markdown(name, [done[1][1]] * 2)
    assert len(text.splitlines()) == 2 + len(table) and "+- 0.0" in text


def test_choices_are_made_on_minival(done):
  workdir = done[0]
  counts = dict.fromkeys(("wise_ft", "addition", "negation", "analogy"), 3)
  counts |= dict.fromkeys(("paint_rotated", "paint_mirrored", "paint_joint"), 3)
  counts |= {"paint_first": 3, "paint_second": 3, "paint_parallel": 6}
  for name, count in counts.items():
    for history in searched(workdir, name)["searches"].values():
      assert len(history) == count
      best = best_of(history)
      allowed = [c for c in history if "below" not in c["reason"]]
      assert best["value"] == max(c["value"] for c in allowed)
      # 60 images of minival; others would give other fractions.
      for candidate in history:
        for score in candidate["scores"].values():
          assert abs(60 * score - round(60 * score)) < 1e-9
  curve = searched(workdir, "wise_ft")["searches"]["wise_ft"]
  assert best_of(curve)["value"] == max(c["scores"]["upright"] for c in curve)
  curve = searched(workdir, "negation")["searches"]["negation"]
  assert [c["coefficients"] for c in curve] == [[0.0], [1.0], [2.0]]
  second = searched(workdir, "paint_second")["searches"]
  assert list(second) == ["paint_1_rotated", "paint_2_mirrored"]
  (first,) = searched(workdir, "paint_first")["searches"].values()
  assert second["paint_1_rotated"] == first
  learned = searched(workdir, "entropy_model")["learned"]["entropy"]
  assert learned["names"] == run.ADDED
  assert len(searched(workdir, "diwa")["greedy"]["greedy"]["history"]) == 5


def test_other_optimisers_see_the_same_scores(done):
  workdir, (_, _, value) = done
  (history,) = searched(workdir, "paint_parallel")["searches"].values()
  (equal,) = (c for c in history if c["coefficients"] == [0.5, 0.5])
  assert value == pytest.approx(equal["value"])


def test_a_second_start_goes_on(done):
  workdir, (commands, record, _) = done
  # 7 tasks and their start, the second of a sequence, and pools of 1 + 4 + 4.
  names = [pathlib.Path(path).parts[-2:] for _, path, _, _ in commands]
  assert len(set(names)) == len(names) == 8 + 1 + 9 + 15
  (workdir / "searches/analogy/report.html").unlink()
  again, record_again, _ = run_all(workdir, False)
  assert [path for _, path, _, _ in again] == [f"{workdir}/searches/analogy"]
  assert record_again == record


def test_heads_are_frozen_and_not_merged(done):
  workdir = done[0]
  assert "head" not in sj.load_params(workdir / "searches/addition/chosen")
  start, parity, probe = (
    sj.load_params(workdir / name)
    for name in ("tuned/pretrained", "tuned/parity", "models/diwa/initial")
  )
  kernel = start["head"]["kernel"]
  np.testing.assert_allclose(
    parity["head"]["kernel"],
    np.stack([kernel[:, 0::2].mean(1), kernel[:, 1::2].mean(1)], 1),
    atol=1e-6,
  )
  moved = parity["embedding"]["kernel"] - start["embedding"]["kernel"]
  assert np.abs(moved).max() > 0
  # Runs of ratatouille start from other encoders, but from the same probe.
  auxiliary = "starts/auxiliary_rotated.safetensors"
  recycled = sj.load_params(workdir / auxiliary)
  jax.tree.map(np.testing.assert_array_equal, recycled["head"], probe["head"])
  encoder = sj.load_params(workdir / "tuned/auxiliary_rotated")["embedding"]
  jax.tree.map(np.testing.assert_array_equal, recycled["embedding"], encoder)


def test_what_is_trained_on_what(done):
  """Heads learn only in pools, which have few images and a probe."""
  settings = {}
  for config, workdir, _, values in done[1][0]:
    path, _, arg = config.partition(":")
    loaded = config_lib.load(path, arg, **values)
    if loaded.task == "finetune":
      name = pathlib.Path(workdir).name
      c = loaded.data
      settings[name] = (
        *(pathlib.Path(c.name).name, c.train, c.num_classes, loaded.freeze),
        *(loaded.probe.total, loaded.init.path.removeprefix(str(done[0]))),
      )
  frozen, pretrained = ("^head/",), "/tuned/pretrained"
  task = ("train", 10, frozen, "0steps", pretrained)
  expected = {
    "pretrained": ("pretrain", "train", 10, (), "0steps", ""),
    **{name: (name, *task) for name in (*run.VARIANTS, "joint")},
    "second": ("mirrored", *task[:-1], "/searches/paint_first/stages/mirrored"),
    "diwa": ("upright", "few", 10, (), "100steps", pretrained),
  }
  parity = 2, frozen, "0steps", "/starts/parity.safetensors"
  expected["parity"] = "parity", "train", *parity
  for name in run.AUXILIARY:
    start = f"/starts/auxiliary_{name}.safetensors"
    expected[f"auxiliary_{name}"] = name, "rest", *task[1:]
    expected[f"recycled_{name}"] = "upright", "few", 10, (), "0steps", start
  expected["auxiliary_parity"] = "parity", "rest", *parity
  assert settings == expected
  rates = {
    pathlib.Path(workdir).name: values["hyper.learning_rate"]
    for _, workdir, _, values in done[1][0]
    if "hyper.learning_rate" in values
  }
  np.testing.assert_allclose(run.RATES, 2e-3 * 2 ** np.linspace(-1, 1, 5))
  names = [f"recycled_{name}" for name in run.AUXILIARY]
  assert rates == dict(zip(names, run.RATES[1:]))


def test_images_of_two_tasks_are_mixed(done):
  folder = f"folder:{done[0] / 'images'}"
  joint = sj.data.open_source(f"{folder}/joint", "train")
  digits = sj.data.load_digits(seed=0, num_train=300, num_minival=200).train
  assert len(joint) == 120
  decode = sj.data.Preprocess("")
  seen = {
    (joint.label(i), np.asarray(decode(joint[i]["image"])).tobytes())
    for i in range(120)
  }
  for task in run.PATCHING:
    source = sj.data.from_dataset(run.variant(digits, task), 10)
    assert {
      (source[i]["label"], source[i]["image"].tobytes()) for i in range(60)
    } <= seen


def test_the_shell_takes_the_commands(done, monkeypatch):
  """As the other tests call the tasks in one process."""
  workdir, (commands, _, _) = done
  lines = []
  monkeypatch.setattr(subprocess, "run", lambda line, check: lines.append(line))
  for config, path, flags, values in commands:
    run.soupjax(config, path, *flags, **values)
  assert [line[1:3] for line in lines] == [["-m", "soupjax.main"]] * len(lines)
  (sweep,) = (line for line in lines if line[-1] == "--sweep")
  assert f"--workdir={workdir}/models/diwa" in sweep
  (parallel,) = (line for line in lines if "search.py:paint_par" in str(line))
  monkeypatch.undo()
  shown = helpers.soupjax(*parallel[3:], "--dry_run")
  assert shown.returncode == 0, shown.stderr
  for task in (*run.PATCHING, *run.SUPPORTED):
    assert f"task {task}: " in shown.stdout


@pytest.mark.parametrize(
  "task,pixels,label",
  [
    ("upright", [[-1, 1], [0, 0.5]], 7),
    ("inverted", [[1, -1], [0, -0.5]], 7),
    ("rotated", [[1, 0.5], [-1, 0]], 7),
    ("rotated_inverted", [[-1, -0.5], [1, 0]], 7),
    ("mirrored", [[1, -1], [0.5, 0]], 7),
    ("parity", [[-1, 1], [0, 0.5]], 1),
  ],
)
def test_variants_by_hand(task, pixels, label):
  images = np.array([[[-1, 1], [0, 0.5]]], np.float32)[..., None]
  digits = sj.data.Dataset("digits/few", images, np.array([7], np.int32))
  turned = run.variant(digits, task)
  np.testing.assert_array_equal(turned.images[0, :, :, 0], pixels)
  assert turned.labels.tolist() == [label]
