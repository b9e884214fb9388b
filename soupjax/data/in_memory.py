# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training sets held in memory: decoded once, drawn by index.

The order is that of `pipeline.TrainLoader`, so a run has the same batches
whether its data is held in memory or not, and may be resumed either way. Since
images are preprocessed only once, random operations belong on the device; see
`batch_ops`.
"""

from concurrent import futures
import dataclasses
from typing import Any

import numpy as np

from soupjax.data import pipeline
from soupjax.data.dataset import Stream
from soupjax.data.preprocess import Preprocess
from soupjax.data.source import Source

_CHUNK = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
  """A preprocessed set in memory.

  Attributes:
    name: name of the source.
    images: (n, height, width, 3), float32 or uint8 as `preprocess` returns.
    labels: (n,) int32.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)


def bytes_needed(source: Source, preprocess: str) -> int:
  """Returns the bytes that `hold` would allocate; reads one image.

  Raises:
    ValueError: if preprocess is wrong or fails on the first image.
  """
  image = pipeline.Reader(source, Preprocess(preprocess), 0).blank()
  return len(source) * (image.nbytes + np.dtype(np.int32).itemsize)


def check_deterministic(preprocess: str) -> None:
  """Rejects random operations, which would be drawn only once.

  Raises:
    ValueError: naming every random operation.
  """
  if random_ops := Preprocess(preprocess).random_ops:
    raise ValueError(
      f"train_ops={preprocess!r} draws random numbers in "
      f"{', '.join(random_ops)}, but data in memory is preprocessed only once: "
      "move random operations into data.batch_ops."
    )


def hold(
  source: Source,
  preprocess: str,
  *,
  num_threads: int | None = None,
  max_corrupt: int = 100,
) -> Held:
  """Reads and preprocesses all examples.

  Args:
    source: labelled images.
    preprocess: deterministic operations that give all images the same shape.
    num_threads: number of threads; by default the number of cores, at most 8.
    max_corrupt: number of images that may be damaged. Each is replaced by its
      neighbour, as in `pipeline.train_loader`, and named in a warning; one more
      is an error.

  Raises:
    ValueError: if preprocess is random or wrong, images differ in shape, or too
      many are damaged.
  """
  check_deterministic(preprocess)
  reader = pipeline.Reader(source, Preprocess(preprocess), 0)
  blank = reader.blank()
  images = np.empty((len(source), *blank.shape), blank.dtype)
  labels = np.empty(len(source), np.int32)
  corrupt = pipeline.Corrupt(source, max_corrupt)

  def read(start: int) -> np.ndarray:
    stop = min(start + _CHUNK, len(source))
    skipped = []
    for index in range(start, stop):
      example = reader.train(0, index)
      pipeline.check_one_shape((blank, example["images"]))
      images[index], labels[index] = example["images"], example["labels"]
      skipped.append(example["skipped"])
    return np.array(skipped)

  pool = futures.ThreadPoolExecutor(num_threads or pipeline.default_threads())
  try:
    for skipped in pool.map(read, range(0, len(source), _CHUNK)):
      corrupt.add(skipped)
  finally:
    pool.shutdown(cancel_futures=True)
  return Held(source.name, images, labels)


class IndexLoader:
  """An endless stream of indices, in the order of `pipeline.TrainLoader`."""

  def __init__(
    self, source: Source | Held, *, batch_size: int, seed: int, preprocess: str
  ):
    """Starts at batch 0.

    Args:
      source: the set, held in memory or not.
      batch_size: number of images in a batch over all processes.
      seed: seed of the order.
      preprocess: the operations that the held images were preprocessed with.

    Raises:
      ValueError: if batch_size or seed is out of range.
    """
    self._batch_size = batch_size
    self._stream = Stream(
      source, batch_size=batch_size, seed=seed, preprocess=preprocess
    )

  def next_indices(self, count: int = 1) -> np.ndarray:
    """Draws the next batches.

    Args:
      count: number of batches.

    Returns:
      (count, batch_size) int32 indices of examples, over all processes.
    """
    first = self._stream.next_batch * self._batch_size
    positions = range(first, first + count * self._batch_size)
    indices = np.fromiter(map(self._stream.example_at, positions), np.int32)
    self._stream.next_batch += count
    return indices.reshape(count, self._batch_size)

  def get_state(self) -> dict[str, Any]:
    """Returns the state as plain JSON; see `TrainLoader.get_state`."""
    return self._stream.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from a state of this class or of a `TrainLoader`.

    Raises:
      ValueError: if the stream had other data, preprocessing, seed or batch
        size.
    """
    self._stream.set_state(state)

  def close(self) -> None:
    """Does nothing; it is here because a `TrainLoader` has threads to stop."""
