# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests in twenty runs whether soups win on noisy digits among neighbours.

python benchmarks/digits.py --workdir=runs/benchmark [--report]

Runs the three commands of launch/local.sh for each of the seeds 1000 to 1019;
every run has its own split, pretraining and sweep. Then runs the last two
commands without pretraining for the first five seeds, where soups should not
win. Two runs at a time share the machine. Finished runs are not repeated.
Writes results/digits.json (accuracies by method and set) and
results/digits_correct.npz (packed bits: whether each image is classified
correctly), draws docs/images/digits.png, and prints the tables of
benchmarks/README.md. --report only draws and prints, from the stored results.
Takes about 40 minutes on 2 cores.
"""

import argparse
from concurrent import futures
import functools
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
import scipy.stats

import soupjax as sj

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "digits.json"
CORRECT = HERE / "results" / "digits_correct.npz"
PICTURE = ROOT / "docs" / "images" / "digits.png"
SEEDS, CONTROLS = range(1000, 1020), range(1000, 1005)
METRIC = "loss,prec@1"
# Name in a run's results -> title of its row; "best_*" and "mean" are derived.
METHODS = {
  "pretrained": "linear probe, the start",
  "mean": "mean ingredient",
  "best_prec@1": "best ingredient by accuracy",
  "best_loss": "best ingredient by loss",
  "uniform": "uniform soup",
  "greedy_prec1": "greedy soup by accuracy",
  "greedy": "greedy soup by loss",
  "learned_layer": "learned soup, per layer",
  "wise_ft_0.50": "WiSE-FT, alpha 0.5, to the best by loss",
  "ensemble": "ensemble of 16, at 16 x the cost",
}


# --- Runs ---------------------------------------------------------------------


def run(seed: int, workdir: pathlib.Path, pretrained: bool) -> pathlib.Path:
  """Runs the three commands, or the last two; returns the soups' directory."""
  root = workdir / f"{'digits' if pretrained else 'control'}_{seed}"
  base, sweep, soups = (root / n for n in ("pretrained", "sweep", "soups"))
  config = ROOT / "configs" / "finetune" / "digits.py"
  start = f"--config.init.path={base / 'ingredients' / 'last'}"
  commands = [
    [f"--config={config}:pretrain,seed={seed}", f"--workdir={base}"],
    [f"--config={config}:seed={seed}", "--sweep", f"--workdir={sweep}", start],
    [
      f"--config={ROOT / 'configs' / 'cook.py'}:sweep={sweep}",
      f"--workdir={soups}",
      f"--config.cook.metric={METRIC}",
    ],
  ]
  if not pretrained:
    commands = [commands[1][:-1], commands[2]]
  if not (soups / "report.html").exists():
    # All runs share the programs that they compile.
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(workdir / "cache")}
    for command in commands:
      with open(workdir / f"{root.name}.log", "a") as log:
        subprocess.run(
          [sys.executable, "-m", "soupjax.main", *command],
          check=True, env=env, stdout=log, stderr=log,
        )  # fmt: skip
  print(f"{root.name} is done", flush=True)
  return soups


def record_of(soups: pathlib.Path) -> dict:
  """Returns the record of a run in results/digits.json.

  Args:
    soups: workdir of the cooking.

  Returns:
    "ingredients" (names), "accuracy" (model -> set -> percent), "minival_loss"
    (ingredient -> loss) and "selected" (names in the greedy soup by loss).
  """
  accuracy, loss, ingredients = {}, {}, []
  for line in (soups / "results.jsonl").read_text().splitlines():
    row = json.loads(line)
    model, dataset = row["model"], row["dataset"].rpartition("/")[2]
    if row["kind"] == "ingredient" and model not in ingredients:
      ingredients.append(model)
    if row["metric"] == "prec@1":
      accuracy.setdefault(model, {})[dataset] = 100 * row["value"]
    elif row["metric"] == "loss" and dataset == "minival":
      loss[model] = row["value"]
  kept = [*ingredients, *(m for m in METHODS if m in accuracy)]
  greedy = json.loads((soups / "soups/greedy/greedy.json").read_text())
  return {
    "ingredients": ingredients,
    "accuracy": {model: accuracy[model] for model in kept},
    "minival_loss": {model: loss[model] for model in ingredients},
    "selected": greedy["selected"],
  }


