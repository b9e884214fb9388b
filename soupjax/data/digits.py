# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits that come with scikit-learn: 1,797 real images, offline.

They are the test half of the UCI set "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak, 1998), 8 x 8 pixels, in 14 runs of one or more
writers each. The splits follow these runs:

  runs 0-4    the source: pretraining only
  runs 5-11   the target, shuffled by the seed: fine-tuning, minival and test
  runs 12-13  new writers, in no other split: a natural shift

So no writer of the source is in the target, and the new writers are in neither.
The other shifts are made only from the test images.

There are two datasets: the plain digits (`load_digits`), and noisy digits in a
row (`open_row`), where the middle digit must be recognised between its
neighbours in a noisy image. The second is hard enough that fine-tuning matters.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np
import scipy.ndimage

from soupjax.data.dataset import Dataset
from soupjax.data.source import Source, from_dataset

# The first image of every run of writers, and the number of images.
_RUNS = (
  *(0, 130, 256, 386, 516, 646, 776, 906),
  *(1029, 1157, 1287, 1415, 1545, 1667, 1797),
)
_SOURCE = np.arange(_RUNS[0], _RUNS[5])
_TARGET = np.arange(_RUNS[5], _RUNS[12])
_NEW_WRITERS = np.arange(_RUNS[12], _RUNS[14])
_SHIFT_SEED = 2203_05482


@dataclasses.dataclass(frozen=True)
class Digits:
  """The splits of the digits.

  Attributes:
    pretrain: the source, for pretraining.
    train: images for fine-tuning.
    minival: images held out of fine-tuning; every choice is made on them.
    test: images evaluated once, for the report.
    shifts: changed versions of the test images, and digits by new writers.
  """

  pretrain: Dataset
  train: Dataset
  minival: Dataset
  test: Dataset
  shifts: tuple[Dataset, ...]

  num_classes = 10
  image_shape = (16, 16, 1)

  @property
  def evaluations(self) -> tuple[Dataset, ...]:
    """All datasets that models are evaluated on, minival first."""
    return (self.minival, self.test, *self.shifts)


@functools.cache
def load_digits(
  *, seed: int = 0, num_train: int = 100, num_minival: int = 300
) -> Digits:
  """Loads and splits the digits.

  Args:
    seed: seed of the shuffling of the target.
    num_train: number of images to fine-tune on.
    num_minival: number of images to make choices on; the rest of the 899 is
      test.

  Returns:
    The splits; images are (n, 16, 16, 1) in [-1, 1], upsampled bilinearly by 2.
    All calls with equal arguments share their arrays, which are read-only.

  Raises:
    ValueError: if `num_train` or `num_minival` is below 1, or fewer than 100
      images are left for test.
    ImportError: if scikit-learn is missing, saying how to install it.
  """
  images, labels = _images_and_labels()
  left = len(_TARGET) - num_train - num_minival
  if num_train < 1 or num_minival < 1 or left < 100:
    raise ValueError(
      f"num_train={num_train} and num_minival={num_minival} leave {left} of "
      f"{len(_TARGET)} images for test: keep at least 100."
    )
  order = np.random.default_rng(seed).permutation(_TARGET)
  train, minival, test = np.split(order, [num_train, num_train + num_minival])

  def dataset(name, indices, change=None):
    pixels = images[indices]
    if change is not None:
      rng = np.random.default_rng(_SHIFT_SEED)
      pixels = np.stack([change(rng, p) for p in pixels])
    pixels = np.clip(pixels, 0, 1) * 2 - 1
    made = Dataset(
      f"digits/{name}", pixels[..., None].astype(np.float32), labels[indices]
    )
    for array in (made.images, made.labels):
      array.setflags(write=False)  # All callers share them.
    return made

  return Digits(
    pretrain=dataset("pretrain", _SOURCE),
    train=dataset("train", train),
    minival=dataset("minival", minival),
    test=dataset("test", test),
    shifts=(
      *(dataset(name, test, change) for name, change in SHIFTS.items()),
      dataset("new_writers", _NEW_WRITERS),
    ),
  )


@functools.cache
def _images_and_labels() -> tuple[np.ndarray, np.ndarray]:
  """Returns images (1797, 16, 16) in [0, 1], and labels (1797,) int32."""
  try:
    import sklearn.datasets
  except ImportError as e:
    raise ImportError(
      "The digits come with scikit-learn: pip install 'soupjax[demo]'."
    ) from e
  raw = sklearn.datasets.load_digits()
  images = np.stack([_double(image / 16.0) for image in raw.images])
  return images, raw.target.astype(np.int32)


def _double(image: np.ndarray) -> np.ndarray:
  """Doubles the resolution bilinearly, with half-pixel centres."""
  return scipy.ndimage.zoom(
    image, 2, order=1, mode="nearest", grid_mode=True, prefilter=False
  )


# Each shift changes one image, (16, 16) in [0, 1], where ink is 1.


