# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Measures the images that greedy soups evaluate, and their overhead in time.

python benchmarks/greedy.py --workdir=runs/greedy --sweep=runs/sweep

There are two settings, with ingredients on disk. "digits": a finished sweep of
configs/finetune/digits.py (`--sweep`) and its 300 held-out images. "synthetic":
noisy copies of a wide network on 8,192 held-out images; the best copy is right
on five of eight images. Each is cooked with and without early rejection, in
turns; figures are medians over rounds. Pure evaluation time is that of the
evaluator once a candidate's weights are on the device; "alone" is the time of
the same calls with nothing in between. Writes results/greedy.json. Takes about
ten minutes on 2 cores.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

import soupjax as sj
from soupjax import config as config_lib
from soupjax.evaluators import Evaluator
from soupjax.tasks.cook import evaluate, inputs, soups

HERE = pathlib.Path(__file__).parent


class Timed:
  """Measures an evaluator's seconds, once the weights are on the device."""

  mode = "max"

  def __init__(self, evaluator: Evaluator, calls: list | None = None):
    # `calls` keeps all candidates in memory, so it is None in timed runs.
    self.evaluator, self.seconds, self.calls = evaluator, 0.0, calls

  def _time(self, name, *args):
    jax.block_until_ready(args)
    began = time.perf_counter()
    result = getattr(self.evaluator, name)(*args)
    self.seconds += time.perf_counter() - began
    self._note(name, *args)
    return result

  def _note(self, *call):
    if self.calls is not None:
      self.calls.append(call)

  def __call__(self, params):
    return self._time("__call__", params)

  def evaluate_until(self, params, can_reach):
    return self._time("evaluate_until", params, can_reach)

  def set_incumbent(self):
    self.evaluator.set_incumbent()
    self._note("set_incumbent")


def alone(evaluator: Evaluator, calls: list[tuple]) -> float:
  """Returns the seconds of recorded calls with nothing in between."""
  began = time.perf_counter()
  for name, *args in calls:
    getattr(evaluator, name)(*args)
  return time.perf_counter() - began


def digits(sweep: pathlib.Path, workdir: pathlib.Path):
  """Returns the ranked ingredients of a sweep on digits, and an evaluator.

  Args:
    sweep: workdir of a finished sweep of configs/finetune/digits.py.
    workdir: directory for cached evaluations.

  Returns:
    The ingredients, best first, and a function that makes an evaluator on the
    300 held-out images.
  """
  path = str(HERE.parent / "configs" / "cook.py")
  config = config_lib.load(path, f"sweep={sweep}", **{"tests": {}})
  opened = inputs.open_inputs(config)
  evaluations = evaluate.Evaluations(opened, workdir)
  ingredients = []
  workdir.mkdir(parents=True, exist_ok=True)
  for ingredient in opened.ingredients:
    values = evaluations.evaluate(ingredient.name, ingredient.load)["minival"]
    metrics = {f"minival/{k}": v for k, v in values.items()}
    ingredients.append(dataclasses.replace(ingredient, metrics=metrics))
  minival = evaluations.minival("prec@1")
  images, labels = minival.examples()

  def evaluator():
    return Evaluator.from_arrays(opened.model, images, labels, batch_size=10)

  return soups.ranked(ingredients), evaluator


