# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches of an evaluation set, decoded once if they fit in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import sharding

Batch = Mapping[str, Any]
# A cache of at most this many bytes is also kept on the devices.
_ON_DEVICES = 1e9


def forward_of(model: Any) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns a function of parameters and images that returns logits.

  Args:
    model: a Linen module that returns logits first, or already such a function.
  """
  if not hasattr(model, "apply"):
    return model

  def forward(params, images):
    return model.apply({"params": params}, images)[0]

  return forward


def mapped(
  function: Callable[..., dict[str, jax.Array]],
  batches: Iterable[Batch],
  mesh: jax.sharding.Mesh | None,
) -> Callable[..., dict[str, np.ndarray]]:
  """Compiles a function to apply to all images of a set.

  Args:
    function: takes arguments, a batch of images and their labels. Returns
      arrays by name whose first axis is that of the images.
    batches: such as `CachedBatches`.
    mesh: the mesh on which the batches are, or None.

  Returns:
    A function of the arguments. It returns these arrays for all images, on the
    host, in the order of the set, in every process.
  """

  @jax.jit
  def program(batch, *arguments, **keywords):
    images = batch["images"], batch["labels"]
    outputs = function(*arguments, *images, **keywords)
    outputs = {**outputs, "position": batch["position"]}
    if mesh is not None:
      outputs = jax.lax.with_sharding_constraint(
        outputs, sharding.replicated(mesh)
      )
    return outputs

  def run(*arguments, **keywords):
    parts = [
      jax.device_get(program(batch, *arguments, **keywords))
      for batch in batches
    ]
    outputs = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    position = outputs.pop("position")
    order = np.argsort(position, kind="stable")
    order = order[position[order] >= 0]  # Without padding.
    return {key: values[order] for key, values in outputs.items()}

  return run


class CachedBatches:
  """An iterable of batches on the devices: "images", "labels", "position".

  The position of an example is its index in the set, or -1 for padding.

  Attributes:
    cached: this process's examples without padding; None unless in memory.
    order: rows of `cached` in the order in which they go into batches; None for
      the order of the set.
  """

  def __init__(
    self,
    batches: Iterable[Batch],
    *,
    name: str,
    mesh: jax.sharding.Mesh | None,
    cache_gb: float,
  ):
    """Reads nothing yet; the arguments are those of `Evaluator`."""
    self._batches, self._name, self._mesh = batches, name, mesh
    self._room = 1e9 * cache_gb
    # Number of batches, and of this process's examples in each.
    self._shape = (0, 0)
    self._on_devices: dict[int, Any] = {}
    self.cached: dict[str, np.ndarray] | None = None
    self.order: np.ndarray | None = None

  def fill(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
    """Caches (n, ...) images and (n,) labels, for batches of `size`."""
    self._shape = -(-len(images) // size), size
    position = np.arange(len(images), dtype=np.int32)
    self.cached = {"images": images, "labels": labels, "position": position}

  def reorder(self, order: np.ndarray) -> None:
    """Makes batches from the cache in another order of its rows."""
    self.order, self._on_devices = order, {}

  def examples(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns this process's images and labels, without padding."""
    if self.cached is not None:
      return self.cached["images"], self.cached["labels"]
    parts = [
      (batch["images"][batch["mask"]], batch["labels"][batch["mask"]])
      for batch in self._batches
    ]
    images, labels = zip(*parts)
    return np.concatenate(images), np.concatenate(labels)

  def __iter__(self) -> Iterator[Batch]:
    """Yields batches in the current order."""
    if self.cached is None:
      yield from self._read()
      return
    fits = self.cached["images"].nbytes <= _ON_DEVICES
    for k in range(self._shape[0]):
      batch = self._on_devices.get(k)
      if batch is None:
        batch = self._put(self._cut(k))
        if fits:
          self._on_devices[k] = batch
      yield batch

  def abstract(self, count: int, shape: Sequence[int]) -> Batch:
    """Returns shapes and shardings of a batch; see `Evaluator`."""
    place = None if self._mesh is None else sharding.along(self._mesh, "data")
    rows = jax.ShapeDtypeStruct((count,), np.int32, sharding=place)
    images = (count, *shape)
    return {
      "images": jax.ShapeDtypeStruct(images, np.float32, sharding=place),
      "labels": rows,
      "position": rows,
    }

  def _cut(self, k: int) -> dict[str, np.ndarray]:
    """Returns batch `k` of the cache, padded."""
    size = self._shape[1]
    rows = slice(k * size, (k + 1) * size)
    if self.order is not None:
      rows = self.order[rows]
    batch = {key: x[rows] for key, x in self.cached.items()}
    if missing := size - len(batch["labels"]):
      for key, x in batch.items():
        fill = np.full((missing, *x.shape[1:]), -(key == "position"), x.dtype)
        batch[key] = np.concatenate([x, fill])
    return batch

  def _read(self) -> Iterator[Batch]:
    """Yields batches as they are decoded; fills the cache if they fit."""
    parts: list[dict[str, np.ndarray]] = []
    process, processes = 0, 1
    if self._mesh is not None:
      process, processes = jax.process_index(), jax.process_count()
    count, size, fits = 0, 0, False
    for k, decoded in enumerate(self._batches):
      mask, size = np.asarray(decoded["mask"]), len(decoded["labels"])
      first = (k * processes + process) * size
      position = np.where(mask, first + np.arange(size), -1)
      batch = {
        "images": np.asarray(decoded["images"]),
        "labels": np.asarray(decoded["labels"], np.int32),
        "position": position.astype(np.int32),
      }
      if k == 0:
        fits = self._fits(batch["images"].nbytes)
      if fits:
        parts.append({key: x[mask] for key, x in batch.items()})
      count = k + 1
      yield self._put(batch)
    if parts:
      self._shape = count, size
      self.cached = {
        key: np.concatenate([part[key] for part in parts]) for key in parts[0]
      }

  def _fits(self, bytes_of_batch: int) -> bool:
    """Whether all decoded images may stay in memory."""
    if not self._room:
      return False
    needed = bytes_of_batch * len(self._batches)
    if needed <= self._room:
      return True
    logging.warning(
      "%s takes %.1f GB when decoded, more than cache_gb=%.1f: it is decoded "
      "again for every model.",
      self._name,
      needed / 1e9,
      self._room / 1e9,
    )
    self._room = 0.0
    return False

  def _put(self, batch: Batch) -> Batch:
    """Puts this process's part of a batch on its devices."""
    if self._mesh is None:
      return jax.device_put(batch)
    return sharding.put_batch(self._mesh, batch)
