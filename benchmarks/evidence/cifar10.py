# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Do soups win on CIFAR-10, seen through a fixed camera? Three sweeps.

python benchmarks/evidence/cifar10.py --workdir=runs/cifar10 [--images=DIR]

DIR has train/CLASS/*.jpg and test/CLASS/*.jpg, or train.tar and test.tar;
without it, CIFAR-10 is that of TFDS. A small hybrid ViT (hybrid_vit.py) is
pretrained on half of train with broad augmentation. Then sweeps of 16 models
are fine-tuned from it on 5,000 other images, seen through a camera with less
contrast and more noise. 5,000 more images are held out, and every choice is
made on them, by the loss. Soups are evaluated on all 10,000 test images through
the same camera, and on 2,000 of them under each of the 15 corruptions of arXiv
1903.12261 at severity 3. Each sweep has hyperparameters and seeds of its own.
The control is a sweep without pretraining, in which soups should win nothing.

What is there is not done again: start the same command after an interruption.
Writes ../results/cifar10.json after every sweep, and prints the table of
benchmarks/README.md; --report does only that. About three CPU hours, estimated;
--runlocal takes minutes and shows nothing but that it works.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from soupjax.data import corruptions
from soupjax.evaluators import statistics

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
RESULTS = HERE.parent / "results" / "cifar10.json"
SEVERITY = 3
SWEEPS = ("0", "1", "2", "control")
# Rows of the table: model of a run -> title. "mean" is that of the ingredients.
ROWS = {
  "pretrained": "linear probe, the start",
  "mean": "mean ingredient",
  "best": "best ingredient by loss",
  "uniform": "uniform soup",
  "greedy": "greedy soup by loss",
  "greedy_prec1": "greedy soup by accuracy",
  "learned_layer": "learned soup, per layer",
  "ensemble": "ensemble of 16, at 16 x the cost",
}


# --- Images -------------------------------------------------------------------


def camera(image: np.ndarray, rng) -> np.ndarray:
  """Sees a picture with 0.7 of its contrast and noise of 15 of 255 levels."""
  picture = (np.asarray(image, np.float64) - 127.5) * 0.7 + 127.5
  picture += rng.normal(0, 15, picture.shape)
  return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def corrupted(name: str) -> Callable:
  """Returns a function that corrupts an image before the camera sees it."""

  def change(image, rng):
    return camera(corruptions.corrupt(image, name, SEVERITY), rng)

  return change


def png(pixels: np.ndarray) -> bytes:
  """Encodes an image of bytes."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG", compress_level=1)
  return file.getvalue()


def write_files(path: pathlib.Path, members: Iterable[tuple[str, bytes]]):
  """Writes (name, content) as a tar file, unless it exists."""
  if path.exists():
    return
  part = path.with_suffix(".part")
  with tarfile.open(part, "w") as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  part.rename(path)


def write_tar(
  path: pathlib.Path, source: data.Source, change: Callable
) -> None:
  """Writes images as LABEL/NUMBER.png, each changed by its own draws."""

  def members():
    for i in range(len(source)):
      example = source[i]
      pixels = np.asarray(data.Preprocess("")(example["image"]))
      pixels = change(pixels, np.random.default_rng(i))
      yield f"{example['label']}/{i:05d}.png", png(pixels)

  write_files(path, members())


def write_images(name: str, folder: pathlib.Path, short: bool) -> None:
  """Writes all sets that the commands read; `short` ones of 200 images."""
  folder.mkdir(parents=True, exist_ok=True)

  def opened(split, step=1):
    source = data.open_source(name, split)
    count = 200 if short else len(source)
    return data.subset(source, np.arange(0, count, step), split)

  def unchanged(image, rng):
    del rng
    return image

  sets = {
    "pretrain": (opened("train[:25000]"), unchanged),
    "train": (opened("train[25000:30000]"), camera),
    "minival": (opened("train[45000:]"), camera),
    "test": (opened("test"), camera),
  }
  # Every fifth image, since a folder is in the order of its classes.
  some = opened("test", 5)
  for title in corruptions.CORRUPTIONS:
    sets[title] = some, corrupted(title)
  for title, (source, change) in sets.items():
    write_tar(folder / f"{title}.tar", source, change)


# --- Runs ---------------------------------------------------------------------


def soupjax(*arguments: str) -> None:
  """Runs a command, and shows it."""
  print("soupjax", *arguments, flush=True)
  command = [sys.executable, "-m", "soupjax.main", *arguments]
  path = os.pathsep.join(filter(None, [str(HERE), os.getenv("PYTHONPATH")]))
  subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


def pretrain(config: str, base: pathlib.Path) -> None:
  """Pretrains the start of all sweeps but the control."""
  soupjax(
    f"{config},pretrain",
    f"--workdir={base}",
    "--config.data.train=pretrain",
    "--config.data.minival=minival",
  )


def cook(
  config: str, base: pathlib.Path | None, workdir: pathlib.Path, short: bool
) -> None:
  """Fine-tunes a sweep and cooks its soups; `base` None is the control."""
  start = (
    [f"--config.init.path={base / 'ingredients' / 'last'}"] if base else []
  )
  soupjax(
    config,
    f"--workdir={workdir / 'sweep'}",
    "--sweep",
    *start,
    "--config.data.train=train",
    "--config.data.minival=minival",
  )
  tests = ",".join(f"{k}={k}" for k in ("test", *corruptions.CORRUPTIONS))
  soupjax(
    f"--config={CONFIGS / 'cook.py'}:sweep={workdir / 'sweep'}",
    f"--workdir={workdir / 'soups'}",
    f"--config.tests={tests}",
    "--config.cook.metric=loss,prec@1",
    *["--config.cook.learned.steps=2"] * short,
  )


# --- Results ------------------------------------------------------------------


def correct(soups: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """Returns {"test", "corrupted"} -> row -> right answers of every image.

  Under corruption an image has the mean over the corruptions, (n,) of 0 to 1.
  """
  results = report.read_run(soups)
  members = results.models("ingredient")
  models = {row: row for row in ROWS if row in results.kinds}
  models |= {"best": results.best} | {member: member for member in members}
  answers: dict[str, dict[str, np.ndarray]] = {"test": {}, "corrupted": {}}
  for row, model in models.items():
    with np.load(soups / "correct" / f"{model}.npz") as packed:
      right = {
        name: np.unpackbits(packed[name], count=results.images(model, name))
        for name in ("test", *corruptions.CORRUPTIONS)
      }
    answers["test"][row] = right.pop("test").astype(float)
    answers["corrupted"][row] = np.mean([*right.values()], axis=0)
  for rows in answers.values():
    rows["mean"] = np.mean([rows.pop(member) for member in members], axis=0)
  return answers


def summary(
  sweeps: Sequence[dict[str, dict[str, np.ndarray]]],
  rows: Mapping[str, str] = ROWS,
  reference: str = "best",
) -> dict:
  """Returns set -> row -> percent and difference to a row, with interval.

  Images and sweeps are resampled, as the sweeps share their test images
  (`statistics.hierarchical_bootstrap`); of a single sweep, the images alone.
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


def difference(cell: Mapping[str, float]) -> str:
  """Returns a difference with its interval; "" for the reference."""
  if "difference" not in cell:
    return ""
  unclear = " ~" * (cell["low"] <= 0 <= cell["high"])
  ends = f"[{cell['low']:+.2f}, {cell['high']:+.2f}]"
  return f"{cell['difference']:+.2f} {ends}{unclear}"


def markdown(table: dict) -> str:
  """Returns the table of benchmarks/README.md."""

  def cells(row):
    for name in ("test", "corrupted"):
      yield f"{table[name][row]['accuracy']:.1f}"
    for name in ("test", "corrupted"):
      yield difference(table[name][row])

  lines = [
    "| | test | corrupted | test, difference | corrupted, difference |",
    "|---|---|---|---|---|",
  ]
  lines += [
    f"| {ROWS[row]} | {' | '.join(cells(row))} |" for row in table["test"]
  ]
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=pathlib.Path)
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--report", action="store_true")
  parser.add_argument("--runlocal", action="store_true")
  args = parser.parse_args()
  if not args.report:
    if args.workdir is None:
      parser.error("give --workdir, a directory for images and runs")
    workdir = args.workdir.expanduser().absolute()
    name = f"folder:{args.images.absolute()}" if args.images else "cifar10"
    write_images(name, workdir / "images", args.runlocal)
    config = f"--config={CONFIGS / 'finetune' / 'cifar10.py'}:hybrid"
    config += f",images={workdir / 'images'}" + ",runlocal" * args.runlocal
    pretrain(config, workdir / "pretrained")
    answers = {}
    for seed, sweep in enumerate(SWEEPS):
      base = workdir / "pretrained" if sweep != "control" else None
      folder = workdir / f"sweep_{sweep}"
      cook(f"{config},seed={seed}", base, folder, args.runlocal)
      answers[sweep] = correct(folder / "soups")
      record = record_of(answers)
      if not args.runlocal:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
  else:
    record = json.loads(RESULTS.read_text())
  print(f"Sweeps: {len(record['finished'])} of {len(SWEEPS) - 1}\n")
  print(markdown(record["sweeps"]))
  if "control" in record:
    print("\nWithout pretraining:\n")
    print(markdown(record["control"]))


def record_of(answers: Mapping[str, dict]) -> dict:
  """Returns the results of the sweeps that are finished."""
  finished = [sweep for sweep in answers if sweep != "control"]
  record = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "soupjax": sj.__version__,
    "device": jax.devices()[0].device_kind,
    "finished": finished,
    "sweeps": summary([answers[sweep] for sweep in finished]),
  }
  if "control" in answers:
    record["control"] = summary([answers["control"]])
  return record


if __name__ == "__main__":
  main()
