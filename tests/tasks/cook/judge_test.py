# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A program of the user decides: configs/cook.py with evaluate_command."""

import dataclasses
import json
import pathlib
import shutil
import sys

import helpers
import msgpack
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.tasks.cook import export, judge
from soupjax.tasks.cook import run as cook

# A program that knows the file format and nothing of soupjax. It starts in
# 20 ms, and writes down what it was given.
PROGRAM = """
import json, os, struct, sys
path = sys.argv[1]
file = path + "/model.safetensors" if os.path.isdir(path) else path
with open(file, "rb") as f:
  header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
  start, stop = header["net.w"]["data_offsets"]
  f.seek(start, 1)
  w = struct.unpack("<3f", f.read(stop - start))
with open(sys.argv[2], "a") as log:
  log.write(path + " " + os.environ["SOUPJAX_EVALUATE_JOB"] + "\\n")
print("loading", path)
off = sum((x - y) ** 2 for x, y in zip(w, (0.3, 0.5, 0.1)))
print(json.dumps({"acc": 1 - off, "val_loss": off, "test": {"acc": w[0]}}))
"""
W = np.array(
  [[0.9, 0.2, 0.1], [0.1, 0.8, 0.0], [0.0, 0.2, 0.6], [0.4, 0.5, 0.3]], "f"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Checkpoints in folders with configs, a start, and a program."""
  folder = tmp_path_factory.mktemp("judged")
  for name, w in [
    *((f"runs/{k}", w) for k, w in enumerate(W)),
    ("start", W[0] / 2),
  ]:
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text('{"model_type": "mine"}')
    sj.save_params(
      folder / name / "model.safetensors",
      {"net.w": w, "net.steps": np.int64(7)},
    )
  (folder / "my eval.py").write_text(PROGRAM)
  return folder


def config_of(folder, log, **changes):
  command = f'{sys.executable} -I -S "{folder}/my eval.py" {{checkpoint}} {log}'
  values = {
    "ingredients": f"{folder}/runs/*",
    "initial": f"{folder}/start",
    "evaluate_command": command,
    "cook.metric": "acc,val_loss",
    "cook.wise_ft_points": 3,
    "cook.window": f"{folder}/runs/[012]",
  }
  return config_lib.load(helpers.COOK_CONFIG, **{**values, **changes})


@pytest.fixture(scope="module")
def cooked(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cooked") / "soups"
  cook.run(config_of(folder, f"{workdir}_log"), workdir)
  return workdir


def calls(log):
  return pathlib.Path(log).read_text().splitlines()


def score_of(w):
  return 1 - float(((w.astype("d") - (0.3, 0.5, 0.1)) ** 2).sum())


def test_the_command_decides(cooked):
  scores = helpers.result_values(cooked, "acc")
  for k, w in enumerate(W):
    assert scores[str(k), "command/minival"] == pytest.approx(score_of(w))
    assert scores[str(k), "command/test"] == pytest.approx(w[0])
  mean = scores["uniform", "command/minival"]
  assert mean == pytest.approx(score_of(W.mean(0)), abs=1e-6)
  order = sorted(range(4), key=lambda k: -score_of(W[k]))
  record = json.loads((cooked / "soups/greedy/greedy.json").read_text())
  assert [d["name"] for d in record["history"]] == list(map(str, order))
  selected, best = [], -np.inf
  for k in order:
    new = score_of(W[[*selected, k]].mean(0))
    if new >= best:
      selected, best = [*selected, k], new
  assert 1 < len(selected) < 4, "a soup of all or of one shows nothing"
  assert record["selected"] == list(map(str, selected))
  other = json.loads((cooked / "soups/greedy_val_loss/greedy.json").read_text())
  assert other["selected"] == record["selected"]  # Lower is better.
  page = (cooked / "report.html").read_text()
  assert "test/acc" in page and "Greedy soup by val_loss" in page


def test_soups_are_written_like_the_ingredients(cooked):
  soup = sj.open_ingredient(cooked / "export/uniform")
  assert list(soup.specs) == ["net.steps", "net.w"]
  np.testing.assert_allclose(soup.read("net.w"), W.mean(0), rtol=1e-6)
  assert soup.read("net.steps") == 7
  folder = cooked / "export/uniform"
  assert (folder / "config.json").read_text() == '{"model_type": "mine"}'
  assert "minival/acc" in (folder / "README.md").read_text()


def test_the_command_chooses_a_window(cooked):
  record = json.loads((cooked / "soups/window/window.json").read_text())
  expected = [score_of(W[[0, 1, 2][-n:]].mean(0)) for n in (1, 2, 3)]
  scores = [c["scores"]["score"] for c in record["history"]]
  assert scores == pytest.approx(expected, abs=1e-6)
  assert record["last"] == 1 + int(np.argmax(expected)) > 1
  found = helpers.result_values(cooked, "acc")["window", "command/minival"]
  assert found == pytest.approx(max(expected), abs=1e-6)
  page = (cooked / "report.html").read_text()
  assert f"Last {record['last']} of 3 checkpoints" in page
  assert "The last checkpoints of a run" in page
  assert (cooked / "export/window/model.safetensors").exists()


def test_nothing_is_judged_twice(folder, cooked, tmp_path):
  log, evaluations = f"{cooked}_log", cooked / "evaluations"
  given = calls(log)
  paths = [line.rpartition(" ")[0] for line in given]
  assert not any(pathlib.Path(path).exists() for path in paths)
  assert not (evaluations / "candidates").exists()
  # The ingredients; three candidates of both greedy soups; uniform, start and
  # middle; windows of two and three. WiSE-FT's ends and the greedy soups
  # themselves are known.
  scores = json.loads((evaluations / "scores.json").read_text())
  assert len(given) == len(set(paths)) == len(scores)
  assert len(given) == 4 + 3 + 3 + 2
  # As a kill leaves it, with the candidate of that moment.
  for path in ("results.jsonl", "metrics/greedy.json", "metrics/1.json"):
    (cooked / path).unlink()
  for path in ("soups/greedy", "export/greedy"):
    shutil.rmtree(cooked / path)
  (evaluations / "candidates/of_a_kill").mkdir(parents=True)
  limits = {"evaluate_timeout": 60.0, "evaluate_retries": 0}
  cook.run(config_of(folder, log, **limits), cooked)
  assert calls(log) == given
  assert (
    helpers.result_rows(cooked) and not (evaluations / "candidates").exists()
  )
  with pytest.raises(ValueError, match="another config"):
    cook.run(config_of(folder, log, **{"cook.metric": "acc"}), cooked)


def test_several_jobs_make_the_same_decisions(folder, cooked, tmp_path):
  workdir, log = tmp_path / "soups", tmp_path / "log"
  config = config_of(folder, log, evaluate_jobs=3)
  cook.run(config, workdir)
  assert {line.rpartition(" ")[2] for line in calls(log)} == {"0", "1", "2"}
  for name in ("results.jsonl", "soups/greedy/greedy.json"):
    assert (workdir / name).read_text() == (cooked / name).read_text()
  first = json.loads((cooked / "evaluations/scores.json").read_text())
  scores = json.loads((workdir / "evaluations/scores.json").read_text())
  assert first.items() <= scores.items()  # Some guesses were wrong.


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"evaluate_command": "python my_eval.py"}, "{checkpoint}"),
    ({"evaluate_command": "python 'x {checkpoint}"}, "No closing quotation"),
    ({"evaluate_command": "{checkpoint}"}, "{checkpoint}"),
    ({"evaluate_command": "nowhere.py {checkpoint}"}, "'nowhere.py'"),
    ({"evaluate_jobs": 0}, "evaluate_jobs"),
    ({"evaluate_timeout": -1.0}, "evaluate_timeout"),
    ({"evaluate_retries": -1}, "evaluate_retries"),
    ({"cook.metric": "test/acc"}, "'test/acc'"),
    ({"skip": "net"}, "skip"),
    ({"prefix": "net."}, "config.prefix"),
  ],
)
def test_bad_settings_are_errors_before_any_work(
  folder, tmp_path, changes, message
):
  config = config_of(folder, tmp_path / "log", **changes)
  with pytest.raises(ValueError, match=message):
    cook.run(config, tmp_path / "soups")
  assert not list(tmp_path.iterdir())


def test_a_metric_that_is_not_printed(folder, tmp_path):
  config = config_of(folder, tmp_path / "log", **{"cook.metric": "mAP"})
  message = "0: cook.metric='mAP' .*minival/acc, minival/val_loss, test/acc"
  with pytest.raises(ValueError, match=message):
    cook.run(config, tmp_path / "soups")
  assert len(calls(tmp_path / "log")) == 1


def test_dry_run_says_who_decides(folder, tmp_path, capsys):
  config = config_of(folder, tmp_path / "log")
  assert cook.run(config, None, dry_run=True) is None
  text = capsys.readouterr().out
  assert "acc (higher is better), greedy_val_loss by val_loss (lower" in text
  assert "no learned soups" in text and "model.safetensors" in text
  assert not list(tmp_path.iterdir())


def test_the_other_formats(tmp_path):
  params = {"a": {"w": W}, "b": np.ones(2, "f")}
  for name in ("x.npz", "x.pth", "x", "state.bin"):
    sj.save_params(tmp_path / name, params)
    original = sj.open_ingredient(tmp_path / name)
    path = export.write_like(original, params, tmp_path / f"{name}_soups")
    assert path.name == name
    copy = sj.open_ingredient(path)
    assert copy.specs == original.specs
    np.testing.assert_array_equal(copy.read("a/w"), W)
  bad = dataclasses.replace(original, path=str(tmp_path / "x.msgpack"))
  (tmp_path / "x.msgpack").write_bytes(msgpack.packb({"w": 1.0}))
  with pytest.raises(ValueError, match="x.msgpack"):
    export.layout(bad)


def test_turns_to_come():
  names = ["a", "b", "c", "d"]
  assert judge.frontier([], names, 3) == [("a",), ("a", "b"), ("a", "c")]
  history = [
    {"name": name, "accepted": name != "b"} for name in ("a", "b", "c")
  ]
  assert judge.frontier(history, names, 9) == [("a", "c", "d")]
