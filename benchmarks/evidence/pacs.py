# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests whether soups win on domains without training images.

python benchmarks/evidence/pacs.py --workdir=runs/pacs --images=PACS \
  --weights=CHECKPOINT [--size=32] [--log_rate=-3.5] [--epochs=5] \
  [--cook=FLAG] [flags of fine-tuning]

PACS has photo.tar, art_painting.tar, cartoon.tar and sketch.tar of CLASS/*.jpg,
or folders of these names. CHECKPOINT is the start: any checkpoint that
`models.pretrained` can read, or one from your own run, such as that of
cifar10.py (runs/cifar10/pretrained/ingredients/last). Further flags, such as
--config.data.eval_ops, are passed to fine-tuning, and those of --cook (give it
once for each flag) to cooking.

Three sweeps of 12 models (pacs_config.py) are fine-tuned on 60 % of the photos
and paintings, after a linear probe. All choices are made on another 20 %. The
test sets, on which nothing is chosen, are the last 20 % ("test"), all cartoons
and all sketches. Each sweep has its own hyperparameters and data order; all
share the split of the images and the probe. The split and the ranges are fixed
before a run: learning rates span a factor of 10 around 10 ** log_rate, and
members train for one to two times the number of epochs. The uniform soup is
DiWA (arXiv 2205.09739), and the greedy soup is its "restricted" selection.

Finished steps are skipped: after an interruption, run the same command again.
Writes ../results/pacs.json after every sweep, and prints the tables of
benchmarks/README.md; --report only prints them. --short takes minutes and only
checks that the script works.
"""

import argparse
from collections.abc import Iterator, Sequence
import json
import pathlib

import common
import numpy as np

from soupjax import data

RESULTS = common.RESULTS / "pacs.json"
SEEDS = (0, 1, 2)
TRAINED, SHIFTS = ("photo", "art_painting"), ("cartoon", "sketch")
# Set -> start and end, in fifths of the photos and paintings.
PARTS = {"train": (0, 3), "minival": (3, 4), "test": (4, 5)}


def members(
  sources: Sequence[data.Source], first: int, last: int, size: int
) -> Iterator[tuple[str, bytes]]:
  """Yields (CLASS/NUMBER.png, content) for `common.write_files`.

  Args:
    sources: one for each domain.
    first: first of five parts of every source; image i is in part i % 5.
    last: number after the last part.
    size: size of the images, in pixels.
  """
  resize = common.resize(size)
  for k, source in enumerate(sources):
    for i in range(len(source)):
      if first <= i % 5 < last:
        name = source.class_names[source.label(i)]
        pixels = resize(source[i]["image"])
        yield f"{name}/{k}{i:05d}.png", common.png(pixels)


def write_images(
  name: str, folder: pathlib.Path, size: int, short: bool
) -> None:
  """Writes all sets that the commands read, with `short` of fewer images."""

  def opened(domain):
    source = data.open_source(name, domain)
    return data.subset(
      source, np.arange(0, len(source), 16 if short else 1), domain
    )

  trained = [opened(domain) for domain in TRAINED]
  for part, (first, last) in PARTS.items():
    path = folder / f"{part}.tar"
    common.write_files(path, members(trained, first, last, size))
  for domain in SHIFTS:
    path = folder / f"{domain}.tar"
    common.write_files(path, members([opened(domain)], 0, 5, size))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=pathlib.Path)
  parser.add_argument("--weights", type=pathlib.Path)
  parser.add_argument("--size", type=int, default=32)
  parser.add_argument("--log_rate", type=float, default=-3.5)
  parser.add_argument("--epochs", type=int, default=5)
  parser.add_argument("--cook", action="append", default=[])
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--report", action="store_true")
  parser.add_argument("--short", action="store_true")
  args, flags = parser.parse_known_args()
  if args.report:
    for name, record in json.loads(RESULTS.read_text("utf-8")).items():
      print(f"From {name}:\n\n{common.shown(record)}\n")
    return
  if None in (args.workdir, args.images, args.weights):
    parser.error("give --workdir, --images (PACS) and --weights (the start)")
  workdir = args.workdir.expanduser().absolute()
  images = workdir / "images"
  name = f"folder:{args.images.absolute()}"
  write_images(name, images, args.size, args.short)
  config = f"--config={common.HERE / 'pacs_config.py'}:images={images}"
  config += f",size={args.size},log_rate={args.log_rate},epochs={args.epochs}"
  config += ",short" * args.short
  sets = ("test", *SHIFTS)
  answers, chosen = {}, {}
  for seed in SEEDS[:1] if args.short else SEEDS:
    folder = workdir / f"sweep_{seed}"
    common.cook(
      f"{config},seed={seed}",
      folder,
      ",".join(f"{name}={name}" for name in sets),
      finetune=[f"--config.init.path={args.weights.absolute()}", *flags],
      cook=[*args.cook, *["--config.cook.learned.steps=2"] * args.short],
    )
    columns = {name: [name] for name in sets}
    answers[str(seed)] = common.correct(folder / "soups", columns)
    chosen[str(seed)] = common.choices(folder / "soups")
    record = common.record_of(answers, chosen)
    if not args.short:
      common.save(RESULTS, workdir.name, record | {"size": args.size})
  print(common.shown(record))


if __name__ == "__main__":
  main()
