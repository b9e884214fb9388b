# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Classification: logits, prec@1 and loss over a labelled set."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

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
    ValueError: if shapes do not fit, a label is out of range, or a logit is
      NaN.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(
      f"Logits {logits.shape} and labels {labels.shape} do not fit: expected "
      "(n, classes) and (n,)."
    )
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


class Classification:
  """Evaluates parameters on one labelled set; call it with parameters.

  Batches have one shape: the last is padded, and what the padding yields is
  masked out, so that every image counts exactly once.
  """

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
      ValueError: if there are no images, or the metric is unknown.
    """
    if metric not in ("prec@1", "loss"):
      raise ValueError(f"metric must be 'prec@1' or 'loss', got {metric!r}.")
    if not len(images) or len(images) != len(labels):
      raise ValueError(f"Got {len(images)} images, {len(labels)} labels.")
    self.predict, self.metric = predict, metric
    self.labels = np.asarray(labels)
    count = -(-len(images) // batch_size)
    padding = count * batch_size - len(images)
    self.mask = np.arange(count * batch_size) < len(images)
    padded = np.pad(images, [(0, padding)] + [(0, 0)] * (images.ndim - 1))
    self.batches = padded.reshape(count, batch_size, *images.shape[1:])

  def logits(self, params: PyTree) -> np.ndarray:
    """Returns (n, classes) logits on the host, in the order of the images."""
    # Launch all batches before waiting for the first.
    logits = [self.predict(params, batch) for batch in self.batches]
    return np.concatenate([np.asarray(x) for x in logits])[self.mask]

  def metrics(self, params: PyTree) -> dict[str, float]:
    """Returns what `classification_metrics` does."""
    return classification_metrics(self.logits(params), self.labels)

  def __call__(self, params: PyTree) -> float:
    """Returns the metric, higher is better."""
    value = self.metrics(params)[self.metric]
    return -value if self.metric == "loss" else value
