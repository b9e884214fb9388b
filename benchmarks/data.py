# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast does the input pipeline read, next to what Pillow can decode?

python benchmarks/data.py [--rounds=7]

Makes JPEGs of ImageNet's usual size (500 x 375, about 110 kB) and measures, in
turns within one run: Pillow decoding alone (the limit), decoding with a random
crop to 224 px and a flip by hand, and `train_loader` doing the same, batches
and all. Prints images a second, and medians of the ratios to the limit.
"""

import argparse
import io
import itertools
import statistics
import time

import numpy as np
from PIL import Image

from soupjax import data

PREPROCESS = "inception_crop(224)|flip_lr"
IMAGES, BATCH = 64, 32


def make_jpeg(seed: int) -> bytes:
  """A picture with detail at all scales, as photographs have."""
  rng = np.random.default_rng(seed)
  picture = np.zeros((375, 500, 3))
  for scale in (1, 2, 4, 8, 16, 32, 64, 128):
    small = rng.normal(size=(375 // scale + 2, 500 // scale + 2, 3))
    for c in range(3):
      layer = Image.fromarray(small[..., c].astype(np.float32))
      layer = layer.resize((500, 375), Image.Resampling.BICUBIC)
      picture[..., c] += np.asarray(layer) * scale**0.35
  low, high = np.percentile(picture, (1, 99))
  pixels = np.clip((picture - low) / (high - low) * 255, 0, 255)
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=92)
  return file.getvalue()


class Jpegs(data.Source):
  def __init__(self, encoded: list[bytes]):
    super().__init__("jpegs", len(encoded), 1)
    self._encoded = encoded
    self.reads = itertools.count()

  def _read(self, index):
    next(self.reads)
    return self._encoded[index], 0


def speed(work) -> float:
  """Images a second of CPU time, all threads together: that is per core."""
  begun = time.process_time()
  images = work()
  return images / (time.process_time() - begun)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  encoded = [make_jpeg(i) for i in range(IMAGES)]
  size = sum(map(len, encoded)) / IMAGES / 1000
  print(f"{IMAGES} JPEGs of 500 x 375 pixels, {size:.0f} kB on average")
  preprocess = data.Preprocess(PREPROCESS)

  def decode_only():
    for one in encoded:
      Image.open(io.BytesIO(one)).load()
    return IMAGES

  def preprocess_only():
    rng = np.random.default_rng(0)
    for one in encoded:
      preprocess(one, rng)
    return IMAGES

  def pipeline():
    source = Jpegs(encoded)
    loader = data.train_loader(
      source, batch_size=BATCH, seed=0, preprocess=PREPROCESS
    )
    for _ in range(2 * IMAGES // BATCH):
      next(loader)
    loader.close()
    # With what was read ahead, which took its time too.
    return next(source.reads)

  ways = {
    "Pillow, decoding alone": decode_only,
    "Preprocess": preprocess_only,
    "train_loader": pipeline,
  }
  for work in ways.values():
    work()  # Imports, and whatever is only done once.
  speeds = {name: [] for name in ways}
  for _ in range(args.rounds):
    for name, work in ways.items():
      speeds[name].append(speed(work))
  limit, *_ = speeds.values()
  for name, found in speeds.items():
    ratio = statistics.median(a / b for a, b in zip(found, limit, strict=True))
    print(
      f"{name}: {statistics.median(found):.0f} images/s a core, "
      f"{ratio:.2f} of decoding alone"
    )


if __name__ == "__main__":
  main()
