# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cooking from the shell: kills, damage and finished runs change no number."""

import json
import shutil

import helpers
import pytest

from soupjax import data
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import run as cook

CHANGES = {
  "cook.learned.steps": 4,
  "cook.learned.granularities": ("model", "layer"),
}


def arguments(sweep, workdir):
  overrides = {**helpers.COOK, **CHANGES}
  return [
    f"--config={helpers.COOK_CONFIG}:sweep={sweep}",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in overrides.items()),
  ]


def finish(sweep, workdir, *more, code=0):
  done = helpers.soupjax(*arguments(sweep, workdir), *more)
  assert done.returncode == code, done.stderr[-2000:]
  return done


def kill_when(sweep, workdir, pattern):
  helpers.kill_soupjax_when(workdir, pattern, *arguments(sweep, workdir))


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory):
  """One unbroken run: its directory and output."""
  workdir = tmp_path_factory.mktemp("resume") / "soups"
  return workdir, finish(sweep, workdir).stdout


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_results(sweep, whole, tmp_path):
  workdir = tmp_path / "soups"
  kill_when(sweep, workdir, "metrics/member_000.json")
  first = (workdir / "metrics/member_000.json").stat().st_mtime_ns
  kill_when(sweep, workdir, "greedy_trace.json")
  kill_when(sweep, workdir, "learned_model_state.json")
  # The narrowest place: learned, but not saved under the final name.
  kill_when(sweep, workdir, "soups/.learned_layer.tmp")
  kill_when(sweep, workdir, "metrics/wise_ft_0.50.json")
  assert not (workdir / "results.jsonl").exists()
  finish(sweep, workdir)
  assert (workdir / "metrics/member_000.json").stat().st_mtime_ns == first
  names = ["results.jsonl", "choices.json", "config.json"]
  names += [f"soups/{n}/greedy.json" for n in ("greedy", "greedy_loss")]
  names += [f"correct/{n}.npz" for n in ("greedy", "ensemble")]
  for name in names:
    again, expected = (w / name for w in (workdir, whole[0]))
    assert again.read_bytes() == expected.read_bytes(), name
  assert not [p for p in workdir.rglob("*") if ".tmp" in p.name]


def test_a_finished_run_prints_its_table_and_opens_nothing(
  sweep, whole, capsys, monkeypatch
):
  workdir, output = whole
  config = helpers.cook_config(sweep, **CHANGES)
  monkeypatch.setattr(data, "open_source", lambda *_, **__: pytest.fail("data"))
  stamps = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  assert cook.run(config, workdir) == workdir / "report.html"
  text = capsys.readouterr().out
  table = text[text.index("-----") : text.rindex("-----")]
  assert table in output and "Greedy soup by loss" in table
  assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_changed_files_are_noticed_by_a_finished_run(sweep, whole, tmp_path):
  workdir, moved = tmp_path / "soups", tmp_path / "sweep"
  shutil.copytree(sweep, moved, copy_function=shutil.copy)  # Other times.
  shutil.copytree(whole[0], workdir)
  record = workdir / "cooked_from.json"
  for path in (record, workdir / "config.json"):
    path.write_text(path.read_text().replace(str(sweep), str(moved)))
  values = json.loads(record.read_text())
  assert values["config"]["ingredients"].startswith(str(moved))
  # The times of the copies are not those of the record.
  with pytest.raises(ValueError, match="member_000 changed"):
    cook.run(helpers.cook_config(moved, **CHANGES), workdir)


def test_damaged_caches_are_made_again(sweep, whole, tmp_path):
  workdir = tmp_path / "soups"
  shutil.copytree(whole[0], workdir)
  expected = (workdir / "results.jsonl").read_bytes()
  logits = workdir / "logits" / "member_001.npz"
  logits.write_bytes(logits.read_bytes()[:1000])
  (workdir / "logits" / "member_002.npz").write_bytes(b"")
  # Whether each image was right: gone, cut off, and of another model.
  correct = workdir / "correct"
  (correct / "member_000.npz").unlink()
  cut = correct / "uniform.npz"
  cut.write_bytes(cut.read_bytes()[:200])
  shutil.copy(correct / "pretrained.npz", correct / "greedy.npz")
  (workdir / "results.jsonl").unlink()
  done = finish(sweep, workdir)
  assert (workdir / "results.jsonl").read_bytes() == expected
  for name in ("member_000", "uniform", "greedy"):
    assert f"{name}.npz is missing or damaged: {name} is" in done.stderr


def test_two_runs_do_not_share_a_directory(sweep, tmp_path):
  config = helpers.cook_config(sweep)
  workdir = tmp_path / "soups"
  workdir_lib.open_workdir(workdir, cook.inputs.open_inputs(config).config)
  with workdir_lib.locked(workdir):
    with pytest.raises(ValueError, match=str(workdir)):
      cook.run(config, workdir)


def test_other_directories_are_refused(sweep, tmp_path):
  config = helpers.cook_config(sweep)
  (tmp_path / "thesis.tex").write_text("")
  for path, culprit in (
    (tmp_path, "thesis.tex"),
    (tmp_path / "thesis.tex", "thesis.tex"),
    (tmp_path / "what?", r"what\?"),
  ):
    with pytest.raises(ValueError, match=culprit):
      cook.run(config, path)
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_errors_of_users_come_without_a_traceback(sweep, tmp_path):
  flag = "--config.cook.greedy.accept=best"
  result = finish(sweep, tmp_path / "soups", flag, code=1)
  assert "cook.greedy.accept" in result.stderr and "'best'" in result.stderr
  assert "Traceback" not in result.stderr
