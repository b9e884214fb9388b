# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Commands, images and tables shared by the benchmarks in this folder."""

from collections.abc import Iterable, Mapping, Sequence
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import tarfile

import jax
import numpy as np
from PIL import Image

import soupjax as sj
from soupjax import data, report
from soupjax.evaluators import statistics

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
RESULTS = HERE.parent / "results"
# Model of a cooked run -> title of its row. "mean" is the mean ingredient.
ROWS = {
  "pretrained": "linear probe, the start",
  "mean": "mean ingredient",
  "best": "best ingredient by loss",
  "uniform": "uniform soup",
  "greedy": "greedy soup by loss",
  "greedy_prec1": "greedy soup by accuracy",
  "learned_layer": "learned soup, per layer",
  "wise_ft": "WiSE-FT, start to best, alpha by loss",
  "ensemble": "ensemble of all ingredients, at their total cost",
}
REFERENCES = {
  "best": "Points above the best ingredient",
  "pretrained": "Points above the start",
}
# Set -> row -> share of correct answers per image, (n,), from 0 to 1.
Answers = Mapping[str, Mapping[str, np.ndarray]]


# --- Images -------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
  """Encodes a uint8 image as PNG."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG", compress_level=1)
  return file.getvalue()


def resize(size: int) -> data.Preprocess:
  """Returns a function that resizes and crops to (size, size, 3), uint8."""
  ops = f"resize_small({size}, 'bicubic')|central_crop({size})"
  preprocess = data.Preprocess(ops)

  def call(image):
    pixels = np.asarray(preprocess(image))
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)

  return call


def write_files(path: pathlib.Path, members: Iterable[tuple[str, bytes]]):
  """Writes (name, content) pairs to a tar file, unless it exists."""
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  with tarfile.open(part, "w") as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  part.rename(path)


# --- Runs ---------------------------------------------------------------------


def soupjax(*arguments: str) -> None:
  """Prints and runs a command of soupjax."""
  print("soupjax", *arguments, flush=True)
  command = [sys.executable, "-m", "soupjax.main", *arguments]
  path = os.pathsep.join(filter(None, [str(HERE), os.getenv("PYTHONPATH")]))
  subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


def cook(
  config: str,
  workdir: pathlib.Path,
  tests: str,
  *,
  finetune: Sequence[str] = (),
  cook: Sequence[str] = (),
) -> None:
  """Fine-tunes a sweep and cooks it, with greedy soups by loss and accuracy.

  Args:
    config: the flag `--config=...` of fine-tuning.
    workdir: the directory for sweep/ and soups/.
    tests: value of `--config.tests` in cooking.
    finetune: more flags for fine-tuning.
    cook: more flags for cooking.
  """
  sweep = workdir / "sweep"
  soupjax(config, f"--workdir={sweep}", "--sweep", *finetune)
  soupjax(
    f"--config={CONFIGS / 'cook.py'}:sweep={sweep}",
    f"--workdir={workdir / 'soups'}",
    f"--config.tests={tests}",
    "--config.cook.metric=loss,prec@1",
    *cook,
  )


# --- Results ------------------------------------------------------------------


def correct(
  soups: pathlib.Path,
  columns: Mapping[str, Sequence[str]],
  rows: Mapping[str, str] = ROWS,
) -> Answers:
  """Returns which images each model of a cooked run classifies correctly.

  Args:
    soups: workdir of cooking.
    columns: title -> names of test sets. The answers to several are averaged
      image by image.
    rows: model -> title, as in `ROWS`.

  Returns:
    Title of `columns` -> row -> share of correct answers per image.
  """
  results = report.read_run(soups)
  members = results.models("ingredient")
  models = {row: row for row in rows if row in results.kinds}
  models |= {"best": results.best} | {member: member for member in members}
  answers: dict[str, dict[str, np.ndarray]] = {title: {} for title in columns}
  for row, model in models.items():
    with np.load(soups / "correct" / f"{model}.npz") as packed:
      for title, names in columns.items():
        answers[title][row] = np.mean(
          [
            np.unpackbits(packed[name], count=results.images(model, name))
            for name in names
          ],
          axis=0,
        )
  for by_row in answers.values():
    by_row["mean"] = np.mean([by_row.pop(member) for member in members], axis=0)
  return answers


def choices(soups: pathlib.Path) -> dict[str, float]:
  """Returns the alpha of WiSE-FT and the sizes of the greedy soups."""
  chosen = {}
  for name, file, key in (
    ("wise_ft", "wise_ft.json", "alpha"),
    ("greedy", "greedy.json", "selected"),
    ("greedy_prec1", "greedy.json", "selected"),
  ):
    path = soups / "soups" / name / file
    if path.exists():
      value = json.loads(path.read_text("utf-8"))[key]
      chosen[name] = len(value) if isinstance(value, list) else value
  return chosen


def summary(
  sweeps: Sequence[Answers],
  rows: Mapping[str, str] = ROWS,
  reference: str = "best",
) -> dict:
  """Returns set -> row -> accuracy and its difference from a reference row.

  Images and sweeps are resampled, since the sweeps share their test images
  (`statistics.hierarchical_bootstrap`); for a single sweep, only the images.
  """
  table: dict[str, dict[str, dict[str, float]]] = {}
  for name in sweeps[0]:
    table[name] = {}
    for row in filter(sweeps[0][name].__contains__, rows):
      right = 100 * np.stack([sweep[name][row] for sweep in sweeps])
      table[name][row] = {"accuracy": float(right.mean())}
      if row == reference:
        continue
      other = 100 * np.stack([sweep[name][reference] for sweep in sweeps])
      if len(sweeps) > 1:
        gain = statistics.hierarchical_bootstrap(right - other)
      else:
        (gain,) = statistics.paired_bootstrap((right - other).T)
      table[name][row] |= {
        "difference": gain.value, "low": gain.low, "high": gain.high
      }  # fmt: skip
      table[name][row]["each"] = [
        float(value) for value in (right - other).mean(axis=1)
      ]
  return table


def record_of(
  answers: Mapping[str, Answers],
  chosen: Mapping[str, Mapping[str, float]],
  rows: Mapping[str, str] = ROWS,
) -> dict:
  """Returns the results of the finished sweeps.

  Args:
    answers: sweep -> result of `correct`; "control" is not pooled with the
      others.
    chosen: sweep -> result of `choices`.
    rows: model -> title, as in `ROWS`.
  """

  def tables(sweeps):
    return {ref: summary(sweeps, rows, reference=ref) for ref in REFERENCES}

  finished = [sweep for sweep in answers if sweep != "control"]
  record = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "soupjax": sj.__version__,
    "device": jax.devices()[0].device_kind,
    "finished": finished,
    "choices": chosen,
    "sweeps": tables([answers[sweep] for sweep in finished]),
  }
  if "control" in answers:
    record["control"] = tables([answers["control"]])
  return record


def save(path: pathlib.Path, name: str, record: Mapping) -> None:
  """Adds or replaces a named record in a JSON file of records."""
  records = json.loads(path.read_text("utf-8")) if path.exists() else {}
  path.write_text(json.dumps({**records, name: record}, indent=1) + "\n")


def difference(cell: Mapping[str, float]) -> str:
  """Returns a difference with its interval; "" for the reference."""
  if "difference" not in cell:
    return ""
  unclear = " ~" * (cell["low"] <= 0 <= cell["high"])
  ends = f"[{cell['low']:+.2f}, {cell['high']:+.2f}]"
  return f"{cell['difference']:+.2f} {ends}{unclear}"


def markdown(tables: Mapping, rows: Mapping[str, str] = ROWS) -> str:
  """Returns the tables of benchmarks/README.md: accuracies and differences.

  Args:
    tables: reference -> result of `summary`.
    rows: model -> title, as in `ROWS`.
  """
  first = next(iter(tables.values()))
  head = [f"| | {' | '.join(first)} |", "|---" * (len(first) + 1) + "|"]

  def table(columns, show):
    present = [row for row in rows if all(row in c for c in columns.values())]
    return head + [
      f"| {rows[row]} | {' | '.join(show(c[row]) for c in columns.values())} |"
      for row in present
    ]

  lines = table(first, lambda cell: f"{cell['accuracy']:.1f}")
  for reference, columns in tables.items():
    title = REFERENCES[reference]
    lines += ["", f"{title}:", "", *table(columns, difference)]
  return "\n".join(lines)


def shown(record: Mapping, rows: Mapping[str, str] = ROWS) -> str:
  """Returns all tables and choices of a record made by `record_of`."""
  lines = [f"Sweeps: {', '.join(record['finished'])}", ""]
  lines += [markdown(record["sweeps"], rows)]
  if "control" in record:
    lines += ["", "Control, from random weights:", ""]
    lines += [markdown(record["control"], rows)]
  return "\n".join([*lines, "", f"Chosen: {json.dumps(record['choices'])}"])
