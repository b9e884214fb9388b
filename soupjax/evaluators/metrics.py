# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Registry of classification metrics, each with one value per example."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.registry import Registry

METRICS = Registry("metric")


@dataclasses.dataclass(frozen=True)
class Metric:
  """A function of logits whose mean over all examples is reported.

  Attributes:
    function: maps logits (batch, classes), labels (batch,) and a mask (batch,)
      to one value per example. It is traced by `jax.jit`. Values where the mask
      is False are ignored.
    mode: "max" if higher means are better, "min" if lower ones are.
    bound: the best value that an example can have, so that greedy soups can
      reject candidates early; None if values are unbounded.
    summary: replaces the mean: maps the values (n,) and the right labels (n,),
      both NumPy arrays, to a number; None for the mean. A metric with a summary
      has no bound.
  """

  function: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
  mode: str = "max"
  bound: float | None = None
  summary: Callable[[np.ndarray, np.ndarray], float] | None = None

  @property
  def __wrapped__(self) -> Callable:
    """The function; registries identify a metric by its name and file."""
    return self.function

  @property
  def sign(self) -> int:
    """The factor that makes higher values better."""
    return 1 if self.mode == "max" else -1


def metric(
  name: str,
  *,
  mode: str = "max",
  bound: float | None = None,
  summary: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> Callable[[Callable], Metric]:
  """Registers a function as a metric that a config can name.

  Examples:
    >>> from soupjax.evaluators import metric
    >>> @metric("confidence", bound=1.0)
    ... def confidence(logits, labels, mask):
    ...   return jax.nn.softmax(logits).max(axis=-1)

  Args:
    name: the name in configs and results.
    mode: "max" or "min".
    bound: the best possible value of an example, or None.
    summary: see `Metric`, for metrics that are not means, such as F1.

  Returns:
    A decorator that turns the function into a `Metric`.

  Raises:
    ValueError: if the mode is unknown, the bound is not finite or comes with a
      summary, or another metric has the name.
  """
  if mode not in ("max", "min"):
    raise ValueError(
      f"Metric {name!r}: mode must be 'max' or 'min', got {mode!r}."
    )
  if bound is not None and not math.isfinite(bound):
    raise ValueError(f"Metric {name!r}: bound must be finite, got {bound!r}.")

  if bound is not None and summary is not None:
    raise ValueError(
      f"Metric {name!r} has a bound and a summary: a bound on the values of "
      "examples only bounds their mean. Leave one out."
    )
  limit = None if bound is None else float(bound)

  def register(function):
    return METRICS.register(Metric(function, mode, limit, summary), name=name)

  return register


def get_metric(name: str) -> Metric:
  """Returns a metric by its name or import path.

  Raises:
    ValueError: if the name is unknown, or the path leads to something else.
  """
  member = METRICS.get(name)
  if not isinstance(member, Metric):
    raise ValueError(
      f"The metric {name!r} is a {type(member).__name__}: decorate the "
      "function with soupjax.evaluators.metric(NAME)."
    )
  return member


@metric("prec@1", bound=1.0)
def _prec_at_1(logits, labels, mask):
  """Accuracy: 1 if the highest logit is that of the label, else 0."""
  del mask
  return logits.argmax(axis=-1) == labels


@metric("loss", mode="min", bound=0.0)
def _loss(logits, labels, mask):
  """Cross-entropy in nats."""
  del mask
  # A label out of range gives NaN, which the evaluator reports.
  picked = jnp.take_along_axis(
    jax.nn.log_softmax(logits.astype(jnp.float32)),
    labels[:, None],
    axis=-1,
    mode="fill",
    fill_value=jnp.nan,
  )
  return -picked[:, 0]


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
  """Returns the unweighted mean of F1 over the classes that occur as labels.

  F1 of a class is 2 TP / (2 TP + FP + FN).

  Args:
    predictions: (n,) class indices.
    labels: (n,) class indices.
  """
  scores = []
  for k in np.unique(labels):
    hits = np.sum((predictions == k) & (labels == k))
    scores.append(2 * hits / (np.sum(predictions == k) + np.sum(labels == k)))
  return math.fsum(scores) / len(scores)


def worst_class(correct: np.ndarray, labels: np.ndarray) -> float:
  """Returns the lowest accuracy among the classes that occur as labels.

  Args:
    correct: (n,) whether the prediction is right.
    labels: (n,) class indices.
  """
  return float(min(correct[labels == k].mean() for k in np.unique(labels)))


@metric("macro_f1", summary=macro_f1)
def _prediction(logits, labels, mask):
  """The class with the highest logit."""
  del labels, mask
  return logits.argmax(axis=-1)


@metric("worst_class", summary=worst_class)
def _correct(logits, labels, mask):
  """Whether the highest logit is that of the label."""
  del mask
  return logits.argmax(axis=-1) == labels


def check_labels(labels: Any) -> np.ndarray:
  """Returns labels as an array of class indices.

  Raises:
    ValueError: if they are not whole numbers from 0.
  """
  labels = np.asarray(labels)
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be class indices, got dtype {labels.dtype}: convert them "
      "with .astype(int), or one-hot labels with .argmax(axis=1)."
    )
  if labels.size and labels.min() < 0:
    raise ValueError(
      f"labels must be class indices from 0, got {labels.min()}."
    )
  return labels


def check_logits(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns (n, classes) logits in float64 and (n,) labels as class indices.

  Raises:
    ValueError: if there are none, shapes do not match, a label is not a class
      index or is out of range, a logit is NaN or inf, or all logits of an image
      are -inf.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
    raise ValueError(
      f"Logits {logits.shape} and labels {labels.shape} do not match: expected "
      "(n, classes) and (n,), with n at least 1."
    )
  check_labels(labels)
  if labels.max() >= logits.shape[1]:
    raise ValueError(
      f"Labels run from {labels.min()} to {labels.max()}, but the model has "
      f"{logits.shape[1]} classes."
    )
  top = logits.max(axis=1)
  if not np.isfinite(top).all():
    raise ValueError(
      f"The logits of image {int((~np.isfinite(top)).argmax())} are NaN or "
      "infinite: the model's weights diverged."
    )
  return logits, labels


def classification_metrics(
  logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """Computes accuracy and loss on the host, in float64.

  Args:
    logits: (n, classes).
    labels: (n,) class indices.

  Returns:
    "prec@1", the fraction of images whose highest logit is the label's, and
    "loss", the mean cross-entropy in nats.

  Raises:
    ValueError: as for `check_logits`.
  """
  logits, labels = check_logits(logits, labels)
  top = logits.max(axis=1)
  log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
  at_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  return {
    "prec@1": float((logits.argmax(axis=1) == labels).mean()),
    "loss": float((log_sum - at_label).mean()),
  }
