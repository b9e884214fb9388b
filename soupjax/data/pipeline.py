# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches for training and evaluation, the same on any number of hosts.

Training is an endless stream of positions: epochs joined without a gap, each
with its own shuffle. The example at a position (`dataset.Stream`) and the
random numbers of its augmentation follow from (seed, position) alone. Batch k
starts at position k * batch_size; process p of P reads the p-th of P equal
blocks of it. So the global batch does not depend on processes, workers or
threads, and the state of the stream is the index of the next batch.
"""

from collections.abc import Iterable, Iterator
import functools
import math
import os
from typing import Any
import warnings

import numpy as np

from soupjax.data.dataset import Stream
from soupjax.data.preprocess import CorruptImage, Preprocess
from soupjax.data.source import Source

Batch = dict[str, np.ndarray]


# This many corrupt images in a row are an error.
_IN_A_ROW = 16


def train_loader(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  preprocess: str,
  num_workers: int = 0,
  num_threads: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  max_corrupt: int = 100,
) -> "TrainLoader":
  """Starts an endless stream of training batches.

  Args:
    source: labelled images.
    batch_size: number of images in a batch over all processes.
    seed: seed of order and augmentation.
    preprocess: operations, such as "inception_crop(224)|flip_lr"; see
      `Preprocess`.
    num_workers: number of processes that read ahead; 0 reads in threads of this
      process, which is enough if most time is spent decoding and resizing.
      Workers are spawned, so a script needs `if __name__ == "__main__":`.
    num_threads: number of threads, each of which reads a batch ahead; by
      default the number of cores, at most 8.
    process_index: index of this process, `jax.process_index()`.
    process_count: number of processes.
    max_corrupt: number of images that may be damaged. Each is replaced by its
      neighbour, and named in a warning; one more is an error.

  Returns:
    The stream; see `TrainLoader`.

  Raises:
    ValueError: if batch_size is not a multiple of process_count, or preprocess
      is wrong or fails on the first image.
  """
  return TrainLoader(
    Reader(source, Preprocess(preprocess), seed),
    _Share(batch_size, process_index, process_count),
    num_workers=num_workers,
    num_threads=num_threads,
    max_corrupt=max_corrupt,
  )


def eval_batches(
  source: Source,
  *,
  batch_size: int,
  preprocess: str,
  num_threads: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  max_corrupt: int = 100,
) -> "EvalBatches":
  """Iterates over every example once, in order, in batches of one size.

  Args:
    source: labelled images.
    batch_size: number of images in a batch over all processes.
    preprocess: deterministic operations, such as
      "resize_small(256)|central_crop(224)|value_range(-1, 1)".
    num_threads: number of threads, each of which reads a batch ahead; by
      default the number of cores, at most 8.
    process_index: index of this process.
    process_count: number of processes.
    max_corrupt: number of images that may be damaged. Each is masked, and named
      in a warning; one more is an error.

  Returns:
    Batches that can be iterated over repeatedly; see `EvalBatches`.

  Raises:
    ValueError: if batch_size is not a multiple of process_count, or preprocess
      is wrong, random or fails on the first image.
  """
  parsed = Preprocess(preprocess)
  if parsed.random_ops:
    raise ValueError(
      f"Evaluation must not draw random numbers, but {preprocess!r} does: use "
      "resize, resize_small or central_crop."
    )
  return EvalBatches(
    Reader(source, parsed, 0),
    _Share(batch_size, process_index, process_count),
    num_threads=num_threads,
    max_corrupt=max_corrupt,
  )


class TrainLoader:
  """An endless iterator of training batches.

  A batch is {"images": (b, height, width, 3) float32, or uint8 if preprocess
  has no `value_range` or `standardize`; "labels": (b,) int32}, where
  b = batch_size / process_count.
  """

  def __init__(self, reader, share, *, num_workers, num_threads, max_corrupt):
    self._reader = reader
    self._share = share
    self._num_workers = num_workers
    self._num_threads = num_threads
    self._corrupt = Corrupt(reader.source, max_corrupt)
    self._stream = Stream(
      reader.source,
      batch_size=share.batch_size,
      seed=reader.seed,
      preprocess=reader.preprocess.text,
    )
    self._batches = None
    reader.blank()

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._batches is None:
      self._batches = self._start()
    batch = next(self._batches)
    self._stream.next_batch += 1
    self._corrupt.add(batch.pop("skipped"))
    return batch

  def get_state(self) -> dict[str, Any]:
    """Returns the state as plain JSON; it is the same on all processes."""
    return self._stream.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from the state of another stream, bit for bit.

    Args:
      state: from `get_state` of this class or of `in_memory.IndexLoader`; the
        number of processes, workers and threads may differ.

    Raises:
      ValueError: if the stream had other data, preprocessing, seed or batch
        size.
    """
    self._stream.set_state(state)
    self.close()

  def close(self) -> None:
    """Stops reading ahead; the next batch starts it again."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def _start(self) -> Iterator[Batch]:
    import grain

    dataset = grain.MapDataset.range(len(self._reader.source)).repeat()
    dataset = dataset.map_with_index(
      functools.partial(_example, self._stream, self._reader)
    )
    dataset = self._share.of(dataset, self._stream.next_batch)
    batches = dataset.to_iter_dataset(_read_options(self._num_threads))
    if self._num_workers:
      _allow_workers()
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._num_workers)
      )
    return iter(batches)


class EvalBatches:
  """All examples once, in equal batches, the same number on each process.

  A batch is {"images": (b, height, width, 3), "labels": (b,) int32, "mask":
  (b,) bool}, where b = batch_size / process_count. The mask is False for
  padding and corrupt examples, whose image is zeros and whose label is 0.
  """

  def __init__(self, reader, share, *, num_threads, max_corrupt):
    self._reader = reader
    self._share = share
    self._num_threads = num_threads
    self._corrupt = Corrupt(reader.source, max_corrupt)
    self._blank = reader.blank()

  def __len__(self) -> int:
    return math.ceil(len(self._reader.source) / self._share.batch_size)

  def __iter__(self) -> Iterator[Batch]:
    import grain

    dataset = grain.MapDataset.range(len(self) * self._share.batch_size)
    dataset = dataset.map(self._example)
    dataset = self._share.of(dataset, 0)
    batches = iter(dataset.to_iter_dataset(_read_options(self._num_threads)))
    try:
      for batch in batches:
        self._corrupt.add(batch.pop("skipped"))
        yield batch
    finally:
      batches.close()

  def _example(self, index: int) -> dict[str, Any]:
    padding = index >= len(self._reader.source)
    example = None if padding else self._reader.read(index)
    missing = example is None
    image, label = (self._blank, 0) if missing else example
    return {
      "images": image,
      "labels": np.int32(label),
      "mask": not missing,
      "skipped": index if missing and not padding else -1,
    }


def _example(stream: Stream, reader: "Reader", position: int, _: int):
  """Reads the example at a position, here or in a worker process."""
  return reader.train(position, stream.example_at(position))


class Reader:
  """Reads and preprocesses examples; it is sent to worker processes."""

  def __init__(self, source: Source, preprocess: Preprocess, seed: int):
    self.source = source
    self.preprocess = preprocess
    self.seed = seed

  def read(self, index: int, position: int = 0):
    """Returns (image, label), or None if the image is corrupt."""
    example = self.source[index]
    rng = np.random.default_rng((self.seed, position))
    try:
      return self.preprocess(example["image"], rng), example["label"]
    except CorruptImage:
      return None
    except ValueError as e:
      raise ValueError(f"{self.source.describe(index)}: {e}") from e

  def train(self, position: int, index: int) -> dict[str, Any]:
    """Returns the example for a position, or the next that is not corrupt."""
    # A neighbour replaces a corrupt image, so that batches keep their size.
    for offset in range(_IN_A_ROW):
      example = self.read((index + offset) % len(self.source), position)
      if example is not None:
        return {
          "images": example[0],
          "labels": np.int32(example[1]),
          "skipped": index if offset else -1,
        }
    raise ValueError(
      f"{_IN_A_ROW} images in a row cannot be decoded, from "
      f"{self.source.describe(index)} on."
    )

  def blank(self) -> np.ndarray:
    """Returns zeros like the first image, reading it to show errors early."""
    return np.zeros_like(self.train(0, 0)["images"])


class _Share:
  """One process's part of every batch."""

  def __init__(self, batch_size: int, index: int, count: int):
    if not 0 <= index < count:
      raise ValueError(f"process_index {index} must be in [0, {count}).")
    if batch_size < 1 or batch_size % count:
      raise ValueError(
        f"batch_size {batch_size} must be a positive multiple of the "
        f"{count} processes."
      )
    self.batch_size = batch_size
    self.index = index
    self.count = count

  def of(self, examples, first: int):
    """Batches a `grain.MapDataset` for this process, from batch `first` on."""
    blocks = examples.batch(self.batch_size // self.count, batch_fn=_stacked)
    return blocks[self.index + first * self.count :: self.count]


def _stacked(examples: list[dict[str, Any]]) -> Batch:
  """Stacks examples, whose images must have the same shape."""
  check_one_shape(example["images"] for example in examples)
  return {
    key: np.stack([example[key] for example in examples]) for key in examples[0]
  }


def check_one_shape(images: Iterable[np.ndarray]) -> None:
  """Raises ValueError if images differ in shape."""
  shapes = {image.shape for image in images}
  if len(shapes) > 1:
    raise ValueError(
      f"Images of one batch have the shapes {sorted(shapes)}: end preprocess "
      "with an operation that gives all images the same size, such as "
      "resize(224) or central_crop(224)."
    )


class Corrupt:
  """Counts the images that could not be decoded."""

  def __init__(self, source: Source, limit: int):
    self._source = source
    self._limit = limit
    self._seen = set()

  def add(self, skipped: np.ndarray) -> None:
    """Counts new corrupt images (-1: none) and warns; raises over the limit."""
    for index in sorted({int(i) for i in skipped if i >= 0} - self._seen):
      self._seen.add(index)
      where = self._source.describe(index)
      if len(self._seen) > self._limit:
        raise ValueError(
          f"{len(self._seen)} images cannot be decoded, the last of them "
          f"{where}: repair or remove them, or raise max_corrupt="
          f"{self._limit}."
        )
      warnings.warn(
        f"Cannot decode {where}: skipped ({len(self._seen)} of at most "
        f"{self._limit}).",
        stacklevel=3,
      )


def default_threads() -> int:
  """Returns the number of cores, at most 8."""
  return min(os.cpu_count() or 1, 8)


def _read_options(num_threads: int | None):
  import grain

  threads = num_threads or default_threads()
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)


def _allow_workers() -> None:
  # Grain 0.2.18 reads an absl flag when it starts workers, and fails if the
  # flags have not been parsed, as in a notebook.
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
