# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares optimisers for parallel patching on real held-out scores.

pip install cma nevergrad
python benchmarks/digit_tasks/blackbox.py --workdir=runs/searches [--seeds=3]

Takes the models of finished runs of run.py in --workdir, and searches the
coefficients of 2 and of 4 tasks with 39 evaluations each, starting from the
best equal coefficients. Prints the gain over these in points of combined
minival accuracy.

Models are scored as in `config.task="search"`, which has a single optimiser.
The others are only here, since none is clearly better.
"""

import argparse
import logging
import pathlib
import warnings

import cma
import nevergrad
import numpy as np
from run import PATCHING, SEARCH, SUPPORTED, Lab
import scipy.optimize

import soupjax as sj
from soupjax import config as config_lib
from soupjax.soups.search import blackbox
from soupjax.tasks.cook import evaluate
from soupjax.tasks.search import frozen_heads
from soupjax.tasks.search import inputs as inputs_lib
from soupjax.tasks.search.work import Work

BUDGET = 39
SETS = PATCHING, [*PATCHING, "rotated_inverted", "parity"]


class Spent(Exception):
  """The budget of evaluations is spent."""


class Objective:
  """A function to be minimised, which raises `Spent` after `BUDGET` points.

  Attributes:
    value: the function to be maximised, whose negative is returned.
    best: the largest value so far.
    seen: point, clipped to [0, 1] and rounded to four digits -> value.
  """

  def __init__(self, value):
    self.value, self.best, self.seen = value, -np.inf, {}

  def __call__(self, x):
    at = tuple(np.round(np.clip(np.asarray(x, float), 0, 1), 4))
    if at not in self.seen:
      if len(self.seen) == BUDGET:
        raise Spent
      self.seen[at] = self.value(at)
      self.best = max(self.best, self.seen[at])
    return -self.seen[at]


def box(x0):
  return [(0, 1)] * len(x0)


def scipy_of(method, **options):
  return lambda f, x0, seed: scipy.optimize.minimize(
    f, x0, method=method, bounds=box(x0), options=options
  )


def nevergrad_of(name):
  def run(f, x0, seed):
    p = nevergrad.p.Array(init=np.asarray(x0)).set_bounds(0, 1)
    p = p.set_mutation(sigma=0.25)
    p.random_state.seed(seed)
    nevergrad.optimizers.registry[name](p, budget=BUDGET).minimize(f)

  return run


def cma_es(f, x0, seed):
  options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9}
  cma.fmin(f, x0, 0.25, options={**options, "maxfevals": 3 * BUDGET})


def draw(f, x0, seed):
  rng = np.random.default_rng(seed)
  while True:
    f(rng.uniform(0, 1, len(x0)))


# Name -> optimiser; those in RANDOM depend on a seed.
FIXED = {
  "ours (Nelder-Mead)": lambda f, x0, seed: blackbox.maximize(
    lambda x: -f(x), x0, BUDGET
  ),
  "COBYQA": scipy_of(
    "COBYQA", initial_tr_radius=0.25, final_tr_radius=1e-3, maxfev=2 * BUDGET
  ),
  "Powell": scipy_of("Powell"),
  "DIRECT": lambda f, x0, seed: scipy.optimize.direct(
    f, box(x0), maxfun=3 * BUDGET
  ),
}
RANDOM = {
  "differential evolution": lambda f, x0, seed: (
    scipy.optimize.differential_evolution(
      *(f, box(x0)),
      **{"x0": x0, "popsize": -(-10 // len(x0)), "seed": seed},
      **{"polish": False, "tol": 0},
    )
  ),
  "cma": cma_es,
  "nevergrad NGOpt": nevergrad_of("NGOpt"),
  "nevergrad OnePlusOne": nevergrad_of("OnePlusOne"),
  "random": draw,
}


def objective(lab, patching):
  """Returns a function from coefficients to the combined minival accuracy."""
  supported = [task for task in SUPPORTED if task not in patching]
  values = lab.inputs(patching, [*patching, *supported])
  config = config_lib.load(str(SEARCH), "paint_parallel", **values)
  inputs = inputs_lib.open_inputs(config)
  frozen_heads.make_heads(inputs, None)
  folder = lab.workdir / "blackbox"
  work = Work(inputs, folder, 0, evaluate.Evaluations(inputs, folder))
  models = [inputs.of_task(task) for task in patching]
  blend = sj.search.Blend(inputs.initial, models, **work.reading(models))

  def value(x):
    scores = work.scores(blend(x))
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
  gains = {(name, k): [] for name in {**FIXED, **RANDOM} for k in (0, 1)}
  for seed in range(args.seeds):
    lab = Lab(args.workdir.expanduser().absolute() / f"seed_{seed}", seed)
    for k, patching in enumerate(SETS):
      value = objective(lab, patching)
      equal = [[a] * len(patching) for a in np.linspace(0, 1, 11)]
      x0 = max(equal, key=value)
      for name, method in {**FIXED, **RANDOM}.items():
        for repetition in range(3 if name in RANDOM else 1):
          f = Objective(value)
          try:
            method(f, x0, repetition)
          except Spent:
            pass
          gain = max(0.0, f.best - value(x0))
          # The same weight for every seed.
          gains[name, k] += [100 * gain] * (1 if name in RANDOM else 3)
  for (name, k), values in gains.items():
    print(f"{name:<24} K = {len(SETS[k])}: {np.mean(values):.2f}")


if __name__ == "__main__":
  main()