def correct_of(soups: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns "MODEL/SET" -> packed bits, for the methods and the ingredients."""
  packed = {}
  for path in sorted((soups / "correct").glob("*.npz")):
    if path.stem in METHODS or path.stem.startswith("member_"):
      with np.load(path) as stored:
        packed |= {f"{path.stem}/{name}": stored[name] for name in stored}
  return packed


# --- Statistics ---------------------------------------------------------------


def table_of(record: dict) -> dict[str, tuple[float, float]]:
  """Returns method -> percent accuracy on test, and mean over the shifts."""
  accuracy = record["accuracy"]

  def columns(model):
    sets = accuracy[model]
    shifts = [v for k, v in sets.items() if k not in ("minival", "test")]
    return sets["test"], float(np.mean(shifts))

  names = record["ingredients"]
  by_loss = min(names, key=record["minival_loss"].__getitem__)
  by_accuracy = max(
    names,
    key=lambda n: (accuracy[n]["minival"], -record["minival_loss"][n]),
  )
  derived = {
    "mean": tuple(np.mean([columns(n) for n in names], axis=0)),
    "best_prec@1": columns(by_accuracy),
    "best_loss": columns(by_loss),
  }
  return {m: derived[m] if m in derived else columns(m) for m in METHODS}


def interval(values: np.ndarray) -> tuple[float, float, float]:
  """Returns the mean, its standard error and half of its 95 % t interval."""
  error = values.std(ddof=1) / np.sqrt(len(values))
  return values.mean(), error, error * scipy.stats.t.ppf(0.975, len(values) - 1)


def markdown(records: list[dict], baseline: str) -> str:
  """Formats one row per method, with paired differences from a baseline."""
  tables = [table_of(r) for r in records]
  lines = [
    "| | test | 8 shifts | test, difference (se) [95 %] | > 0 "
    "| shifts, difference (se) [95 %] | > 0 |",
    "|---|---|---|---|---|---|---|",
  ]
  for method, label in METHODS.items():
    values = np.array([t[method] for t in tables])
    cells = [label, *(f"{v:.1f}" for v in values.mean(axis=0))]
    gains = values - np.array([t[baseline] for t in tables])
    for column in gains.T if method != baseline else ():
      mean, error, half = interval(column)
      cells.append(
        f"{mean:+.2f} ({error:.2f}) [{mean - half:+.2f}, {mean + half:+.2f}]"
      )
      cells.append(f"{(column > 1e-9).sum()} of {len(column)}")
    cells += [""] * (7 - len(cells))
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def short_table() -> str:
  """Formats the table of README.md from the stored results."""
  stored = json.loads(RESULTS.read_text())
  baseline, left_out = "best_prec@1", ("best_loss",)
  tables = [table_of(r) for r in stored["runs"].values()]
  base = np.array([t[baseline] for t in tables])
  lines = [
    "| | test | 8 shifts | difference on test | under shift |",
    "|---|---|---|---|---|",
  ]
  for method, label in METHODS.items():
    if method in left_out:
      continue
    values = np.array([t[method] for t in tables])
    cells = [label, *(f"{v:.1f}" for v in values.mean(axis=0))]
    for column in (values - base).T:
      mean, _, half = interval(column)
      cells.append(
        f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
        if method != baseline
        else ""
      )
    lines.append("| " + " | ".join(cells) + " |")
  commit = f"Commit {stored['commit']}, jax {stored['jax']}."
  return "\n".join([*lines, "", commit])


# --- Picture ------------------------------------------------------------------

STARS = {
  "uniform": ("Uniform soup", "#0072B2"),
  "greedy": ("Greedy soup (loss)", "#D55E00"),
  "greedy_prec1": ("Greedy soup (accuracy)", "#E69F00"),
  "learned_layer": ("Learned soup", "#009E73"),
  "ensemble": ("Ensemble, 16 x the cost", "#CC79A7"),
}


def picture(records: list[dict]) -> None:
  """Draws all ingredients and soups, and each run's gains by method."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  tables = [table_of(r) for r in records]
  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4.6), dpi=130, width_ratios=(1, 1.25)
  )
  dots = [
    (
      r["accuracy"][n]["test"],
      np.mean(
        [v for k, v in r["accuracy"][n].items() if k not in ("minival", "test")]
      ),
    )
    for r in records
    for n in r["ingredients"]
  ]
  left.scatter(
    *np.transpose(dots), s=9, color="0.6", alpha=0.5, lw=0,
    label=f"Ingredients of {len(records)} runs",
  )  # fmt: skip
  points = {
    "best_prec@1": ("Best ingredient", "black", "D", 45),
    "pretrained": ("Linear probe", "0.35", "s", 45),
    **{m: (*style, "*", 190) for m, style in STARS.items()},
  }
  for method, (label, color, marker, size) in points.items():
    values = np.array([t[method] for t in tables])
    half = [interval(column)[2] for column in values.T]
    left.errorbar(
      *values.mean(axis=0), xerr=half[0], yerr=half[1], color=color, lw=1,
      zorder=3,
    )  # fmt: skip
    left.scatter(
      *values.mean(axis=0), s=size, color=color, marker=marker,
      zorder=5 if method == "greedy" else 4,
      edgecolor="white", lw=0.6, label=label,
    )  # fmt: skip
  left.set_xlabel("Accuracy on test, %")
  left.set_ylabel("Mean accuracy over 8 shifts, %")
  left.legend(fontsize=7.5, loc="lower right", framealpha=0.9)
  left.set_title("Means over runs, with 95 % intervals", fontsize=10)

  rng = np.random.default_rng(0)
  methods = ["pretrained", "mean", *STARS]
  for row, method in enumerate(methods):
    for offset, column, color in ((-0.17, 0, "#0072B2"), (0.17, 1, "#D55E00")):
      gains = np.array(
        [t[method][column] - t["best_prec@1"][column] for t in tables]
      )
      mean, _, half = interval(gains)
      y = row + offset
      right.scatter(
        gains, y + rng.uniform(-0.07, 0.07, len(gains)), s=10, color=color,
        alpha=0.4, lw=0,
      )  # fmt: skip
      right.errorbar(
        mean, y, xerr=half, fmt="o", color=color, ms=4.5, capsize=3, zorder=3,
        label=("test", "mean of 8 shifts")[column] if not row else None,
      )  # fmt: skip
  right.axvline(0, color="black", lw=0.8)
  right.set_yticks(
    range(len(methods)),
    ["Linear probe", "Mean ingredient", *(s[0] for s in STARS.values())],
    fontsize=8,
  )
  right.invert_yaxis()
  right.set_xlabel("Points above the run's best ingredient (by accuracy)")
  right.legend(fontsize=8)
  right.set_title("One dot a run; mean and 95 % interval", fontsize=10)
  figure.tight_layout()
  figure.savefig(PICTURE)


