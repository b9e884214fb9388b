# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates classifiers, on one device or many hosts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import copy
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax import sharding
from soupjax.evaluators import batches as batches_lib
from soupjax.evaluators import metrics as metrics_lib
from soupjax.evaluators.batches import Batch, CachedBatches
from soupjax.evaluators.label_spaces import LabelSpace
from soupjax.evaluators.metrics import get_metric
from soupjax.soups.core import arguments
from soupjax.soups.greedy import decisions

PyTree = Any
# Always computed, since results and reports have both.
_METRICS = ("prec@1", "loss")


@functools.lru_cache(maxsize=64)  # Searches have a model for each dataset.
def _compiled(
  model, names: tuple[str, ...], with_logits: bool, mesh, space=None
):
  """Returns a jitted evaluation of a batch, shared by candidates and sets.

  The function returns one value per example, not sums over the batch: their
  exact sum on the host does not depend on the order of the examples, the batch
  size or the number of processes.
  """
  forward = batches_lib.forward_of(model)
  metrics = [get_metric(name) for name in names]
  functions = [metric.function for metric in metrics]

  @jax.jit
  def evaluate(params, batch):
    logits = forward(params, batch["images"])
    labels, position = batch["labels"], batch["position"]
    mask = position >= 0
    scored, right = (space or LabelSpace()).scored(logits, labels)
    values = [f(scored, right, mask).astype(jnp.float32) for f in functions]
    for name, value in zip(names, values):
      if value.shape != labels.shape:
        raise ValueError(
          f"The metric {name!r} must return one value per image, an array of "
          f"shape {labels.shape}, not {value.shape}."
        )
    outputs = {"values": jnp.stack(values, axis=-1), "position": position}
    if any(metric.summary for metric in metrics):
      outputs["right"] = right
    if with_logits:
      outputs |= {"logits": logits.astype(jnp.float32), "labels": labels}
    if mesh is not None:  # All processes get all examples.
      outputs = jax.lax.with_sharding_constraint(
        outputs, sharding.replicated(mesh)
      )
    return outputs

  return evaluate


# A loss above this means that the label is a masked output.
_MASKED = 1e30


