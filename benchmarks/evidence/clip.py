# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests whether soups of whole CLIPs win on unseen domains and forget less.

python benchmarks/evidence/clip.py --workdir=runs/clip --images=PACS \
  [--cifar10=DIR] [--clip=DIR]

PACS has photo.tar, art_painting.tar, cartoon.tar and sketch.tar of CLASS/*.jpg,
or folders of these names. DIR of --cifar10 has train.tar and test.tar; without
it, CIFAR-10 is read from TFDS. Needs soupjax[clip].

A tiny CLIP is pretrained from scratch with captions ("a sketch of a dog") on
40 % of PACS, with all four domains and seven classes, and on 10,000 images of
CIFAR-10 (clip_config.py: 800 steps of 128 images of 32 pixels). From it, 8
models are fine-tuned with FLYP (arXiv 2212.00638) on 30 % of the photos and
paintings, of five classes only. All choices, including WiSE-FT's alpha, are
made on another 15 % of them. The test sets, on which nothing is chosen:

  test      the last 15 % of the photos and paintings, five classes
  cartoon, sketch   60 % of the cartoons and sketches, five classes
  unseen    60 % of all domains, the two other classes, zero-shot
  others    2,000 test images of CIFAR-10, its eight other classes, zero-shot

All these domains and classes occur in pretraining, as those of most test sets
do for a real CLIP. Each of three seeds has its own pretraining, data order and
sweep. Fixed before the first run: the classes held out, elephant and horse,
which look alike; and the ranges of random hyperparameters, with learning rates
from 1e-4 to 1e-3, weight decay from 1e-3 to 0.3, and 5 to 10 epochs. The
control is seed 0's sweep from random weights, in which soups should not win.

With --clip=DIR, a real CLIP (docs/clip.md) replaces pretraining and control,
images have --size=224 pixels, and learning rates are from 3e-6 to 3e-5. A real
CLIP may have seen the test images in pretraining.

Finished steps are skipped: after an interruption, run the same command again.
Writes ../results/clip.json after every sweep, and prints the tables of
benchmarks/README.md; --report only prints them. Takes about ten CPU minutes per
seed; --short takes minutes and only checks that the script works.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import json
import pathlib

import clip_config
import common

from soupjax import data

RESULTS = common.RESULTS / "clip.json"
SEEDS = ("0", "1", "2")
UNSEEN = ("elephant", "horse")
# Domain -> the word for it in captions.
DOMAINS = {
  "photo": "photo",
  "art_painting": "painting",
  "cartoon": "cartoon",
  "sketch": "sketch",
}
# Ends of the parts of every domain, in percent: pretraining (start, end of
# training, end of held-out images), train and minival; the rest is test.
CAPTIONED, TRAIN, MINIVAL = (0, 38, 40), 70, 85
# Splits of CIFAR-10: pretraining, its held-out images, and test.
SMALL = ("train[:10000]", "train[10000:10400]", "test[:2000]")
# Test set -> its path below the folder of images.
TESTS = {
  "test": "test",
  "cartoon": "cartoon",
  "sketch": "sketch",
  "unseen": "unseen/pacs",
  "others": "others/cifar10",
}
ROWS = common.ROWS | {
  "pretrained": "zero-shot, the start",
  "wise_ft_0.50": "WiSE-FT, alpha 0.5",
}

# Source, index and caption word of an image.
Image = tuple[data.Source, int, str]


# --- Images -------------------------------------------------------------------


def choose(
  sources: Iterable[tuple[data.Source, str]],
  start: float,
  stop: float,
  without: Sequence[str] = (),
) -> list[Image]:
  """Returns the images from `start` to `stop` percent of every source.

  Args:
    sources: the sources, each with the word for its domain.
    start: position of the first image, in percent.
    stop: position after the last image, in percent.
    without: classes to leave out.
  """
  chosen = []
  for source, word in sources:
    first, last = (round(p / 100 * len(source)) for p in (start, stop))
    chosen += [
      (source, i, word)
      for i in range(first, last)
      if _name(source, i) not in without
    ]
  return chosen


def _name(source: data.Source, index: int) -> str:
  return source.class_names[source.label(index)]


def members(
  images: Sequence[Image], size: int, captions: bool
) -> Iterator[tuple[str, bytes]]:
  """Yields names and contents of files, for `common.write_files`.

  Args:
    images: from `choose`.
    size: size of the images, in pixels.
    captions: whether to write NUMBER.png, .cls and .txt (WebDataset) instead of
      CLASS/NUMBER.png.
  """
  resize = common.resize(size)
  for k, (source, index, word) in enumerate(images):
    name = _name(source, index)
    pixels = resize(source[index]["image"])
    if captions:
      yield f"{k:05d}.cls", name.encode()
      yield f"{k:05d}.txt", f"a {word} of a {name}".encode()
    folder = "" if captions else f"{name}/"
    yield f"{folder}{k:05d}.png", common.png(pixels)


def write_images(
  pacs_name: str, cifar_name: str, folder: pathlib.Path, size: int, short: bool
) -> None:
  """Writes all sets that the commands read and the vocabulary of captions."""
  domains = {k: (data.open_source(pacs_name, k), w) for k, w in DOMAINS.items()}
  every = list(domains.values())
  photos = [domains["photo"], domains["art_painting"]]
  seen = set(every[0][0].class_names) - set(UNSEEN)
  begin, held_out, end = CAPTIONED
  small = [(data.open_source(cifar_name, s), "photo") for s in SMALL]
  sets = {
    "captions/train-000000": choose(every, begin, held_out)
    + choose(small[:1], 0, 100),
    "captions/minival-000000": choose(every, held_out, end)
    + choose(small[1:2], 0, 100),
    "seen/train": choose(photos, end, TRAIN, UNSEEN),
    "seen/minival": choose(photos, TRAIN, MINIVAL, UNSEEN),
    "seen/test": choose(photos, MINIVAL, 100, UNSEEN),
    "seen/cartoon": choose([domains["cartoon"]], end, 100, UNSEEN),
    "seen/sketch": choose([domains["sketch"]], end, 100, UNSEEN),
    "unseen/pacs": choose(every, end, 100, seen),
    "others/cifar10": choose(small[2:], 0, 100, [*seen, *UNSEEN]),
  }
  for name, images in sets.items():
    if short:  # A few images of every domain.
      images = images[:: max(1, len(images) // 120)]
    path = folder / f"{name}.tar"
    common.write_files(path, members(images, size, "captions" in name))
  names = {n for source, _ in (*every, *small) for n in source.class_names}
  write_vocabulary(folder / "vocabulary", [f"a {n}" for n in sorted(names)])


def write_vocabulary(folder: pathlib.Path, texts: Sequence[str]) -> None:
  """Trains a byte-pair encoding on the words of captions."""
  import tokenizers

  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(end_of_word_suffix="</w>")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=1000,
    special_tokens=["<|startoftext|>", "<|endoftext|>"],
    initial_alphabet=[chr(c) for c in range(ord("a"), ord("z") + 1)],
    end_of_word_suffix="</w>",
    show_progress=False,
  )
  prompts = clip_config.TEMPLATES.replace("|", " ").replace("{}", "")
  tokenizer.train_from_iterator([prompts, *texts], trainer)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))


# --- Runs ---------------------------------------------------------------------


def tests_of(images: pathlib.Path) -> str:
  """Returns the value of the cooking setting `tests`."""
  return ",".join(
    f"{name}=folder:{images}/{place}:names=own"
    if "/" in place
    else f"{name}={place}"
    for name, place in TESTS.items()
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=pathlib.Path)
  parser.add_argument("--cifar10", type=pathlib.Path)
  parser.add_argument("--clip", type=pathlib.Path)
  parser.add_argument("--size", type=int)
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--report", action="store_true")
  parser.add_argument("--short", action="store_true")
  args = parser.parse_args()
  if args.report:
    if not RESULTS.exists():
      parser.error(f"there is no {RESULTS}: run the benchmark first")
    print(common.shown(json.loads(RESULTS.read_text("utf-8")), ROWS))
    return
  if args.workdir is None or args.images is None:
    parser.error("give --workdir (for images and runs) and --images (PACS)")
  workdir = args.workdir.expanduser().absolute()
  size = args.size or (224 if args.clip else 32)
  small = f"folder:{args.cifar10.absolute()}" if args.cifar10 else "cifar10"
  images = workdir / "images"
  write_images(
    f"folder:{args.images.absolute()}", small, images, size, args.short
  )
  config = (
    f"--config={common.HERE / 'clip_config.py'}:images={images},size={size}"
  )
  config += ",clip" * bool(args.clip) + ",short" * args.short
  sweeps = SEEDS[:1] if args.short else SEEDS
  if not args.clip:
    sweeps = (sweeps[0], "control", *sweeps[1:])
  name = args.clip.name if args.clip else "a tiny CLIP"
  answers, chosen = {}, {}
  for sweep in sweeps:
    seed = 0 if sweep == "control" else int(sweep)
    if args.clip:
      start = str(args.clip.absolute())
    elif sweep == "control":
      start = ""
    else:
      base = workdir / f"pretrained_{seed}"
      common.soupjax(f"{config},seed={seed},pretrain", f"--workdir={base}")
      start = str(base / "ingredients" / "last")
    folder = workdir / f"sweep_{sweep}"
    common.cook(
      f"{config},seed={seed}",
      folder,
      tests_of(images),
      finetune=[f"--config.init.path={start}"],
      cook=[
        "--config.cook.learned.granularities=()",
        f"--config.cook.wise_ft_points={3 if args.short else 11}",
      ],
    )
    soups = folder / "soups"
    answers[sweep] = common.correct(
      soups, {name: [name] for name in TESTS}, ROWS
    )
    chosen[sweep] = common.choices(soups)
    record = common.record_of(answers, chosen, ROWS) | {"start": name}
    if not args.short:
      RESULTS.write_text(json.dumps(record, indent=1) + "\n")
  print(common.shown(record, ROWS))


if __name__ == "__main__":
  main()