def synthetic(directory: pathlib.Path, count: int = 16, seed: int = 0):
  """Writes noisy copies of one network: 1024 -> 2048 -> 2048 -> 100 classes.

  Returns:
    The ingredients, best first, and a function that makes an evaluator on
    8,192 images.
  """
  rng = np.random.default_rng(seed)
  prototypes = rng.normal(size=(100, 1024)).astype("f")

  def draw(n):
    labels = rng.integers(0, 100, n)
    noise = 7.5 * rng.normal(size=(n, 1024))
    return (prototypes[labels] + noise).astype("f"), labels

  def features(params, x):
    for name in ("hidden_0", "hidden_1"):
      x = jnp.tanh(x @ params[name])
    return x

  def predict(params, x):
    return features(params, x) @ params["head"]

  params = {
    "hidden_0": 0.1 * rng.normal(size=(1024, 2048)).astype("f") / 32,
    "hidden_1": rng.normal(size=(2048, 2048)).astype("f") / 45,
  }
  # Ridge regression fits the head, so that the network is accurate.
  x, labels = draw(16_384)
  f = np.asarray(jax.jit(features)(params, x), np.float64)
  gram = f.T @ f
  gram += 0.3 * np.trace(gram) / len(gram) * np.eye(len(gram))
  params["head"] = np.linalg.solve(gram, f.T @ np.eye(100)[labels]).astype("f")
  x, labels = draw(8_192)

  def evaluator():
    return Evaluator.from_arrays(predict, x, labels, batch_size=256)

  directory.mkdir(parents=True, exist_ok=True)
  whole = evaluator()
  ingredients = []
  for k, size in enumerate(np.exp(rng.uniform(*np.log([0.1, 1.5]), count))):
    noisy = {
      name: leaf + (size * leaf.std() * rng.normal(size=leaf.shape)).astype("f")
      for name, leaf in params.items()
    }
    path = directory / f"m{k:02d}.safetensors"
    path.unlink(missing_ok=True)
    sj.save_params(path, noisy)
    opened = sj.open_ingredient(path)
    opened.metrics["val"] = whole(noisy)
    ingredients.append(opened)
  return sj.rank_by(ingredients, "val"), evaluator


def measure(
  ingredients, make_evaluator, rounds: int, by_itself: bool = True
) -> dict:
  """Cooks with and without early rejection.

  Args:
    ingredients: best first.
    make_evaluator: makes a new evaluator.
    rounds: number of timed rounds, after one that compiles.
    by_itself: whether to also time the evaluations with nothing in between.

  Returns:
    Figure -> value; times are medians over rounds.
  """
  runs = {True: [], False: []}
  for k in range(rounds + 1):  # The first compiles.
    for early in (True, False):
      timed = Timed(make_evaluator())
      began = time.perf_counter()
      soup = sj.greedy_soup(ingredients, timed, early_reject=early)
      wall = time.perf_counter() - began
      if k:
        runs[early].append((wall, timed.seconds))
      if early:
        first = soup
      else:
        same = [(d.name, d.accepted, d.bar, d.size) for d in soup.history]
        assert same == [
          (d.name, d.accepted, d.bar, d.size) for d in first.history
        ]
        jax.tree.map(np.testing.assert_array_equal, soup.params, first.params)
  rejected = [d.evaluated for d in first.history if not d.accepted]
  found = {
    "images": make_evaluator().totals(ingredients[0].load())["n"],
    "best single": first.history[0].score,
    "soup": first.score,
    "candidates": len(first.history),
    "rejected": len(rejected),
    "evaluated, rejected": float(np.mean(rejected)) if rejected else None,
    "evaluated, all": float(np.mean([d.evaluated for d in first.history])),
    "MB an ingredient": ingredients[0].num_bytes / 1e6,
  }
  for early, name in ((True, "early"), (False, "full")):
    walls, pure = np.array(runs[early]).T
    found[f"{name}: wall s"] = float(np.median(walls))
    found[f"{name}: evaluation s"] = float(np.median(pure))
    found[f"{name}: wall / evaluation"] = float(np.median(walls / pure))
    if not by_itself:
      continue
    calls = []
    sj.greedy_soup(
      ingredients, Timed(make_evaluator(), calls), early_reject=early
    )
    seconds = np.median([alone(make_evaluator(), calls) for _ in range(rounds)])
    found[f"{name}: evaluation alone s"] = float(seconds)
    found[f"{name}: wall / alone"] = float(np.median(walls / seconds))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--sweep", type=pathlib.Path, required=True)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  settings = {
    "digits": digits(args.sweep, args.workdir / "digits"),
    "synthetic": synthetic(args.workdir / "synthetic"),
  }
  record = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "rounds": args.rounds,
  }
  for name, (ingredients, make_evaluator) in settings.items():
    record[name] = measure(ingredients, make_evaluator, args.rounds)
    print(name)
    for key, value in record[name].items():
      shown = f"{value:.4g}" if isinstance(value, float) else value
      print(f"  {key:<28} {shown}")
  results = HERE / "results" / "greedy.json"
  results.parent.mkdir(exist_ok=True)
  results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
