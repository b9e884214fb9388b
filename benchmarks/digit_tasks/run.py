# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What every search gives on digits, over seeds: the tables of docs/search.md.

python benchmarks/search.py --workdir=runs/search [--seeds=3]

Runs configs/search.py once a seed (a run that is there already is not
repeated), prints the tables and writes results/search.json. About two minutes a
seed on 2 cores.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np

import soupjax as sj

HERE = pathlib.Path(__file__).parent


def run(seed: int, workdir: pathlib.Path) -> dict:
  """Search -> model -> dataset -> accuracy, of one seed."""
  command = [
    sys.executable,
    "-m",
    "soupjax.main",
    f"--config={HERE.parent / 'configs' / 'search.py'}",
    f"--config.seed={seed}",
    f"--workdir={workdir}",
  ]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  found = {}
  for path in sorted((workdir / "search").glob("*.json")):
    record = json.loads(path.read_text())
    chosen = {
      name: next(c["coefficients"] for c in history if c["chosen"])
      for name, history in record["searches"].items()
      if isinstance(history, list)
    }
    found[path.stem] = {"judged": record["judged"], "chosen": chosen}
  return found


def markdown(name: str, runs: list[dict]) -> str:
  """Mean and standard deviation over seeds, in percent."""
  first = runs[0][name]["judged"]
  columns = list(next(iter(first.values())))
  lines = [
    f"| {name} | " + " | ".join(columns) + " |",
    "|---" * (1 + len(columns)) + "|",
  ]
  for model in first:
    cells = []
    for column in columns:
      values = [100 * r[name]["judged"][model][column] for r in runs]
      cells.append(f"{np.mean(values):.1f} +- {np.std(values, ddof=1):.1f}")
    lines.append(f"| {model} | " + " | ".join(cells) + " |")
  for search in runs[0][name]["chosen"]:
    chosen = [
      " ".join(f"{c:.2f}" for c in r[name]["chosen"][search]) for r in runs
    ]
    lines.append(f"\nchosen, {search}: {', '.join(chosen)}")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  if args.seeds < 2:
    parser.error("--seeds must be at least 2: deviations need them.")
  runs = [run(k, args.workdir / f"seed_{k}") for k in range(args.seeds)]
  for name in runs[0]:
    print(markdown(name, runs), "\n", flush=True)
  results = HERE / "results" / "search.json"
  record = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "soupjax": sj.__version__,
    "runs": runs,
  }
  results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
