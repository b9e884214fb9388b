# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A program of the user decides: configs/search.py with evaluate_command."""

import json
import pathlib
import shutil
import sys

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.report import figures, searches
from soupjax.tasks.search import run as search

CONFIG = str(helpers.ROOT / "configs" / "search.py")
# It starts in 20 ms, knows nothing of soupjax, and writes down each call.
PROGRAM = """
import json, os, struct, sys
with open(sys.argv[1], "rb") as f:
  header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
  start, stop = header["blocks.0.norm.w"]["data_offsets"]
  f.seek(start, 1)
  w = struct.unpack("<3f", f.read(stop - start))
with open(sys.argv[2], "a") as log:
  log.write(os.environ["SOUPJAX_EVALUATE_JOB"] + " " + sys.argv[1] + "\\n")
goals = {"a": (0.9, 0.1, 0.2), "b": (0.1, 0.8, 0.2), "control": (0.2, 0.2, 0.2)}
off = {t: sum((x - y) ** 2 for x, y in zip(w, g)) for t, g in goals.items()}
print(json.dumps({
  **{t: {"acc": 1 - d, "loss": d} for t, d in off.items()},
  "acc": 1 - off["a"], "loss": off["a"],
  "test": {t: {"acc": 1 - d / 2} for t, d in off.items()},
  "size": float("nan"),
}))
"""
GOALS = {"a": (0.9, 0.1, 0.2), "b": (0.1, 0.8, 0.2), "control": (0.2, 0.2, 0.2)}
START = np.array([0.2, 0.25, 0.1], "f")
W = {
  "a": np.array([1.2, 0.2, 0.3], "f"),
  "b": np.array([0.1, 0.8, 0.1], "f"),
  "c": np.array([0.6, 0.2, 0.2], "f"),
}
TASKS = "a=a/acc,b=b/acc,control=control/acc"


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
  """Draws at a low resolution, which is fast."""
  for module in (figures, searches):
    monkeypatch.setattr(module, "DPI", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Checkpoints with two layers, a start, and a program."""
  folder = tmp_path_factory.mktemp("judged search")
  (folder / "tuned").mkdir()
  models = {"start": START, **{f"tuned/{name}": w for name, w in W.items()}}
  for name, w in models.items():
    leaves = {f"blocks.{k}.norm.w": w + k for k in range(2)}
    leaves["steps"] = np.int64(7)
    sj.save_params(folder / f"{name}.safetensors", leaves)
  sj.save_params(folder / "flat.npz", {"w": START, "v": START})
  (folder / "my eval.py").write_text(PROGRAM)
  return folder


def config_of(folder, log, method="addition", **changes):
  python = f"{sys.executable} -I -S"
  values = {
    "ingredients": f"{folder}/tuned/[ab].safetensors",
    "initial": f"{folder}/start.safetensors",
    "evaluate_command": f'{python} "{folder}/my eval.py" {{checkpoint}} {log}',
    "tasks": TASKS,
    "search.points": 5,
  }
  if method not in ("addition", "wise_ft", "paint_sequential", "negation"):
    del values["search.points"]
  return config_lib.load(CONFIG, method, **{**values, **changes})


def score(w, task):
  return 1 - float(((np.asarray(w, "d") - GOALS[task]) ** 2).sum())


def mean_score(w):
  return np.mean([score(w, task) for task in GOALS])


def record_of(workdir):
  return json.loads((workdir / "search.json").read_text())


def calls(log):
  return pathlib.Path(log).read_text().splitlines()


def weights(path):
  return np.asarray(sj.open_ingredient(path).read("blocks.0.norm.w"))


@pytest.fixture(scope="module")
def added(folder, tmp_path_factory):
  """The directory of task addition from the shell, and its output."""
  workdir = tmp_path_factory.mktemp("added") / "run"
  config = config_of(folder, f"{workdir}_log")
  done = helpers.soupjax(
    f"--config={CONFIG}:addition",
    f"--workdir={workdir}",
    *(
      f"--config.{key}={config[key]}"
      for key in ("ingredients", "initial", "evaluate_command")
    ),
    f"--config.tasks={TASKS}",
    "--config.search.points=5",
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return workdir, done.stdout


def test_the_command_decides(folder, added):
  workdir, printed = added
  record = record_of(workdir)
  scales = np.linspace(0, 1, 5)
  models = [START + s * (W["a"] + W["b"] - 2 * START) for s in scales]
  history = record["searches"]["addition"]
  assert [c["coefficients"] for c in history] == [[s] for s in scales]
  for candidate, w in zip(history, models):
    for task in GOALS:
      assert candidate["scores"][task] == pytest.approx(
        score(w, task), abs=1e-6
      )
  best = max(range(5), key=lambda k: mean_score(models[k]))
  assert 0 < best < 4 and history[best]["chosen"]
  tables = {t["title"]: t["rows"] for t in record["tables"]}
  minival = tables["Metrics on minival, where the choice was made"]
  expected = [score(models[best], task) for task in GOALS]
  expected.append(np.mean(expected))
  np.testing.assert_allclose(minival["chosen"], expected, rtol=1e-5)
  test = tables["Metrics on test"]
  np.testing.assert_allclose(
    test["a.safetensors"][0], (1 + score(W["a"], "a")) / 2
  )
  change = tables["Change from the initial model on test"]
  assert change["chosen"] == [
    a - b for a, b in zip(test["chosen"][:3], test["pretrained"][:3])
  ]
  shown = f"{minival['chosen'][0]:.4g}"
  assert shown in printed and record["summary"] in printed
  page = (workdir / "report.html").read_text()
  assert "Metrics on test" in page and "<svg" in page
  chosen = sj.open_ingredient(workdir / "export/chosen/a.safetensors")
  assert {*chosen.specs} == {"blocks.0.norm.w", "blocks.1.norm.w", "steps"}
  np.testing.assert_allclose(
    weights(workdir / "export/chosen/a.safetensors"), models[best], rtol=1e-6
  )
  for path in ("chosen", "export/chosen/a.safetensors"):
    assert sj.provenance(workdir / path)["search"] == "addition"


def test_nothing_is_judged_twice(folder, added, tmp_path):
  before, _ = added
  log = f"{before}_log"
  given = calls(log)
  # The start, two ingredients and four scales; the chosen model is known.
  assert len(given) == len(set(given)) == 1 + 2 + 4
  assert not any(pathlib.Path(line[2:]).exists() for line in given)
  workdir = tmp_path / "run"
  shutil.copytree(before, workdir, copy_function=shutil.copy2)
  results = {
    name: (workdir / name).read_bytes()
    for name in ("search.json", "results.jsonl")
  }
  # As a kill leaves it after the command has scored the third candidate.
  for name in results:
    (workdir / name).unlink()
  path = workdir / "candidates/addition.json"
  path.write_text(json.dumps(json.loads(path.read_text())[:2]))
  (workdir / "metrics/chosen.json").unlink()
  for path in ("chosen", "export"):
    shutil.rmtree(workdir / path)
  (workdir / "evaluations/candidates/of_a_kill").mkdir(parents=True)
  search.run(config_of(folder, log, evaluate_timeout=60.0), workdir)
  assert calls(log) == given
  assert results == {name: (workdir / name).read_bytes() for name in results}
  assert not (workdir / "evaluations/candidates").exists()


def test_several_jobs_make_the_same_choice(folder, added, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  search.run(config_of(folder, log, evaluate_jobs=3), workdir)
  for name in ("search.json", "results.jsonl"):
    assert (workdir / name).read_text() == (added[0] / name).read_text()
  jobs = [line.partition(" ")[0] for line in calls(log)]
  assert {*jobs[:3]} == {*jobs[3:]} == {"0", "1", "2"}
  assert len(jobs) == len(calls(f"{added[0]}_log"))


def test_one_task_of_which_lower_is_better(folder, tmp_path):
  config = config_of(
    folder, tmp_path / "log", "wise_ft", tasks="photos=loss:test=b/acc"
  )
  search.run(config, tmp_path / "run")
  record = record_of(tmp_path / "run")
  models = [START + t * (W["a"] - START) for t in np.linspace(0, 1, 5)]
  losses = [1 - score(w, "a") for w in models]
  history = record["searches"]["wise_ft"]
  np.testing.assert_allclose([-c["value"] for c in history], losses, rtol=1e-5)
  best = int(np.argmin(losses))
  assert history[best]["chosen"] and 0 < best < 4
  test, minival = record["tables"]
  assert minival["columns"] == ["photos"]
  np.testing.assert_allclose(minival["rows"]["chosen"], [losses[best]], 1e-5)
  expected = [score(models[best], "b")]
  np.testing.assert_allclose(test["rows"]["chosen"], expected, rtol=1e-5)


def test_a_greedy_soup_looks_ahead(folder, tmp_path):
  records = []
  for jobs in (1, 3):
    log, workdir = tmp_path / f"log{jobs}", tmp_path / f"run{jobs}"
    changes = {"ingredients": f"{folder}/tuned/*", "evaluate_jobs": jobs}
    search.run(config_of(folder, log, "diwa", **changes), workdir)
    records.append(record_of(workdir))
    assert len(calls(log)) == len(set(calls(log)))
  assert records[0] == records[1]
  order = sorted(W, key=lambda name: -mean_score(W[name]))
  selected, best = [], -np.inf
  for name in order:
    new = mean_score(np.mean([W[n] for n in [*selected, name]], axis=0))
    if new >= best:
      selected, best = [*selected, name], new
  names = [name.removesuffix(".safetensors") for name in _selected(records[0])]
  assert names == selected and 1 < len(selected) < len(W)


def _selected(record):
  return record["greedy"]["greedy"]["selected"]


def test_the_start_of_the_next_patching_task(folder, tmp_path):
  changes = {
    "ingredients": f"{folder}/tuned/a.safetensors",
    "search.patching": "a+b",
  }
  config = config_of(folder, tmp_path / "log", "paint_sequential", **changes)
  search.run(config, tmp_path / "run")
  summary = record_of(tmp_path / "run")["summary"]
  start = tmp_path / "run/stages/b/a.safetensors"
  assert f"fine-tune on b from {start}, and search again" in summary
  chosen = weights(tmp_path / "run/export/chosen/a.safetensors")
  np.testing.assert_array_equal(weights(start), chosen)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"tasks": ""}, "tasks must .*NAME=METRIC"),
    ({"tasks": "a=test/a/acc"}, "tasks.a='test/a/acc'"),
    ({"tasks": "a=a/acc,b=a/acc"}, "tasks.a and tasks.b .*a/acc"),
    ({"tasks": "a=acc,b=minival/acc"}, "tasks.a and tasks.b .*acc"),
    ({"tasks": "a=a/acc,b=b/acc:test=a/acc"}, "tasks.b: test='a/acc'"),
    ({"tasks": "a=a/acc,b=b/loss"}, "'b/loss'.*'a/acc'"),
    ({"tasks": "a=a/acc:head=own"}, "'head' is not"),
    ({"tasks": "a=a/acc:model=x"}, "tasks.a: model='x'"),
    ({"tasks": "mean=a/acc"}, "tasks.mean"),
    ({"cook.metric": "acc"}, "tasks=NAME=acc"),
    ({"evaluate_command": "python my_eval.py"}, "{checkpoint}"),
    ({"evaluate_jobs": 0}, "evaluate_jobs"),
    ({"method": "signed"}, "'signed' .*gradients"),
    ({"method": "entropy"}, "'entropy' .*gradients"),
    (
      {"method": "negation", "search.control": "a", "search.forget": "a"},
      "'a' is both a control",
    ),
    (
      {"method": "negation", "search.control": "b", "tasks": "a=a/loss,b=loss"},
      "metric='a/loss'",
    ),
    ({"method": "depth", "search.budget": 3}, "budget=3"),
    ({"method": "depth", "initial": "flat", "ingredients": "flat"}, "layers"),
    (
      {"method": "paint", "search.patching": "a", "search.supported": "a"},
      "'a' is both a control",
    ),
  ],
)
def test_errors_before_any_work(folder, tmp_path, changes, message):
  method = changes.pop("method", "addition")
  flat = {k: f"{folder}/{v}.npz" for k, v in changes.items() if v == "flat"}
  config = config_of(folder, tmp_path / "log", method, **{**changes, **flat})
  with pytest.raises(ValueError, match=message):
    search.run(config, tmp_path / "run")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "task, message",
  [
    ("a/mAP", "pretrained: tasks.a='a/mAP' .*: a/acc, a/loss, b/acc"),
    ("size", "pretrained: .*nan for minival/size"),
    ("a/acc:test=a/mAP", "pretrained: tasks.a: test='a/mAP' .*a/acc"),
  ],
)
def test_a_metric_that_is_missing(folder, tmp_path, task, message):
  config = config_of(folder, tmp_path / "log", tasks=f"a={task}")
  with pytest.raises(ValueError, match=message):
    search.run(config, tmp_path / "run")
  assert len(calls(tmp_path / "log")) == 1


def test_dry_run_says_who_decides(folder, tmp_path, capsys):
  config = config_of(folder, tmp_path / "log")
  assert search.run(config, None, dry_run=True) is None
  text = capsys.readouterr().out
  assert "task a: chosen by a/acc (higher is better); test test/a/acc" in text
  assert "fine-tuned: b.safetensors" in text
  assert "commands: at most 9," in text  # Start, 2 ingredients, result, grid.
  assert not list(tmp_path.iterdir())
