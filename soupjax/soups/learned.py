# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learned soups (arXiv 2203.05482, Appendix I) in the memory of a few models.

The soup is theta = sum_i a_i theta_i with a = softmax(g). With G the gradient
of the held-out loss at theta,

  dL/dg_i = a_i <G, theta_i - theta>

(for every group of leaves that has coefficients of its own, over the leaves of
that group). So a step is one ordinary gradient and, for every ingredient in
turn, one dot product: no graph over K models, and never two ingredients besides
the soup at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import checks, finite
from soupjax.soups.ingredient import (
  Ingredient,
  as_list,
  check_finite,
  check_ingredients,
  sharding_of,
)
from soupjax.soups.layers import layer_of, make_layout
from soupjax.soups.mixing import Pool
from soupjax.soups.optimizers import AdamW

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSoup:
  """A learned soup.

  Attributes:
    params: the soup, with the dtypes of the first ingredient.
    names: the ingredients, in the order of the coefficients.
    alphas: group of leaves -> (K,) coefficients, positive, of sum 1. The one
      group is "model" for granularity "model".
    beta: the learned logit scale. It changes no prediction.
    history: for every step `{"step", "loss", "beta"}`; the loss before the
      step, so the first is that of the uniform soup.
  """

  params: PyTree
  names: tuple[str, ...]
  alphas: dict[str, np.ndarray]
  beta: float
  history: tuple[dict[str, float], ...]


def learned_soup(
  ingredients: Sequence[Ingredient],
  loss: Callable[..., jax.Array],
  *,
  granularity: str = "layer",
  steps: int,
  learning_rate: float = 0.1,
  weight_decay: float = 0.0,
  learn_beta: bool = True,
  batches: Iterable[Any] | None = None,
  layer_of: Callable[[str], str] = layer_of,
  stacked: str | None = None,
  sharding: Any = None,
  on_step: Callable[[dict[str, float]], None] | None = None,
) -> LearnedSoup:
  """Learns mixing coefficients on held-out data, from the uniform soup on.

  Memory: the soup, its gradient, the first ingredient and the one being read,
  whatever their number. Every ingredient is read twice a step; for a small
  model pass `[i.in_memory() for i in ingredients]`. The last bits may depend on
  the mesh, other than those of `uniform_soup`.

  Args:
    ingredients: at least two.
    loss: `loss(params, beta)`, the loss on all held-out data with logits
      multiplied by the scalar beta; `loss(params, beta, batch)` if `batches`
      is given. Must return one scalar and be traceable: it is compiled once.
    granularity: "model" learns K coefficients, "layer" K for every layer,
      "tensor" K for every leaf (as the paper's released code does).
    steps: optimisation steps, a positive number.
    learning_rate: of AdamW, constant.
    weight_decay: of AdamW, decoupled; pulls towards the uniform soup.
    learn_beta: whether the logit scale is learned or stays 1.
    batches: an iterable with at least `steps` batches.
    layer_of: leaf name -> layer name, for granularity "layer".
    stacked: regex of leaves whose leading axis counts layers (a scanned
      encoder, `"encoderblock/"`), for granularity "layer" and "tensor". For
      "layer", what is left of the leaf's name at the end of the match names
      the layers: "Transformer/encoderblock[3]", for all modules of a block.
    sharding: where ingredients go, as in `Ingredient.load`.
    on_step: called with every entry of the history.

  Returns:
    The soup, its coefficients and the losses on the way.

  Raises:
    ValueError: if there are fewer than two ingredients, trees differ, one has
      NaN or infinity, none has float leaves, an argument is out of range,
      batches run out, or the loss, its gradient or the soup is not finite.
    TypeError: if `ingredients` are no sequence of ingredients.
  """
  ingredients = as_list(ingredients)
  steps, learning_rate, weight_decay = _checked_arguments(
    ingredients, granularity, steps, learning_rate, weight_decay
  )
  batches = _checked_batches(batches, steps)
  check_ingredients(ingredients)
  specs, treedef = ingredients[0].specs, ingredients[0].treedef
  layout = make_layout(specs, granularity, layer_of, stacked)
  if not layout.groups:
    raise ValueError(
      f"No leaf of {ingredients[0].name!r} is floating: there is nothing to "
      f"learn. Its leaves: {sorted(specs)[:10]}."
    )
  check_finite(ingredients)
  pool = Pool(ingredients, layout, sharding)

  def loss_of(floats, beta, *batch):
    leaves = list(pool.first)
    for k, value in floats.items():
      leaves[k] = value
    return loss(jax.tree.unflatten(treedef, leaves), beta, *batch)

  batches = _check_loss(loss_of, pool, batches)
  value_and_grad = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))

  logits = np.zeros((len(layout.groups), len(ingredients)))
  log_beta, history = np.zeros(()), []
  adamw = AdamW(learning_rate, weight_decay)
  adamw_beta = AdamW(learning_rate, 0.0)
  for step, batch in zip(range(steps), batches):
    alphas = _softmax(logits)
    soup = pool.mix(alphas)
    value, (grads, beta_grad) = value_and_grad(
      pool.floats(soup), np.float32(np.exp(log_beta)), *batch
    )
    _check_value(float(value), step, specs, soup)
    grad = pool.gradient(grads, soup)
    beta_grad = float(beta_grad) if learn_beta else 0.0
    _check_gradient(grad, beta_grad, float(value), step, specs, soup)
    history.append(
      {"step": step, "loss": float(value), "beta": float(np.exp(log_beta))}
    )
    if on_step:
      on_step(history[-1])
    logits = adamw.update(logits, alphas * grad)
    if learn_beta:
      log_beta = adamw_beta.update(log_beta, beta_grad * np.exp(log_beta))

  alphas = _softmax(logits)
  params = pool.finished(alphas)
  return LearnedSoup(
    params=jax.tree.unflatten(treedef, params),
    names=tuple(i.name for i in ingredients),
    alphas=dict(zip(layout.groups, alphas)),
    beta=float(np.exp(log_beta)),
    history=tuple(history),
  )


