# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes that cook a greedy soup; not a test by itself."""

import json
import pathlib
import sys

import helpers
import numpy as np


def greedy_soups(process: int, count: int) -> list[list]:
  """Makes greedy soups with this process's part of each batch, cached or not.

  Returns:
    For each soup, its decisions: name, accepted, bar, rejected early.
  """
  import soupjax as sj
  from soupjax import sharding
  from soupjax.evaluators import Evaluator

  rng = np.random.default_rng(3)
  labels = rng.integers(0, 4, 96)
  signal = 1.5 * np.eye(4)[labels] + rng.normal(size=(96, 4))
  mesh = sharding.make_mesh({"data": -1})
  everywhere = sharding.replicated(mesh)
  models = []
  for k in range(8):
    noise = (0.5 + k) * rng.normal(size=(96, 4))
    logits = (signal + noise).astype(np.float32)
    models.append(sj.Ingredient.from_params(f"m{k}", {"logits": logits}))
  part = 16 // count
  rows = [np.arange(at, at + part) for at in range(process * part, 96, 16)]
  batches = [
    {"images": r, "labels": labels[r], "mask": np.ones(part, bool)}
    for r in rows
  ]
  results = []
  for metric in ("prec@1", "loss"):
    for cache_gb in (0, 1):
      evaluate = Evaluator(
        lambda params, rows: params["logits"][rows], batches,
        metric=metric, mesh=mesh, cache_gb=cache_gb,
      )  # fmt: skip
      soup = sj.greedy_soup(models, evaluate, sharding=lambda *_: everywhere)
      results.append(
        [[d.name, d.accepted, d.bar, d.score is None] for d in soup.history]
      )
  return results


def main(out: str) -> None:
  """Writes the decisions of each process."""
  helpers.join_workers()
  import jax

  results = greedy_soups(jax.process_index(), jax.process_count())
  path = pathlib.Path(out) / f"decisions_{jax.process_index()}.json"
  path.write_text(json.dumps(results))


if __name__ == "__main__":
  main(*sys.argv[1:])
