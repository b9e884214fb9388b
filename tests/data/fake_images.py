# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Small labelled images for tests: in memory, in folders, as a TFDS dataset."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def image(index: int) -> np.ndarray:
  """A (20 + index % 3, 24, 3) image of its own, smooth enough for JPEG."""
  rng = np.random.default_rng(index)
  small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
  return np.asarray(small.resize((24, 20 + index % 3), Image.BILINEAR))


def encoded(index: int, kind: str = "JPEG") -> bytes:
  file = io.BytesIO()
  Image.fromarray(image(index)).save(file, kind, quality=95)
  return file.getvalue()


def write_folder(path: pathlib.Path, counts: dict[str, int]) -> None:
  """Writes CLASS/NN.jpg; the n-th image of all is `encoded(n)`."""
  n = 0
  for name, count in counts.items():
    (path / name).mkdir(parents=True)
    for i in range(count):
      (path / name / f"{i:02d}.jpg").write_bytes(encoded(n))
      n += 1


def write_tar(path: pathlib.Path, folder: pathlib.Path, mode="w") -> None:
  with tarfile.open(path, mode) as archive:
    for name in sorted(p.name for p in folder.iterdir()):
      archive.add(folder / name, arcname=name)