class Evaluator:
  """Scores the parameters it is called with on one labelled set.

  A call returns the mean of a metric, negated if lower is better, so that
  higher scores are better. Equal logits give the same score, bit for bit, for
  any batch size, order of the images and number of processes.

  `greedy_soup` uses `evaluate_until` and `set_incumbent` to reject candidates
  early, in one process or several.

  Examples:
    >>> import numpy as np
    >>> from soupjax.evaluators import Evaluator
    >>> images, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    >>> evaluate = Evaluator.from_arrays(
    ...   lambda params, images: images @ params, images, labels
    ... )
    >>> evaluate(np.eye(3, dtype=np.float32))
    1.0
  """

  mode = "max"  # Higher scores are better.

  def __init__(
    self,
    model: Any,
    batches: Iterable[Batch],
    *,
    metric: str = "prec@1",
    more_metrics: Iterable[str] = (),
    name: str = "minival",
    mesh: jax.sharding.Mesh | None = None,
    cache_gb: float = 0.0,
    outputs: Iterable[int] | LabelSpace | None = None,
  ):
    """Sets up the evaluation; compiles at the first call.

    Args:
      model: a Linen module that returns logits first, such as `models.ViT`, or
        a function of parameters and images that returns logits.
      batches: dicts of "images" (size, ...), "labels" (size,) and "mask"
        (size,), False for padding, all of one size; see `data.eval_batches`.
        With several processes, this process's part of each batch. Must be
        iterable many times and, for a cache, have a length.
      metric: name of the metric that is the score: "prec@1", "loss", another
        registered metric, or an import path.
      more_metrics: further metrics to report, besides accuracy and loss.
      name: name of the set, in metrics and errors.
      mesh: batches are sharded along its axis "data". None leaves the sharding
        to `jit`.
      cache_gb: keeps decoded images in memory if they take at most this many GB
        (1e9 bytes) in this process. Early rejection then begins with the images
        that are hardest for the soup.
      outputs: outputs of the model that are classes of the set, such as the 200
        of ImageNet-A; None for all. Metrics ignore the other logits, but
        `per_example` returns them unchanged. A `LabelSpace` can also merge
        outputs into classes, and allow several right labels per image.

    Raises:
      ValueError: if a metric is unknown, or `outputs` is empty or has an output
        twice or one that is not a whole number from 0.
    """
    if not (outputs is None or isinstance(outputs, LabelSpace)):
      try:
        outputs = LabelSpace.of_outputs(outputs)
      except ValueError as e:
        raise ValueError(f"outputs of {name}: {e}") from e
    self._space = outputs
    self.metric, self.name = metric, name
    more = sorted({metric, *more_metrics} - {*_METRICS})
    self.names = (*_METRICS, *more)
    self._metric = get_metric(metric)
    for other in more:
      get_metric(other)
    self._model, self._mesh = model, mesh
    self._prepare: Callable[[PyTree], PyTree] | None = None
    self._batches = CachedBatches(
      batches, name=name, mesh=mesh, cache_gb=cache_gb
    )
    self._count: int | None = None  # Examples in all processes.
    self._last: tuple[np.ndarray, np.ndarray] | None = None

  @classmethod
  def from_arrays(
    cls,
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 256,
    metric: str = "prec@1",
    more_metrics: Iterable[str] = (),
    name: str = "minival",
    outputs: Iterable[int] | LabelSpace | None = None,
  ) -> "Evaluator":
    """Makes an evaluator on images in memory, for a single process.

    Args:
      model: as for the constructor.
      images: (n, ...), as the model takes them.
      labels: (n,) class indices.
      batch_size: images in a batch; the last is padded and masked.
      metric: as for the constructor.
      more_metrics: as for the constructor.
      name: as for the constructor.
      outputs: as for the constructor.

    Raises:
      ValueError: if there are no images or not as many labels, labels are not
        class indices, the batch size is not positive, or as for the
        constructor.
    """
    batch_size = arguments.count("batch_size", batch_size)
    images, labels = np.asarray(images), metrics_lib.check_labels(labels)
    if not len(images) or len(images) != len(labels):
      raise ValueError(
        f"Got {len(images)} images and {len(labels)} labels: give as many "
        "labels as images, and at least one."
      )
    self = cls(
      model, (), metric=metric, more_metrics=more_metrics, name=name,
      outputs=outputs,
    )  # fmt: skip
    self._batches.fill(images, labels.astype(np.int32), batch_size)
    return self

  def for_metric(self, metric: str) -> "Evaluator":
    """Returns an evaluator of the same images that scores by another metric.

    Decoded images are shared if they are in memory by now; their order for
    early rejection is not.

    Raises:
      ValueError: if this evaluator does not compute the metric.
    """
    if metric not in self.names:
      raise ValueError(
        f"The evaluator computes {', '.join(self.names)}, not {metric!r}: add "
        "it to more_metrics."
      )
    other = copy.copy(self)
    other._batches = copy.copy(self._batches)
    other.metric, other._metric = metric, get_metric(metric)
    return other

  def preparing(self, prepare: Callable[[PyTree], PyTree]) -> "Evaluator":
    """Returns an evaluator of the same images that converts parameters first.

    Args:
      prepare: maps the parameters of a candidate to those of the model that is
        evaluated, such as a whole CLIP to an image tower with a zero-shot head.
        Called once for every candidate, not for every batch.
    """
    other = self.for_metric(self.metric)
    other._prepare = prepare
    return other

  @property
  def cached_bytes(self) -> int:
    """Size of the decoded images in memory, in bytes; 0 without a cache."""
    cached = self._batches.cached
    return 0 if cached is None else cached["images"].nbytes

  # --- Scores -----------------------------------------------------------------

  def __call__(self, params: PyTree) -> float:
    """Returns the score on all images; higher is better."""
    return self._score(self._evaluate(params))

  def totals(self, params: PyTree) -> dict[str, float]:
    """Returns the mean of every metric, and the number of images as "n".

    Raises:
      ValueError: if the loss of an image is not finite.
    """
    return self.means(self.per_example(params))

  def metrics(self, params: PyTree) -> dict[str, float]:
    """Returns the mean of every metric as "NAME/METRIC"; see `totals`."""
    totals = self.totals(params)
    return {f"{self.name}/{metric}": totals[metric] for metric in self.names}

  def means(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Averages values from `per_example`; returns the same as `totals`."""
    means = {
      name: _mean(get_metric(name), values[name], values.get("right"))
      for name in self.names
    }
    return means | {"n": len(values[self.names[0]])}

  def per_example(
    self,
    params: PyTree,
    *,
    logits: bool = False,
    on_images: Callable[[int], None] | None = None,
  ) -> dict[str, np.ndarray]:
    """Returns the metrics of every image.

    Args:
      params: parameters of the model.
      logits: whether to also return "logits" (n, outputs), "labels" (n,) and
        "position" (n,), the index of each image in the set.
      on_images: called after each batch with its number of images.

    Returns:
      Metric -> (n,) float32 values of all images, in the order of the set, in
      every process. If a metric has a summary, "right" has the (n,) labels to
      which it compares predictions.

    Raises:
      ValueError: if the loss of an image is not finite.
    """
    outputs = self._evaluate(params, logits, on_images)
    values = dict(zip(self.names, outputs["values"].T))
    if "right" in outputs:
      values["right"] = outputs["right"]
    if logits:
      names = ("logits", "labels", "position")
      values |= {name: outputs[name] for name in names}
    return values

  def logits(self, params: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n, outputs) float32 logits and (n,) labels of all images."""
    values = self.per_example(params, logits=True)
    return values["logits"], values["labels"]

  def examples(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns this process's images, as the model takes them, and labels."""
    return self._batches.examples()

  def mapped(
    self, function: Callable[..., dict[str, jax.Array]]
  ) -> Callable[..., dict[str, np.ndarray]]:
    """Compiles a function to apply to all images, such as a derivative.

    Args:
      function: takes the forward pass (params, images -> logits), the arguments
        of the call, a batch of images and their labels. Returns arrays by name
        whose first axis is that of the images.

    Returns:
      A function of the arguments of a call. It returns these arrays for all
      images, in the order of the set, in every process.
    """
    forward = batches_lib.forward_of(self._model)

    def of_candidate(params, images):
      return forward(self._prepared(params), images)

    bound = functools.partial(function, of_candidate)
    return batches_lib.mapped(bound, self._batches, self._mesh)

  # --- Early rejection --------------------------------------------------------

  def evaluate_until(
    self, params: PyTree, can_reach: Callable[[float], bool]
  ) -> decisions.Trial:
    """Evaluates a candidate until it can no longer reach a sufficient score.

    All processes see the values of all images, so they stop together. The first
    candidate of all, and metrics without a bound, are evaluated in full.

    Args:
      params: parameters of the candidate.
      can_reach: whether a score is sufficient; if one is, so are higher ones.

    Returns:
      The score; or, after an early stop, an upper bound on it, with the best
      possible value of the metric for the remaining images.
    """
    if self._count is None or self._metric.bound is None:
      return decisions.Trial(score=self(params))
    params = self._prepared(params)
    program = self.program()
    column = self.names.index(self.metric)
    parts, done, last, waiting = [], [], [], []
    batches = iter(self._batches)

    def launch():
      for batch in batches:
        waiting.append(program(params, batch))
        return

    launch()
    while waiting:
      # The next batch runs while this one is read, unless another batch as bad
      # as the last would end the evaluation.
      if can_reach(self._bound([*done, *last])):
        launch()
      outputs = self._checked(jax.device_get(waiting.pop(0)))
      last = outputs["values"][:, column].tolist()
      done += last
      bound = self._bound(done)
      if len(done) < self._count and not can_reach(bound):
        batches.close()  # Also stops reading ahead.
        return decisions.Trial(
          score=None, bound=bound, evaluated=len(done) / self._count
        )
      parts.append(outputs)
      if not waiting:
        launch()
    return decisions.Trial(score=self._score(self._ordered(parts)))

  def set_incumbent(self) -> None:
    """Reorders the cached images so that those hardest for the soup come first.

    The soup is the last model that was evaluated in full. Without a cache, the
    order does not change.
    """
    cached = self._batches.cached
    if cached is None or self._last is None:
      return
    position, values = self._last
    value = self._metric.sign * values[:, self.names.index(self.metric)]
    loss = values[:, self.names.index("loss")]
    # Sorts this process's images by the metric, then the loss, worst first.
    rows = np.searchsorted(position, cached["position"])
    self._batches.reorder(np.lexsort((-loss[rows], value[rows])))

  # --- One pass over the data -------------------------------------------------

  def program(self, with_logits: bool = False) -> Any:
    """Returns the jitted function of parameters and one batch."""
    space = () if self._space is None else (self._space,)
    return _compiled(self._model, self.names, with_logits, self._mesh, *space)

  def seconds_per_batch(self, params: PyTree) -> float:
    """Times one batch: decoding, unless it is cached, and the forward pass.

    The batch runs twice: the first run compiles, the second is timed.

    Args:
      params: as for a call; their values do not matter.
    """
    params, program, seconds = self._prepared(params), self.program(), 0.0
    for _ in range(2):
      began = time.perf_counter()
      batch = next(iter(self._batches))
      jax.block_until_ready(program(params, batch))
      seconds = time.perf_counter() - began
    return seconds

  def abstract_batch(self, count: int, shape: Sequence[int]) -> Batch:
    """Returns shapes and shardings of a batch, as `program` takes it.

    Args:
      count: number of images, in all processes together.
      shape: shape of one image, such as (height, width, channels).
    """
    return self._batches.abstract(count, shape)

  def _evaluate(
    self, params, with_logits=False, on_images=None
  ) -> dict[str, np.ndarray]:
    """Evaluates all images; returns rows in the order of the set."""
    params = self._prepared(params)
    program, parts, waiting = self.program(with_logits), [], []

    def read():
      parts.append(self._checked(jax.device_get(waiting.pop(0))))
      if on_images:
        on_images(len(parts[-1]["position"]))

    for batch in self._batches:
      # Two batches run while the next is read; more would need more memory.
      waiting.append(program(params, batch))
      if len(waiting) > 2:
        read()
    while waiting:
      read()
    return self._ordered(parts)

  def _prepared(self, params: PyTree) -> PyTree:
    return params if self._prepare is None else self._prepare(params)

  def _checked(self, outputs) -> dict[str, np.ndarray]:
    """Drops padding; raises a ValueError if a loss is not finite."""
    rows = outputs["position"] >= 0
    outputs = {key: x[rows] for key, x in outputs.items()}
    loss = outputs["values"][:, self.names.index("loss")]
    wrong = loss[~(loss < _MASKED)]
    if self._space and np.isfinite(wrong).any():
      raise ValueError(
        f"An image of {self.name} has a label that is not among the "
        f"{self._space.num_outputs} outputs to evaluate: add it to outputs=."
      )
    if len(wrong):
      raise ValueError(
        f"The loss on {self.name} is {wrong[0]}: the model's weights diverged, "
        "or a label is out of range for the model's outputs."
      )
    return outputs

  def _ordered(self, parts) -> dict[str, np.ndarray]:
    """Joins the batches of a full pass in the order of the set."""
    if not parts:
      raise ValueError(f"The set {self.name} is empty.")
    outputs = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    order = np.argsort(outputs["position"], kind="stable")
    outputs = {key: x[order] for key, x in outputs.items()}
    self._count = len(order)
    self._last = outputs["position"], outputs["values"]
    return outputs

  def _score(self, outputs: Mapping[str, np.ndarray]) -> float:
    column = outputs["values"][:, self.names.index(self.metric)]
    value = _mean(self._metric, column, outputs.get("right"))
    return self._metric.sign * value

  def _bound(self, values: list[float]) -> float:
    """Returns the best possible score given the values of some examples."""
    best = self._metric.bound * max(self._count - len(values), 0)
    if not self._metric.bound.is_integer():  # The product may be rounded.
      best = math.nextafter(best, self._metric.sign * math.inf)
    return self._metric.sign * math.fsum([*values, best]) / self._count


def _mean(metric: metrics_lib.Metric, values, labels) -> float:
  """Returns the mean of a metric, or its summary."""
  if metric.summary is not None:
    return float(metric.summary(values, labels))
  return _sum(values) / len(values)


def _sum(values: np.ndarray) -> float:
  """Returns the correctly rounded sum, which does not depend on the order."""
  return math.fsum(values.tolist())
