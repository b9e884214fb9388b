# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy over batches that are read anew each time, on any mesh."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Streaming:
  """Evaluates parameters on masked batches; call it with parameters.

  Sums are made on the devices, so that nothing waits for the host before the
  last batch, and a batch may be spread over several hosts.
  """

  mode = "max"  # Of what a call returns.

  def __init__(
    self,
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    put: Callable[[Mapping[str, Any]], Mapping[str, jax.Array]] = dict,
    *,
    name: str = "minival",
  ):
    """Compiles the forward pass once, for all parameters.

    Args:
      model: a Linen module that returns logits first, as `models.ViT`.
      batches: can be gone through again and again, as `data.eval_batches`:
        "images", "labels" and "mask".
      put: moves a batch to the devices.
      name: what metrics are called after.

    Its attribute `predict(params, images)` returns logits, jitted.
    """
    self._batches, self._put, self._name = batches, put, name

    @jax.jit
    def sums(params, images, labels, mask):
      logits = model.apply({"params": params}, images)[0]
      right = (logits.argmax(axis=-1) == labels) & mask
      each = jnp.take_along_axis(
        jax.nn.log_softmax(logits), labels[:, None], axis=-1
      )[:, 0]
      return right.sum(), -jnp.where(mask, each, 0.0).sum(), mask.sum()

    self._sums = sums
    self.predict = jax.jit(
      lambda params, images: model.apply({"params": params}, images)[0]
    )

  def totals(self, params: PyTree) -> dict[str, float]:
    """Returns {"prec@1", "loss", "n"}; every image counts once.

    Raises:
      ValueError: if the loss is not finite.
    """
    found = []
    for batch in self._batches:
      batch = self._put(batch)
      found.append(
        self._sums(params, batch["images"], batch["labels"], batch["mask"])
      )
    totals = np.asarray(jax.device_get(found), np.float64).sum(axis=0)
    right, loss, count = totals.tolist()
    if not np.isfinite(loss):
      raise ValueError(
        f"The loss on {self._name} is {loss}: the model's weights diverged."
      )
    return {"prec@1": right / count, "loss": loss / count, "n": int(count)}

  def metrics(self, params: PyTree) -> dict[str, float]:
    """Returns {"NAME/prec@1", "NAME/loss"}; raises as `totals` does."""
    found = self.totals(params)
    return {f"{self._name}/{key}": found[key] for key in ("prec@1", "loss")}

  def logits(self, params: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and labels of all images, on the host.

    In one process only, which has all devices.

    Returns:
      (n, classes) float32 and (n,) int32, without what is masked.
    """
    outputs, labels = [], []
    running = None  # The next batch is read while this one is computed.
    for batch in self._batches:
      mask = np.asarray(batch["mask"])
      labels.append(np.asarray(batch["labels"])[mask])
      images = self._put(batch)["images"]
      launched = self.predict(params, images), mask
      if running is not None:
        outputs.append(np.asarray(running[0])[running[1]])
      running = launched
    if running is not None:
      outputs.append(np.asarray(running[0])[running[1]])
    return np.concatenate(outputs), np.concatenate(labels)

  def examples(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, as they go into the model, and labels."""
    found = [
      (batch["images"][batch["mask"]], batch["labels"][batch["mask"]])
      for batch in self._batches
    ]
    images, labels = zip(*found)
    return np.concatenate(images), np.concatenate(labels)

  def __call__(self, params: PyTree) -> float:
    """Returns the accuracy."""
    return self.metrics(params)[f"{self._name}/prec@1"]
