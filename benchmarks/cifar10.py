# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups on CIFAR-10, seen through a fixed camera: sweeps and a table.

python benchmarks/cifar10.py --workdir=runs/cifar10 [--images=DIR] [--sweeps=3]

DIR has train/CLASS/*.jpg and test/CLASS/*.jpg, or train.tar and test.tar;
without it, CIFAR-10 is that of TFDS. A small ViT is pretrained on half of train
with broad augmentation (configs/finetune/cifar10.py). Then 16 models are
fine-tuned from it on 5,000 other images, seen through a camera with less
contrast and more noise; 5,000 more are held out, and every choice is made on
them. Soups are evaluated on test through the same camera, and on corrupted
test images. Each sweep has hyperparameters and seeds of its own. What is there
is not done again. Writes results/cifar10.json. About two CPU hours; --runlocal
takes minutes and shows nothing but that it works.
"""

import argparse
from collections.abc import Callable
import io
import json
import pathlib
import platform
import subprocess
import sys
import tarfile

import jax
import numpy as np
from PIL import Image, ImageFilter

import soupjax as sj
from soupjax import data, report

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parent / "configs"


# Corruptions: self-made, in the manner of arXiv 1903.12261 at middle severity.
# Each takes uint8 (32, 32, 3) and a generator, and gives uint8 back.


def _noise(image, rng):
  return np.clip(image + rng.normal(0, 25, image.shape), 0, 255)


def _blur(image, rng):
  del rng
  return Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))


def _contrast(image, rng):
  del rng
  return (image - image.mean()) * 0.4 + image.mean()


def _brightness(image, rng):
  del rng
  return np.clip(image + 60.0, 0, 255)


def _pixelate(image, rng):
  del rng
  small = Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)
  return small.resize((32, 32), Image.Resampling.NEAREST)


def _jpeg(image, rng):
  del rng
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=12)
  return Image.open(file)


CORRUPTIONS = {
  "noise": _noise,
  "blur": _blur,
  "contrast": _contrast,
  "brightness": _brightness,
  "pixelate": _pixelate,
  "jpeg": _jpeg,
}


def camera(image: np.ndarray, rng) -> np.ndarray:
  """Sees a picture with 0.7 of its contrast and noise of 15 of 255 levels."""
  picture = (np.asarray(image, np.float64) - 127.5) * 0.7 + 127.5
  picture += rng.normal(0, 15, picture.shape)
  return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def write_tar(
  path: pathlib.Path, source: data.Source, change: Callable
) -> None:
  """Writes images as LABEL/NUMBER.png, each changed by its own draws."""
  if path.exists():
    return
  part = path.with_suffix(".part")
  with tarfile.open(part, "w") as tar:
    for i in range(len(source)):
      example = source[i]
      pixels = np.asarray(data.Preprocess("")(example["image"]))
      pixels = change(pixels, np.random.default_rng(i))
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, "PNG", compress_level=1)
      info = tarfile.TarInfo(f"{example['label']}/{i:05d}.png")
      info.size = file.tell()
      file.seek(0)
      tar.addfile(info, file)
  part.rename(path)


def write_images(name: str, folder: pathlib.Path, short: bool) -> None:
  """Writes all sets that the commands read; `short` ones of 200 images."""
  folder.mkdir(parents=True, exist_ok=True)

  def opened(split):
    source = data.open_source(name, split)
    return data.subset(source, np.arange(200), split) if short else source

  def unchanged(image, rng):
    del rng
    return image

  sets = {
    "pretrain": ("train[:25000]", unchanged),
    "train": ("train[25000:30000]", camera),
    "minival": ("train[45000:]", camera),
    "test": ("test", camera),
  }
  for title, corrupt in CORRUPTIONS.items():
    sets[title] = (
      "test",
      lambda image, rng, corrupt=corrupt: camera(corrupt(image, rng), rng),
    )
  for title, (split, change) in sets.items():
    write_tar(folder / f"{title}.tar", opened(split), change)


def soupjax(*arguments: str) -> None:
  """Runs a command, and shows it."""
  print("soupjax", *arguments, flush=True)
  command = [sys.executable, "-m", "soupjax.main", *arguments]
  subprocess.run(command, check=True)


def accuracies(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
  """Returns model -> set -> accuracy in percent, of one sweep.

  "shifts" is the mean over corruptions. "mean ingredient" and "best
  ingredient", the best by the first metric, stand for the ingredients.
  """
  results = report.read_run(workdir)
  sets = (*results.splits, "shifts")

  def row(model):
    return {name: results.accuracy(model, name) for name in sets}

  members = results.models("ingredient")
  rows = {model: row(model) for model in results.kinds if model not in members}
  means = {k: float(np.mean([row(m)[k] for m in members])) for k in sets}
  return {
    **rows,
    "mean ingredient": means,
    "best ingredient": row(results.best),
  }


def markdown(sweeps: list[dict[str, dict[str, float]]]) -> str:
  """Returns means over sweeps, and differences from the best ingredient."""
  columns = ("test", "shifts")
  lines = [
    "| | test | corrupted | test, difference | corrupted, difference |",
    "|---|---|---|---|---|",
  ]
  for model in sweeps[0]:
    cells = [f"{np.mean([s[model][k] for s in sweeps]):.1f}" for k in columns]
    for k in columns:
      gains = [s[model][k] - s["best ingredient"][k] for s in sweeps]
      cells.append(f"{np.mean(gains):+.2f}")
      if len(gains) > 1:
        error = np.std(gains, ddof=1) / np.sqrt(len(gains))
        cells[-1] += f" ({error:.2f})"
    lines.append(f"| {model} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=pathlib.Path)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--sweeps", type=int, default=1)
  parser.add_argument("--runlocal", action="store_true")
  args = parser.parse_args()
  workdir = args.workdir.expanduser().absolute()
  name = f"folder:{args.images.absolute()}" if args.images else "cifar10"

  # --- Images, pretraining ----------------------------------------------------
  images = workdir / "images"
  write_images(name, images, 200 if args.runlocal else None)
  config = f"--config={CONFIGS / 'finetune' / 'cifar10.py'}:images={images}"
  config += ",runlocal" * args.runlocal
  base = workdir / "pretrained"
  soupjax(
    f"{config},pretrain",
    f"--workdir={base}",
    "--config.data.train=pretrain",
    "--config.data.minival=minival",
  )

  # --- Sweeps and soups -------------------------------------------------------
  tables = []
  tests = ",".join(f"{k}={k}" for k in ("test", *CORRUPTIONS))
  for k in range(args.sweeps):
    sweep, soups = workdir / f"sweep_{k}", workdir / f"soups_{k}"
    soupjax(
      f"{config},seed={k}",
      f"--workdir={sweep}",
      "--sweep",
      f"--config.init.path={base / 'ingredients' / 'last'}",
      "--config.data.train=train",
      "--config.data.minival=minival",
    )
    soupjax(
      f"--config={CONFIGS / 'cook.py'}:sweep={sweep}",
      f"--workdir={soups}",
      f"--config.tests={tests}",
      "--config.cook.metric=loss,prec@1",
      *["--config.cook.learned.steps=2"] * args.runlocal,
    )
    tables.append(accuracies(soups))
  print(markdown(tables))
  if not args.runlocal:
    record = {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "soupjax": sj.__version__,
      "device": jax.devices()[0].device_kind,
      "sweeps": tables,
    }
    results = HERE / "results" / "cifar10.json"
    results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
