# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of two models and their ensembles (arXiv 2203.05482, section 4)."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, tree

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Relation:
  """Loss of a soup minus loss of the ensemble, and its approximation.

  Below, a is the share of the second model and b the inverse temperature.

  Attributes:
    predicted: a (1 - a) (variance - curvature) / 2, in nats (equation 1).
    true: the actual difference, in nats.
    curvature: second derivative of the soup's loss along the line between the
      models. Positive values favour the soup.
    variance: b^2 times the mean variance of the difference between the models'
      logits, over classes drawn from the soup's predictions. Small if the
      models agree or the soup is confident; large values favour the ensemble.
    soup_error: fraction of images that the soup gets wrong.
    ensemble_error: fraction of images that the ensemble gets wrong.
  """

  predicted: float
  true: float
  curvature: float
  variance: float
  soup_error: float
  ensemble_error: float


def terms(
  forward: Callable[[PyTree, jax.Array], jax.Array],
  first: PyTree,
  second: PyTree,
  images: jax.Array,
  labels: jax.Array,
  *,
  share: jax.typing.ArrayLike = 0.5,
  beta: jax.typing.ArrayLike = 1.0,
) -> dict[str, jax.Array]:
  """Computes the terms of equation (1) of arXiv 2203.05482 for every image.

  The soup is f(x; t_a) with t_a = (1 - a) t_0 + a t_1; the ensemble has the
  logits (1 - a) f(x; t_0) + a f(x; t_1). The loss is the cross-entropy of b
  times the logits. Derivatives are exact, by nested `jax.jvp`. The function can
  be traced, and computes in float32, or in float64 if the weights are float64.

  Args:
    forward: maps parameters and images to (n, classes) logits. Must support
      forward-mode differentiation.
    first: parameters t_0; narrower floats are widened to float32.
    second: parameters t_1, with the same integer leaves.
    images: (n, ...) inputs of `forward`.
    labels: (n,) class indices.
    share: a, the share of the second model.
    beta: b, the inverse of the temperature that calibrates the soup.

  Returns:
    "curvature", "variance", "soup_loss", "ensemble_loss", "soup_right" and
    "ensemble_right", all (n,).
  """

  first, second = (jax.tree.map(_widened, params) for params in (first, second))

  def at(a):
    return jax.tree.map(
      lambda x, y: x + a * (y - x) if tree.is_float(x) else x, first, second
    )

  def losses(a):
    return _losses(beta * forward(at(a), images), labels)

  floats = [x for x in jax.tree.leaves(first) if tree.is_float(x)]
  wide = jnp.result_type(jnp.float32, *[x.dtype for x in floats])
  share, beta = (jnp.asarray(x, wide) for x in (share, beta))
  one = jnp.ones((), wide)

  def slopes(a):
    return jax.jvp(losses, (a,), (one,))[1]

  _, curvature = jax.jvp(slopes, (share,), (one,))
  soup = forward(at(share), images)
  ends = [
    forward(params, images).astype(soup.dtype) for params in (first, second)
  ]
  ensemble = (1 - share) * ends[0] + share * ends[1]
  chances = jax.nn.softmax(beta * soup)
  gap = ends[1] - ends[0]
  mean = (chances * gap).sum(axis=-1, keepdims=True)
  variance = (chances * (gap - mean) ** 2).sum(axis=-1)
  return {
    "curvature": curvature,
    "variance": beta**2 * variance,
    "soup_loss": _losses(beta * soup, labels),
    "ensemble_loss": _losses(beta * ensemble, labels),
    "soup_right": soup.argmax(axis=-1) == labels,
    "ensemble_right": ensemble.argmax(axis=-1) == labels,
  }


def _widened(leaf):
  if not tree.is_float(leaf):
    return leaf
  return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def _losses(logits, labels):
  logp = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(logp, labels[:, None], axis=-1)[:, 0]


def relation(values: Mapping[str, np.ndarray], share: float = 0.5) -> Relation:
  """Averages `terms` over images, and predicts the difference in loss.

  The difference is of second order in the distance between the models. The
  error of the prediction is of fourth order for a share of 1/2, and of third
  order for other shares.

  Args:
    values: `terms` of all images.
    share: the share of the second model, as in `terms`.

  Raises:
    ValueError: if a value is not finite, or the share is not between 0 and 1.
  """
  arguments.number("share", share, "be between 0 and 1", lambda a: 0 < a < 1)
  means = {k: float(np.mean(v, dtype=np.float64)) for k, v in values.items()}
  for key, value in means.items():
    arguments.number(f"The mean of {key}", value)
  spread = means["variance"] - means["curvature"]
  return Relation(
    predicted=share * (1 - share) / 2 * spread,
    true=means["soup_loss"] - means["ensemble_loss"],
    curvature=means["curvature"],
    variance=means["variance"],
    soup_error=1 - means["soup_right"],
    ensemble_error=1 - means["ensemble_right"],
  )
