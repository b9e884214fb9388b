# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the speed of the input pipeline with that of decoding by Pillow.

python benchmarks/data.py [--rounds=150]

Makes JPEGs of ImageNet's usual size (500 x 375, about 110 kB) and measures in
turns: decoding alone by Pillow (the limit) and by OpenCV; decoding, a random
crop to 224 px and a flip; and `train_loader` doing the same and forming
batches. A turn has 8 images, so that other load on the machine affects all
alike. Prints images per second of CPU time, that is per core, and medians of
the ratios to the limit. Needs OpenCV, which the method "linear" uses.
"""

import argparse
import functools
import io
import itertools
import os
import random
import statistics
import sys
import time

import cv2
import numpy as np
from PIL import Image

from soupjax import data

METHODS = ("bilinear", "linear")
IMAGES, BATCH = 64, 8


def make_jpeg(seed: int) -> bytes:
  """Returns a JPEG of 500 x 375 pixels with detail at all scales."""
  rng = np.random.default_rng(seed)
  picture = np.zeros((375, 500, 3))
  for scale in (1, 2, 4, 8, 16, 32, 64, 128):
    small = rng.normal(size=(375 // scale + 2, 500 // scale + 2, 3))
    for c in range(3):
      layer = Image.fromarray(small[..., c].astype(np.float32))
      layer = layer.resize((500, 375), Image.Resampling.BICUBIC)
      picture[..., c] += np.asarray(layer) * scale**0.15
  low, high = np.percentile(picture, (1, 99))
  pixels = np.clip((picture - low) / (high - low) * 255, 0, 255)
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=92)
  return file.getvalue()


class Jpegs(data.Source):
  def __init__(self, encoded: list[bytes]):
    # Grain's shuffle takes 9 ms per index for 16 examples and less than 0.1 ms
    # for thousands, so the source claims to be as large as real datasets.
    super().__init__("jpegs", 1_000_000, 1)
    self._encoded = encoded

  def _read(self, index):
    return self._encoded[index % IMAGES], 0


def seconds(work) -> float:
  """Returns the CPU seconds of a call."""
  begun = time.process_time()
  work()
  return time.process_time() - begun


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=150)
  args = parser.parse_args()
  if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    # Otherwise, depending on what ran before, glibc returns memory to the
    # system after each image, and page faults may double the decoding time.
    os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**30)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**30)
    os.execv(sys.executable, [sys.executable, *sys.argv])
  encoded = [make_jpeg(i) for i in range(IMAGES)]
  size = sum(map(len, encoded)) / IMAGES / 1000
  print(f"{IMAGES} JPEGs of 500 x 375 pixels, {size:.0f} kB on average")

  turn = itertools.count()

  def next_images():
    start = next(turn) * BATCH % IMAGES
    return encoded[start : start + BATCH]

  def decode_only():
    for jpeg in next_images():
      Image.open(io.BytesIO(jpeg)).load()

  def opencv_only():
    for jpeg in next_images():
      cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)

  def preprocess_only(preprocess):
    for i, jpeg in enumerate(next_images()):
      preprocess(jpeg, np.random.default_rng((next(turn), i)))

  ways = {
    "Pillow, decoding alone": decode_only,
    "OpenCV, decoding alone": opencv_only,
  }
  for method in METHODS:
    text = f"inception_crop(224, method={method!r})|flip_lr"
    ways[f"Preprocess, {method}"] = functools.partial(
      preprocess_only, data.Preprocess(text)
    )
    # No threads: nothing is read ahead while something else is measured.
    loader = data.train_loader(
      Jpegs(encoded), batch_size=BATCH, seed=0, preprocess=text, num_threads=0
    )
    ways[f"train_loader, {method}"] = functools.partial(next, loader)
  for work in ways.values():
    work()  # Includes imports and other work that is done only once.
  spent = {name: [] for name in ways}
  order = list(ways)
  for _ in range(args.rounds):
    random.shuffle(order)
    for name in order:
      spent[name].append(seconds(ways[name]))
  limit = spent["Pillow, decoding alone"]
  for name, found in spent.items():
    ratio = statistics.median(b / a for a, b in zip(found, limit, strict=True))
    print(
      f"{name}: {BATCH / statistics.median(found):.0f} images/s per core, "
      f"{ratio:.2f} relative to decoding alone"
    )


if __name__ == "__main__":
  main()
