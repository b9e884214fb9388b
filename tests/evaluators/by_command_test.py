# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates that a command evaluates, each once, several at a time."""

import pathlib
import time

import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.evaluators import by_command, command


def write(params, directory):
  sj.save_params(directory / "w.npz", params)
  return directory / "w.npz"


def evaluator(tmp_path, script, **settings):
  (tmp_path / "eval.sh").write_text(script)
  made = command.Command(
    text=f"sh {tmp_path}/eval.sh {{checkpoint}} {tmp_path}", retries=0
  )
  settings = {"metric": "acc", **settings}
  return by_command.CommandEvaluator(made, write, tmp_path / "out", **settings)


COUNT = """echo x >> $2/log; echo "{\\"acc\\": 0.5, \\"loss\\": 2}" """


def calls(tmp_path):
  log = tmp_path / "log"
  return len(log.read_text().split()) if log.exists() else 0


def test_the_digest_sees_names_shapes_dtypes_and_bits():
  trees = [
    {"w": np.zeros(2, "f")}, {"v": np.zeros(2, "f")}, {"w": np.zeros(2, "i4")},
    {"w": np.zeros((2, 1), "f")}, {"w": np.array([0, -0.0], "f")},
    {"w": jnp.zeros(2, jnp.bfloat16)}, {"w": np.float32(0)},
  ]  # fmt: skip
  assert len(set(map(by_command.weights_digest, trees))) == len(trees)
  same = by_command.weights_digest({"w": jnp.zeros(2)})
  assert same == by_command.weights_digest(trees[0])


def test_scores_are_remembered(tmp_path):
  with evaluator(tmp_path, COUNT) as evaluate:
    assert evaluate({"w": np.ones(2)}) == 0.5
    loss = evaluate.for_metric("loss", lower_is_better=True)
    assert loss({"w": np.ones(2)}) == -2
    assert evaluate.count == calls(tmp_path) == 1
    assert evaluate({"w": np.zeros(2)}) == 0.5
  with evaluator(tmp_path, COUNT) as evaluate:
    assert evaluate({"w": np.ones(2)}) == 0.5
  assert calls(tmp_path) == 2


@pytest.mark.parametrize("first", ['{"acc": NaN}', '{"top1": 0.5}'])
def test_a_score_that_cannot_decide_is_made_again(tmp_path, first):
  with evaluator(tmp_path, f"echo '{first}'") as evaluate:
    with pytest.raises(ValueError, match="acc"):
      evaluate({"w": np.ones(2)})
  with evaluator(tmp_path, COUNT) as evaluate:
    assert evaluate({"w": np.ones(2)}) == 0.5
  with evaluator(tmp_path, COUNT, also=["f1"]) as evaluate:
    evaluate({"w": np.ones(2)})
  assert calls(tmp_path) == 2


def test_a_program_that_changes_the_checkpoint(tmp_path):
  for script in ("echo >> $1", "rm $1", "mv $1 $1.x; cp $1.x $1"):
    with evaluator(tmp_path, f"{script}; {COUNT}") as evaluate:
      with pytest.raises(ValueError, match="changed .*: w.npz of mine"):
        evaluate.scores({"w": np.ones(2)}, "mine")
  with evaluator(tmp_path, f"touch $1.cache; {COUNT}") as evaluate:
    assert evaluate({"w": np.ones(2)}) == 0.5  # New files are its own matter.


def test_guesses_run_beside_and_end_when_they_are_not_needed(tmp_path):
  script = f"""
echo $1 $SOUPJAX_EVALUATE_JOB >> $2/started
case $1 in *slow*) sleep 60;; esac
{COUNT}"""
  w = {"w": np.ones(2)}
  with evaluator(tmp_path, script, jobs=2) as evaluate:
    evaluate.ahead(
      {"slow": lambda: {"w": np.zeros(2)}, "quick": lambda: dict(w)}
    )
    assert evaluate.scores(w, "quick")["minival/acc"] == 0.5
    assert calls(tmp_path) == 1
    while "slow" not in (tmp_path / "started").read_text():
      time.sleep(0.01)
    evaluate.ahead({})
    # The same weights again, which are now needed.
    assert evaluate({"w": np.zeros(2)}) == 0.5
    began = time.monotonic()
    evaluate.ahead({"slow": lambda: {"w": np.full(2, 2.0)}})
  assert time.monotonic() - began < 30  # Left at once.
  assert not list(pathlib.Path(tmp_path, "out").glob("candidates"))


def test_an_error_of_a_guess_comes_when_it_is_needed(tmp_path):
  with evaluator(tmp_path, "exit 4", jobs=2) as evaluate:
    evaluate.ahead({"a": lambda: {"w": np.ones(2)}})
    evaluate.ahead({})
    with pytest.raises(ValueError, match="ended with exit code 4"):
      evaluate({"w": np.ones(2)})
