# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Do soups win on the digits? The main job over seeds, and its control.

python benchmarks/digits.py --workdir=runs/benchmark [--seeds=5]

Runs configs/digits.py once a seed, then the same without pretraining, where
soups should win nothing. Prints the tables of README and benchmarks/README.md
and writes the numbers to results/digits.json. A run that is there already is
not repeated. About 12 minutes on 2 cores.
"""

import argparse
import collections
import json
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np

import soupjax as sj
from soupjax.tasks.cook import ranked

HERE = pathlib.Path(__file__).parent
ROWS = (
  ("pretrained", "pretrained + linear probe"),
  ("mean", "mean ingredient"),
  ("best", "best ingredient on minival"),
  ("uniform", "uniform soup"),
  ("greedy", "greedy soup"),
  ("learned_model", "learned soup, per model"),
  ("learned_layer", "learned soup, per layer"),
  ("wise_ft_0.50", "WiSE-FT, alpha 0.5, to the best"),
  ("ensemble", "logit ensemble (costs K models)"),
  ("greedy_ensemble", "greedy ensemble"),
)


def run(argument: str, seed: int, workdir: pathlib.Path) -> None:
  command = [
    sys.executable,
    "-m",
    "soupjax.main",
    f"--config={HERE.parent / 'configs' / 'digits.py'}{argument}",
    f"--config.seed={seed}",
    f"--workdir={workdir}",
  ]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def scores(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
  """Accuracy in percent of every row: minival, test, mean over shifts."""
  found = collections.defaultdict(dict)
  for line in (workdir / "results.jsonl").read_text().splitlines():
    row = json.loads(line)
    if row["metric"] == "prec@1":
      dataset = row["dataset"].removeprefix("digits/")
      found[row["model"]][dataset] = 100 * row["value"]
  table = {
    model: {
      "minival": values["minival"],
      "test": values["test"],
      "shifts": float(
        np.mean([v for k, v in values.items() if k not in ("minival", "test")])
      ),
    }
    for model, values in found.items()
  }
  ingredients = sj.find_ingredients(workdir / "ingredients" / "*")
  best = ranked(ingredients)[0]
  table["best"] = table[best.name]
  table["mean"] = {
    column: float(np.mean([table[i.name][column] for i in ingredients]))
    for column in ("minival", "test", "shifts")
  }
  return {name: table[name] for name, _ in ROWS}


def markdown(title: str, runs: list[dict[str, dict[str, float]]]) -> str:
  lines = [
    f"**{title}**, {len(runs)} seeds, accuracy in percent; differences from "
    "the best ingredient, mean +- standard deviation, and in how many seeds "
    "they are >= 0.",
    "",
    "| | test | shifts (mean of 8) | test, difference | wins "
    "| shifts, difference | wins |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, label in ROWS:
    cells = [label]
    for column in ("test", "shifts"):
      cells.append(f"{np.mean([r[name][column] for r in runs]):.1f}")
    for column in ("test", "shifts"):
      gains = np.array([r[name][column] - r["best"][column] for r in runs])
      wins = int((gains >= -1e-9).sum())
      if name == "best":
        cells += ["", ""]
      else:
        cells += [
          f"{gains.mean():+.1f} +- {gains.std(ddof=1):.1f}",
          f"{wins} of {len(runs)}",
        ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=5)
  args = parser.parse_args()
  record = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "soupjax": sj.__version__,
  }
  for argument, title in (
    ("", "Pretrained"),
    (":scratch", "Control without pretraining"),
  ):
    runs = []
    for seed in range(args.seeds):
      workdir = args.workdir / f"{argument.lstrip(':') or 'digits'}_{seed}"
      run(argument, seed, workdir)
      runs.append(scores(workdir))
    record[title] = runs
    print(markdown(title, runs), "\n", flush=True)
  results = HERE / "results" / "digits.json"
  results.parent.mkdir(exist_ok=True)
  results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
