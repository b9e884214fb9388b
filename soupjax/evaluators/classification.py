# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Classification: logits, prec@1 and loss over a labelled set."""

import collections
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.greedy.decisions import Trial

PyTree = Any
Predict = Callable[[PyTree, jax.Array], jax.Array]


def predictor(model: Any) -> Predict:
  """Compiles a model's forward pass once, for all candidates and datasets.

  Args:
    model: a Linen module that returns logits first, as `models.ViT`.

  Returns:
    `predict(params, images) -> logits`, jitted.
  """

  @jax.jit
  def predict(params, images):
    return model.apply({"params": params}, images)[0]

  return predict


def classification_metrics(
  logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """Computes metrics on the host, in float64.

  Args:
    logits: (n, classes).
    labels: (n,) class indices.

  Returns:
    "prec@1", the share of images whose highest logit is the label's, and
    "loss", the mean cross-entropy in nats.

  Raises:
    ValueError: if shapes do not fit, a label is no class index or out of
      range, or a logit is NaN.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(
      f"Logits {logits.shape} and labels {labels.shape} do not fit: expected "
      "(n, classes) and (n,)."
    )
  _check_whole(labels)
  if labels.min() < 0 or labels.max() >= logits.shape[1]:
    raise ValueError(
      f"Labels run from {labels.min()} to {labels.max()}, but the model has "
      f"{logits.shape[1]} classes."
    )
  if np.isnan(logits).any():
    raise ValueError("The model's logits are NaN: its weights diverged.")
  top = logits.max(axis=1)
  log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
  at_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  return {
    "prec@1": float((logits.argmax(axis=1) == labels).mean()),
    "loss": float((log_sum - at_label).mean()),
  }


def _check_whole(labels: np.ndarray) -> None:
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be class indices, got dtype {labels.dtype}: convert them "
      "with .astype(int), or one-hot labels with .argmax(axis=1)."
    )


class Classification:
  """Evaluates parameters on one labelled set; call it with parameters.

  Batches have one shape: the last is padded, and what the padding yields is
  masked out, so that every image counts exactly once.
  """

  mode = "max"  # Of what a call returns, the loss too: it comes negated.

  def __init__(
    self,
    predict: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 256,
    metric: str = "prec@1",
  ):
    """Prepares the batches.

    Args:
      predict: from `predictor`; share it, so that it compiles once.
      images: (n, height, width, channels).
      labels: (n,) class indices.
      batch_size: images in a batch; the same everywhere compiles once.
      metric: what calling the evaluator returns; "loss" comes back negated, so
        that higher is better.

    Raises:
      ValueError: if there are no images, labels are no class indices, the
        batch size is not positive, or the metric is unknown.
    """
    batch_size = arguments.count("batch_size", batch_size)
    if metric not in ("prec@1", "loss"):
      raise ValueError(f"metric must be 'prec@1' or 'loss', got {metric!r}.")
    if not len(images) or len(images) != len(labels):
      raise ValueError(f"Got {len(images)} images, {len(labels)} labels.")
    self.predict, self.metric = predict, metric
    self.images, self.labels = np.asarray(images), np.asarray(labels)
    _check_whole(self.labels)
    self.batch_size = batch_size
    self._last: np.ndarray | None = None  # Logits of the last full pass.
    self.order = np.arange(len(images))

  def _batches(self) -> Iterator[np.ndarray]:
    """Cuts the images, in the present order, into padded batches."""
    for start in range(0, len(self.order), self.batch_size):
      batch = self.images[self.order[start : start + self.batch_size]]
      missing = self.batch_size - len(batch)
      if missing:
        zeros = np.zeros((missing, *batch.shape[1:]), batch.dtype)
        batch = np.concatenate([batch, zeros])
      yield batch

  def logits(self, params: PyTree) -> np.ndarray:
    """Returns (n, classes) logits on the host, in the order of the images."""
    waiting, found = collections.deque(), []
    for batch in self._batches():
      # Two run while the next is put together; all would be a second copy.
      waiting.append(self.predict(params, batch))
      if len(waiting) > 2:
        found.append(np.asarray(waiting.popleft()))
    return self._collect(found + [np.asarray(x) for x in waiting])

  def _collect(self, batches: list[np.ndarray]) -> np.ndarray:
    logits = np.concatenate(batches)[: len(self.order)]
    self._last = np.empty_like(logits)
    self._last[self.order] = logits
    return self._last

  def metrics(self, params: PyTree) -> dict[str, float]:
    """Returns what `classification_metrics` does."""
    return classification_metrics(self.logits(params), self.labels)

  def __call__(self, params: PyTree) -> float:
    """Returns the metric, higher is better."""
    return self._value(self.logits(params))

  def _value(self, logits: np.ndarray) -> float:
    value = classification_metrics(logits, self.labels)[self.metric]
    return -value if self.metric == "loss" else value

  def trial(self, params: PyTree, reaches: Callable[[float], bool]) -> Trial:
    """Evaluates until it is clear that no sufficient score is possible.

    Args:
      params: of the candidate.
      reaches: whether a score is sufficient; if one is, so are higher ones.

    Returns:
      The score, or a bound that it cannot exceed: all images that are left
      right, or without loss.
    """
    n, done, lost, worse = len(self.order), 0, 0.0, 0.0
    launched, batches = self._batches(), []
    waiting = [self.predict(params, next(launched))]
    while waiting:
      # The next batch runs while this one is looked at; but not for nothing,
      # if one as bad as the last would be the end.
      if reaches(self._bound(lost + worse)):
        waiting += [self.predict(params, x) for x in islice(launched, 1)]
      batches.append(np.asarray(waiting.pop(0)))
      rows = self.order[done : done + self.batch_size]
      part = classification_metrics(batches[-1][: len(rows)], self.labels[rows])
      worse = part["loss"] if self.metric == "loss" else 1 - part["prec@1"]
      worse = worse * len(rows)
      lost, done = lost + worse, done + len(rows)
      bound = self._bound(lost)
      if done < n and not reaches(bound):
        return Trial(score=None, bound=bound, evaluated=done / n)
      if not waiting:
        waiting = [self.predict(params, x) for x in islice(launched, 1)]
    return Trial(score=self._value(self._collect(batches)))

  def _bound(self, lost: float) -> float:
    """The best score that is left when so much is lost: images, or nats."""
    n = len(self.order)
    if self.metric == "loss":
      # Sums of another order differ in their last bits: leave room for that.
      return -(lost / n) * (1 - 1e-9)
    return (n - round(lost)) / n

  def keep(self) -> None:
    """Puts first what the model of the last full pass found hardest."""
    if self._last is None:
      return
    at_label = np.take_along_axis(self._last, self.labels[:, None], axis=1)
    others = self._last.copy()
    np.put_along_axis(others, self.labels[:, None], -np.inf, axis=1)
    margin = at_label[:, 0] - others.max(axis=1)
    self.order = np.argsort(margin, kind="stable")