def report() -> None:
  """Prints the tables and draws the picture from the stored results."""
  stored = json.loads(RESULTS.read_text())
  print(f"Commit {stored['commit']}, jax {stored['jax']}.")
  for key, title in (("runs", "Pretrained"), ("controls", "No pretraining")):
    records = list(stored[key].values())
    for baseline in ("best_prec@1", "best_loss"):
      print(
        f"\n**{title}**, {len(records)} runs, against {METHODS[baseline]}\n"
      )
      print(markdown(records, baseline))
    sizes = [len(r["selected"]) for r in records]
    print(f"\nIngredients in the greedy soup by loss: {sorted(sizes)}")
  picture(list(stored["runs"].values()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--report", action="store_true")
  args = parser.parse_args()
  if not args.report:
    if args.workdir is None:
      parser.error("--workdir is needed, or --report")
    workdir = args.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
      ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True,
      capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    stored = {
      "commit": commit,
      "python": platform.python_version(),
      "jax": jax.__version__,
      "soupjax": sj.__version__,
    }
    correct = {}
    with futures.ThreadPoolExecutor(2) as pool:
      for key, seeds in (("runs", SEEDS), ("controls", CONTROLS)):
        start = functools.partial(
          run, workdir=workdir, pretrained=key == "runs"
        )
        stored[key] = {}
        for seed, soups in zip(seeds, pool.map(start, seeds)):
          stored[key][str(seed)] = record_of(soups)
          packed = correct_of(soups) if key == "runs" else {}
          correct |= {f"{seed}/{name}": bits for name, bits in packed.items()}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    np.savez_compressed(CORRECT, **correct)
  report()


if __name__ == "__main__":
  main()
