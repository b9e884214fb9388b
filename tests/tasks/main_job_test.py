# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The three commands of the main job, shrunk: kills change no result."""

import json
import pathlib

import helpers
import pytest

DIGITS = f"--config={helpers.DIGITS}"
SHORT = (
  *("--config.model.depth=1", "--config.steps_per_call=5"),
  "--config.checkpoint=5steps",
)
# The sets that models are evaluated on, besides minival.
TESTS = ("test", "noise", "new_writers")


def commands(workdir: pathlib.Path) -> dict[str, list[str]]:
  base, sweep = workdir / "pretrained", workdir / "sweep"
  return {
    "pretrain": [
      *(f"{DIGITS}:pretrain,runlocal", f"--workdir={base}", *SHORT),
      "--config.hyper.total=40steps",
    ],
    "sweep": [
      *(f"{DIGITS}:runlocal", f"--workdir={sweep}", *SHORT, "--sweep"),
      f"--config.init.path={base / 'ingredients' / 'last'}",
    ],
    "cook": [
      f"--config={helpers.COOK_CONFIG}:sweep={sweep}",
      f"--workdir={workdir / 'soups'}",
      f"--config.tests={','.join(f'{name}={name}' for name in TESTS)}",
      *("--config.cook.learned.steps=3", "--config.cook.wise_ft_points=3"),
    ],
  }


def finish(arguments) -> None:
  done = helpers.soupjax(*arguments)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """One unbroken run of the three commands."""
  workdir = tmp_path_factory.mktemp("unbroken")
  for arguments in commands(workdir).values():
    finish(arguments)
  return workdir


# Each command is killed in the middle of two of its stages. Trained for some
# steps, and to the end but not saved under the final name; one member trained,
# and a part of the next; one model evaluated, and one soup made.
KILLS = {
  "pretrain": ("pretrained/state_*", "pretrained/ingredients/.last.tmp"),
  "sweep": ("sweep/member_000/ingredients/last", "sweep/member_001/state_*"),
  "cook": ("soups/metrics/*.json", "soups/soups/uniform"),
}


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_results(done, tmp_path):
  workdir = tmp_path / "killed"
  for name, arguments in commands(workdir).items():
    for pattern in KILLS[name]:
      if not any(workdir.glob(pattern)):
        helpers.kill_soupjax_when(workdir, pattern, *arguments)
    finish(arguments)
  expected = (done / "soups" / "results.jsonl").read_bytes()
  assert (workdir / "soups" / "results.jsonl").read_bytes() == expected
  assert not [p for p in workdir.rglob("*tmp*") if p.is_dir()]


@pytest.mark.slow
def test_every_model_is_evaluated_on_everything(done):
  lines = (done / "soups" / "results.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  kinds = {row["model"]: row["kind"] for row in rows}
  assert kinds == {
    "pretrained": "pretrained",
    **dict.fromkeys(("member_000", "member_001"), "ingredient"),
    **dict.fromkeys(("uniform", "greedy", "learned_layer", "wise_ft"), "soup"),
    **dict.fromkeys(("ensemble", "greedy_ensemble"), "ensemble"),
    **{f"wise_ft_{a}": "interpolation" for a in ("0.00", "0.50", "1.00")},
  }
  sizes = {row["dataset"].rpartition("/")[2]: row["n"] for row in rows}
  assert sizes == {
    "minival": 300,
    "test": 898,
    "noise": 898,
    "new_writers": 504,
    "shifts": 898 + 504,
  }
  metrics = {row["metric"] for row in rows if "/test" in row["dataset"]}
  assert metrics == {"prec@1", "loss", "ece", "ece_t", "loss_t"}
  # A temperature on minival; the mean over shifts, but not of the best.
  each = (len(sizes) - 1) * len(metrics) + 1
  assert len(rows) == len(kinds) * each + len(kinds) - 1


@pytest.mark.slow
def test_a_finished_run_does_nothing_again(done):
  stamps = {
    path: path.stat().st_mtime_ns
    for path in done.rglob("*")
    if path.is_file() and "lock" not in path.name
  }
  for arguments in commands(done).values():
    finish(arguments)
  assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