def _check_loss(loss_of, pool, batches):
  """Checks what the loss returns, without computing it."""
  # The first batch is needed for that, and put back.
  batches = iter(batches)
  batch = next(batches)
  specs = [
    jax.ShapeDtypeStruct(
      spec.shape, np.float32, sharding=sharding_of(pool.sharding, leaf, spec)
    )
    for leaf, spec in pool.ingredients[0].specs.items()
  ]
  found = None

  def run(*args):
    nonlocal found
    found = loss_of(*args)
    return ()

  beta = jax.ShapeDtypeStruct((), np.float32)
  jax.eval_shape(run, pool.floats(specs), beta, *batch)
  shape = getattr(found, "shape", () if isinstance(found, float) else None)
  dtype = getattr(found, "dtype", np.dtype(np.float32))
  if shape != () or not jnp.issubdtype(dtype, jnp.floating):
    what = f"a {type(found).__name__}"
    if shape is not None:
      what = f"an array of shape {shape} and dtype {dtype}"
    elif isinstance(found, tuple):
      what = f"a tuple of {len(found)} (only the loss is used, nothing beside)"
    raise ValueError(
      f"loss must return one floating-point scalar, got {what}. Average over "
      "the images with .mean(), for instance."
    )
  return itertools.chain([batch], batches)


def _check_value(value, step, specs, soup):
  if not math.isfinite(value):
    finite.check_overflow(specs, soup)
    raise ValueError(
      f"The held-out loss is {value} at step {step} of the learned soup. Lower "
      "learning_rate, or look for a model that diverged."
    )


def _check_gradient(grad, beta_grad, value, step, specs, soup):
  if not (np.isfinite(grad).all() and math.isfinite(beta_grad)):
    finite.check_overflow(specs, soup)
    of = "the coefficients" if math.isfinite(beta_grad) else "beta"
    raise ValueError(
      f"The gradient for {of} is not finite at step {step} of the learned "
      f"soup, although the loss is {value}. Look in the loss for a square root "
      "or a logarithm at 0, or a division that jnp.where only hides."
    )


def _softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(x - x.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def _checked_batches(batches, steps):
  """The arguments that follow beta, for every step."""
  if batches is None:
    return itertools.repeat(())
  if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
    # Arrays are iterable without saying so.
    if not hasattr(batches, "shape"):
      raise ValueError(
        "batches must be a sequence of batches, got a "
        f"{type(batches).__name__}: put one batch in a list, or call the "
        "function that makes them."
      )
  if hasattr(batches, "__len__") and len(batches) < steps:
    raise _too_few(len(batches), steps)
  return _counted(batches, steps)


def _counted(batches, steps):
  count = 0
  for batch in batches:
    count += 1
    yield (batch,)
  if count < steps:
    raise _too_few(count, steps)


def _too_few(count, steps):
  return ValueError(
    f"Got {count} batches for {steps} steps: repeat the held-out data, or take "
    "fewer steps."
  )


def _checked_arguments(ingredients, granularity, steps, learning_rate, decay):
  if len(ingredients) < 2:
    raise ValueError(
      f"A learned soup needs at least two ingredients, got {len(ingredients)}."
    )
  if granularity not in ("model", "layer", "tensor"):
    raise ValueError(
      f"granularity must be 'model', 'layer' or 'tensor', got {granularity!r}."
    )
  number = checks.number
  return (
    checks.count("steps", steps),
    number("learning_rate", learning_rate, "be positive", lambda x: x > 0),
    number("weight_decay", decay, "not be negative", lambda x: x >= 0),
  )
