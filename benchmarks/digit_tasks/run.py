# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches for coefficients on tasks made from real digits: README.md.

python benchmarks/digit_tasks/run.py --workdir=runs/searches [--seeds=3] \
  [--search=paint,pools]

Pretrains a small ViT on upright and inverted digits of some writers, fine-tunes
it with its head frozen on tasks made from digits of other writers, and runs the
searches of `sj.search`: wise_ft, addition, negation, analogy, paint, pools and
adamerging. Prints tables of the accuracy on test; with all searches, writes
results/search.json. Every search leaves its candidates and a picture in the
workdir; what is there is not done again.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
from typing import Any

import figure
import jax
import numpy as np
import searches
from tasks import DigitTasks, Settings

import soupjax as sj
from soupjax import files

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "search.json"


def run(
  settings: Settings, names: list[str], workdir: pathlib.Path
) -> dict[str, dict[str, Any]]:
  """Runs searches of one seed, except those that are there.

  Args:
    settings: the numbers.
    names: of `searches.SEARCHES`.
    workdir: gets `models/`, `NAME.json` and pictures.

  Returns:
    Search -> "accuracies" on test, and the "searches" with all candidates.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  lab, records = None, {}
  for name in names:
    record = workdir / f"{name}.json"
    if not record.exists():
      lab = lab or DigitTasks(settings, workdir)
      tried, accuracies = searches.SEARCHES[name](lab)
      for title, search in tried.items():
        if isinstance(search, sj.search.Search):
          picture = figure.search_figure(title, search.history)
          picture.savefig(workdir / f"{title}.png")
      files.write_json(
        record,
        {
          "searches": {k: _plain(search) for k, search in tried.items()},
          "accuracies": accuracies,
        },
      )
    records[name] = files.read_json(record)
  return records


def _plain(search) -> Any:
  """Returns what was tried and chosen, as JSON."""
  if isinstance(search, sj.search.Pool):
    history = search.greedy.history if search.greedy else ()
    return {
      "selected": list(search.selected),
      "score": search.score,
      "runs": {run.name: run.metrics["held-out"] for run in search.runs},
      "history": [dataclasses.asdict(d) for d in history],
    }
  if isinstance(search, sj.search.Search):
    return [dataclasses.asdict(c) for c in search.history]
  return {
    "names": list(search.names),
    "alphas": {group: list(a) for group, a in search.alphas.items()},
    "history": list(search.history),
  }


def markdown(name: str, runs: list[dict]) -> str:
  """Returns a table of means and standard deviations over seeds."""
  first = runs[0][name]["accuracies"]
  columns = list(next(iter(first.values())))
  lines = [
    f"| {name} | " + " | ".join(columns) + " |",
    "|---" * (1 + len(columns)) + "|",
  ]
  for model in first:
    cells = []
    for column in columns:
      values = [100 * r[name]["accuracies"][model][column] for r in runs]
      cells.append(f"{np.mean(values):.1f}")
      if len(runs) > 1:
        cells[-1] += f" +- {np.std(values, ddof=1):.1f}"
    lines.append(f"| {model} | " + " | ".join(cells) + " |")
  for title, history in runs[0][name]["searches"].items():
    if isinstance(history, list):
      chosen = [chosen_by(r[name]["searches"][title]) for r in runs]
      texts = [" ".join(f"{c:.2f}" for c in each) for each in chosen]
      lines.append(f"\nchosen, {title}: {', '.join(texts)}")
  return "\n".join(lines)


def chosen_by(history: list[dict]) -> list[float]:
  """Returns the coefficients that a search chose."""
  return next(c["coefficients"] for c in history if c["chosen"])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--search", default=",".join(searches.SEARCHES))
  args = parser.parse_args()
  names = args.search.split(",")
  for name in names:
    if name not in searches.SEARCHES:
      parser.error(f"--search={name}: one of {', '.join(searches.SEARCHES)}")
  workdir = args.workdir.expanduser().absolute()
  # Every model is trained by a run of its own: compile once.
  jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  runs = [
    run(Settings(seed=k), names, workdir / f"seed_{k}")
    for k in range(args.seeds)
  ]
  for name in names:
    print(f"\n{markdown(name, runs)}", flush=True)
  if set(names) == set(searches.SEARCHES):
    record = {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "soupjax": sj.__version__,
      "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