def _rotate(rng, image):
  degrees = rng.uniform(15, 35) * rng.choice([-1, 1])
  return scipy.ndimage.rotate(image, degrees, reshape=False, order=1)


def _translate(rng, image):
  return scipy.ndimage.shift(image, rng.uniform(-2.5, 2.5, 2), order=1)


def _noise(rng, image):
  return image + 0.3 * rng.standard_normal(image.shape)


def _blur(rng, image):
  del rng
  return scipy.ndimage.gaussian_filter(image, 1.3)


def _stroke(rng, image):
  if rng.random() < 0.5:
    return scipy.ndimage.grey_dilation(image, size=(3, 3))
  return scipy.ndimage.grey_erosion(image, size=(2, 2))


def _contrast(rng, image):
  return rng.uniform(0, 0.5) + rng.uniform(0.25, 0.5) * image


def _occlude(rng, image):
  row, column = rng.integers(0, 12, 2)
  image = image.copy()
  image[row : row + 5, column : column + 5] = 0
  return image


SHIFTS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
  "rotate": _rotate,
  "translate": _translate,
  "noise": _noise,
  "blur": _blur,
  "stroke": _stroke,
  "contrast": _contrast,
  "occlude": _occlude,
}


# Digits in a row. All random numbers follow from the seed of the dataset.

ROW_SPLITS = ("pretrain", "train", "minival", "test", *SHIFTS, "new_writers")
_NUM_TRAIN, _NUM_MINIVAL = 150, 300
_COPIES = 12
_DRAWS = 2
_SENSOR_NOISE = 0.15
# The first element of the seed, for each kind of random numbers.
_SPLIT, _NEIGHBOURS, _SHIFT, _SENSOR = range(4)


def open_row(split: str, *, seed: int = 0) -> Source:
  """Opens noisy digits in a row: the label is that of the middle digit.

  The source ("pretrain") has 12 copies of each image, each with its own
  neighbours: on each side one with probability 0.8, 9 to 14 pixels away. In all
  other splits, images have two neighbours, 9 to 11 pixels away; then the
  shift, if any, changes the whole image, and Gaussian noise with a standard
  deviation of 0.15 of the range is added. Neighbours come from the same split.
  Test, its shifts and the new writers have every image twice, with different
  neighbours and noise: first all images, then all again.

  Args:
    split: one of `ROW_SPLITS`.
    seed: seed of the split of the target, neighbours, shifts and noise.

  Returns:
    Images (16, 16, 3), uint8, where ink is 255; 10 classes.
  """
  images, labels = _images_and_labels()
  base = _base_of(split)
  digits = row_digits(split, seed)

  def rng(kind, name):
    return np.random.default_rng([kind, ROW_SPLITS.index(name), seed])

  # A shift has the same neighbours as test.
  neighbours = rng(_NEIGHBOURS, base)
  if split == "pretrain":
    pictures = _rows(neighbours, images, digits, (9, 14), 0.8)
  else:
    pictures = _rows(neighbours, images, digits, (9, 11), 1.0)
    if split in SHIFTS:
      draw = rng(_SHIFT, split)
      pictures = np.stack([SHIFTS[split](draw, p) for p in pictures])
    sensor = rng(_SENSOR, split).standard_normal(pictures.shape)
    pictures = pictures + _SENSOR_NOISE * sensor
  pixels = np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
  name = "digits_row" + (f":{seed}" if seed else "")
  dataset = Dataset(f"{name}/{split}", pixels[..., None], labels[digits])
  return from_dataset(dataset, 10, class_names=[str(i) for i in range(10)])


def row_digits(split: str, seed: int) -> np.ndarray:
  """Returns the index of the middle digit (of the 1,797) of each example."""
  rng = np.random.default_rng([_SPLIT, 0, seed])
  train, minival, test = np.split(
    rng.permutation(_TARGET), [_NUM_TRAIN, _NUM_TRAIN + _NUM_MINIVAL]
  )
  return {
    "pretrain": np.tile(_SOURCE, _COPIES),
    "train": train,
    "minival": minival,
    "test": np.tile(test, _DRAWS),
    "new_writers": np.tile(_NEW_WRITERS, _DRAWS),
  }[_base_of(split)]


def _base_of(split: str) -> str:
  return "test" if split in SHIFTS else split


def _rows(rng, images, digits, distances, probability) -> np.ndarray:
  """Adds a random neighbour on either side, by the pixel-wise maximum."""
  width = images.shape[2]
  pictures = images[digits]
  # Leaves room for a neighbour to move in from either side.
  padded = np.pad(images, ((0, 0), (0, 0), (width, width)))
  for side in (-1, 1):
    neighbours = rng.choice(digits, len(digits))
    distance = rng.integers(*distances, len(digits), endpoint=True)
    present = rng.random(len(digits)) < probability
    columns = width + np.arange(width) - side * distance[:, None]
    moved = padded[neighbours[:, None], :, columns].swapaxes(1, 2)
    pictures = np.maximum(pictures, moved * present[:, None, None])
  return pictures
