# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits that come with scikit-learn: 1,797 real images, offline.

They are the test half of the UCI set "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak, 1998), 8 x 8 pixels, in 14 runs of one to several
writers each. Splits follow the runs:

  runs 0-4    the source: pretraining only
  runs 5-11   the target, shuffled by the seed: fine-tuning, minival and test
  runs 12-13  writers that nothing else has seen: a natural shift

So no writer of the source is in the target, and the new writers are in neither.
The other shifts are made from the test images, and only from them.
"""

from collections.abc import Callable
import dataclasses

import numpy as np
import scipy.ndimage

from soupjax.data.dataset import Dataset

# First image of every run of writers, and the end.
_RUNS = (
  (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)
) + (1797,)
_SHIFT_SEED = 2203_05482


@dataclasses.dataclass(frozen=True)
class Digits:
  """The digits, split.

  Attributes:
    pretrain: the source.
    train: for fine-tuning.
    minival: held out of fine-tuning; every choice is made on it.
    test: looked at once, for the report.
    shifts: images like those of test, but changed, or by other writers.
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
    """Everything that models are evaluated on, minival first."""
    return (self.minival, self.test, *self.shifts)


def load_digits(
  *, seed: int = 0, num_train: int = 100, num_minival: int = 300
) -> Digits:
  """Loads and splits the digits.

  Args:
    seed: of the shuffling of the target.
    num_train: images to fine-tune on.
    num_minival: images to make choices on; the rest of the 899 is test.

  Returns:
    The splits; images are (n, 16, 16, 1), bilinearly doubled, in [-1, 1].

  Raises:
    ValueError: if the split leaves less than 100 images for test.
    ImportError: if scikit-learn is missing, saying how to install it.
  """
  try:
    import sklearn.datasets
  except ImportError as e:
    raise ImportError(
      "The digits come with scikit-learn: pip install 'soupjax[demo]'."
    ) from e
  raw = sklearn.datasets.load_digits()
  images = np.stack([_double(image / 16.0) for image in raw.images])
  labels = raw.target.astype(np.int32)

  source = np.arange(_RUNS[0], _RUNS[5])
  target = np.arange(_RUNS[5], _RUNS[12])
  new_writers = np.arange(_RUNS[12], _RUNS[14])
  left = len(target) - num_train - num_minival
  if num_train < 1 or num_minival < 1 or left < 100:
    raise ValueError(
      f"num_train={num_train} and num_minival={num_minival} leave {left} of "
      f"{len(target)} images for test: keep at least 100."
    )
  order = np.random.default_rng(seed).permutation(target)
  train, minival, test = np.split(order, [num_train, num_train + num_minival])

  def dataset(name, indices, change=None):
    pixels = images[indices]
    if change is not None:
      rng = np.random.default_rng(_SHIFT_SEED)
      pixels = np.stack([change(rng, p) for p in pixels])
    pixels = np.clip(pixels, 0, 1) * 2 - 1
    return Dataset(
      f"digits/{name}", pixels[..., None].astype(np.float32), labels[indices]
    )

  return Digits(
    pretrain=dataset("pretrain", source),
    train=dataset("train", train),
    minival=dataset("minival", minival),
    test=dataset("test", test),
    shifts=(
      *(dataset(name, test, change) for name, change in SHIFTS.items()),
      dataset("new_writers", new_writers),
    ),
  )


def _double(image: np.ndarray) -> np.ndarray:
  """Doubles the resolution, bilinearly, pixel centres in place."""
  return scipy.ndimage.zoom(
    image, 2, order=1, mode="nearest", grid_mode=True, prefilter=False
  )


# What follows changes one image, (16, 16) in [0, 1], ink high.


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
