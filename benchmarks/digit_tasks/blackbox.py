# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which optimiser for parallel patching? On real held-out scores.

pip install cma nevergrad
python benchmarks/digit_tasks/blackbox.py --workdir=runs/searches [--seeds=3]

Takes the models of finished runs of run.py in `workdir`, and searches the
coefficients of 2 and 4 tasks with 39 evaluations each, from the best equal
ones. Prints the gain over those in points of combined minival accuracy.
"""

import argparse
import logging
import pathlib
import warnings

import cma
import nevergrad
import numpy as np
import scipy.optimize
from tasks import DigitTasks, Settings

import soupjax as sj
from soupjax.soups.search import blackbox

BUDGET = 39
PATCHING = (
  ("rotated", "mirrored"),
  ("rotated", "mirrored", "rotated_inverted", "parity"),
)


class Spent(Exception):
  """The budget is gone."""


class Objective:
  """What is to be minimised, within the budget."""

  def __init__(self, value):
    self.value, self.left, self.best, self.seen = value, BUDGET, -np.inf, {}

  def __call__(self, x):
    at = tuple(np.round(np.clip(np.asarray(x, float), 0, 1), 4))
    if at not in self.seen:
      if self.left < 1:
        raise Spent
      self.left -= 1
      self.seen[at] = self.value(at)
      self.best = max(self.best, self.seen[at])
    return -self.seen[at]


def minimize(method, **options):
  def run(f, x0, seed):
    del seed
    box = [(0, 1)] * len(x0)
    scipy.optimize.minimize(f, x0, method=method, bounds=box, options=options)

  return run


def nevergrad_of(name):
  def run(f, x0, seed):
    p = nevergrad.p.Array(init=np.asarray(x0)).set_bounds(0, 1)
    p = p.set_mutation(sigma=0.25)
    p.random_state.seed(seed)
    nevergrad.optimizers.registry[name](p, budget=BUDGET).minimize(f)

  return run


def evolution(f, x0, seed):
  scipy.optimize.differential_evolution(
    f,
    [(0, 1)] * len(x0),
    x0=x0,
    popsize=-(-10 // len(x0)),
    seed=seed,
    polish=False,
    tol=0,
  )


def cma_es(f, x0, seed):
  options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9}
  cma.fmin(f, x0, 0.25, options={**options, "maxfevals": 3 * BUDGET})


def draw(f, x0, seed):
  rng = np.random.default_rng(seed)
  while True:
    f(rng.uniform(0, 1, len(x0)))


# Name -> optimiser, and whether it draws at random.
METHODS = {
  "ours (Nelder-Mead)": (
    lambda f, x0, seed: blackbox.maximize(lambda x: -f(x), x0, BUDGET),
    False,
  ),
  "COBYQA": (
    minimize(
      "COBYQA",
      initial_tr_radius=0.25,
      final_tr_radius=1e-3,
      maxfev=2 * BUDGET,
    ),
    False,
  ),
  "Powell": (minimize("Powell"), False),
  "DIRECT": (
    lambda f, x0, seed: scipy.optimize.direct(
      f, [(0, 1)] * len(x0), maxfun=3 * BUDGET
    ),
    False,
  ),
  "differential evolution": (evolution, True),
  "cma": (cma_es, True),
  "nevergrad NGOpt": (nevergrad_of("NGOpt"), True),
  "nevergrad OnePlusOne": (nevergrad_of("OnePlusOne"), True),
  "random": (draw, True),
}


def objective(lab, patching):
  """The combined accuracy on minival, by coefficients."""
  supported = [
    t for t in ("upright", "inverted", "parity") if t not in patching
  ]
  evaluate = lab.evaluator(lab.splits.minival, [*patching, *supported])
  blend = sj.search.Blend(
    lab.encoder, [lab.finetuned(task, [task]) for task in patching]
  )

  def value(x):
    scores = evaluate(blend(x))
    means = [np.mean([scores[t] for t in ts]) for ts in (patching, supported)]
    return float(np.mean(means))

  return value


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  warnings.filterwarnings("ignore")
  logging.disable(logging.CRITICAL)
  gains = {(name, len(p)): [] for name in METHODS for p in PATCHING}
  for seed in range(args.seeds):
    workdir = args.workdir.expanduser().absolute() / f"seed_{seed}"
    lab = DigitTasks(Settings(seed=seed), workdir)
    for patching in PATCHING:
      value = objective(lab, patching)
      equal = [[a] * len(patching) for a in np.linspace(0, 1, 11)]
      x0 = max(equal, key=value)
      for name, (method, is_random) in METHODS.items():
        for repetition in range(3 if is_random else 1):
          f = Objective(value)
          try:
            method(f, x0, repetition)
          except Spent:
            pass
          gain = max(0.0, f.best - value(x0))
          gains[name, len(patching)].append((seed, 100 * gain))
  for (name, size), pairs in gains.items():
    means = [
      np.mean([g for s, g in pairs if s == seed]) for seed in range(args.seeds)
    ]
    print(f"{name:<24} K = {size}: {np.mean(means):.2f}")


if __name__ == "__main__":
  main()
