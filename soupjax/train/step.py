# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The training step: state, hyperparameters, and one compiled update."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from soupjax.train import losses, optimizers, recipes, schedules

PyTree = Any
# augment(key, images, targets, values) -> images, targets
Augment = Callable[..., tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class Hyper:
  """Values that differ between members of a sweep, as traced arrays.

  Attributes:
    learning_rate: the peak rate.
    weight_decay: decoupled weight decay, multiplied by the learning rate.
    label_smoothing: in [0, 1).
    layer_decay: factor of the learning rate per layer, from the head down; 1 is
      off.
    l2_sp: strength of the pull towards the initial parameters (arXiv
      1802.01483): this times the difference is added to the gradient; needs
      `make_step(l2_sp=True)`.
    sam_rho: radius of SAM's ascent; needs `make_step(sam=True)`.
    context: factor of CAR-FT's divergence; needs `make_step` with that recipe.
    schedule: from `schedules.index`.
    total_steps: length of the schedule, in steps.
    warmup_steps: linear warmup, in steps.
    cooldown_steps: linear cooldown, in steps.
    ema_rates: (averages,) 1 - decay of each moving average of the parameters.
      The decay itself would lose precision: in float32, 0.9999999 equals
      0.9999999 + 2e-8.
    op_values: the values of the hyperparameters named in `data.batch_ops`.
  """

  learning_rate: jax.typing.ArrayLike
  weight_decay: jax.typing.ArrayLike
  label_smoothing: jax.typing.ArrayLike
  layer_decay: jax.typing.ArrayLike
  l2_sp: jax.typing.ArrayLike
  sam_rho: jax.typing.ArrayLike
  context: jax.typing.ArrayLike
  schedule: jax.typing.ArrayLike
  total_steps: jax.typing.ArrayLike
  warmup_steps: jax.typing.ArrayLike
  cooldown_steps: jax.typing.ArrayLike
  ema_rates: jax.typing.ArrayLike
  op_values: Mapping[str, jax.typing.ArrayLike]

  @classmethod
  def of(
    cls,
    schedule: str = "cosine",
    ema: Sequence[float] = (),
    op_values: Mapping[str, float] | None = None,
    **values: float,
  ) -> "Hyper":
    """Converts values to float32 scalars; omitted ones are 0, or off.

    Args:
      schedule: one of `schedules.NAMES`.
      ema: decays of the moving averages.
      op_values: values of the hyperparameters named in `data.batch_ops`.
      **values: the other attributes.
    """
    defaults = dict.fromkeys(cls.__dataclass_fields__, 0.0)
    arrays: dict[str, Any] = {
      **defaults,
      "layer_decay": 1.0,
      **values,
      "ema_rates": [1 - decay for decay in ema],
      "op_values": dict(op_values or {}),
    }
    arrays = jax.tree.map(
      lambda v: jnp.asarray(v, jnp.float32),
      arrays,
      is_leaf=lambda v: isinstance(v, list),
    )
    arrays["schedule"] = jnp.asarray(schedules.index(schedule), jnp.int32)
    return cls(**arrays)


@flax.struct.dataclass
class FineTuneState:
  """State of a run, except the position in its data.

  Attributes:
    step: number of updates.
    params: parameters of the whole model.
    opt_state: optimizer state of the trained leaves.
    ema: moving averages of these leaves, one tree per decay.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  ema: tuple[PyTree, ...]


def init_state(
  params: PyTree,
  tx: optax.GradientTransformation,
  *,
  frozen: Sequence[str] = (),
  num_ema: int = 0,
) -> FineTuneState:
  """Starts a run from given parameters, which are copied.

  Args:
    params: parameters of the whole model.
    tx: from `optimizers.make`.
    frozen: regular expressions of leaves that are not trained.
    num_ema: number of moving averages; all start at `params`.
  """

  def copy(tree):  # The step donates its state.
    return jax.tree.map(jnp.array, tree)

  trained, _ = optimizers.split(params, frozen)
  return FineTuneState(
    step=jnp.zeros((), jnp.int32),
    params=copy(params),
    opt_state=tx.init(trained),
    ema=tuple(copy(trained) for _ in range(num_ema)),
  )


def ema_params(state: FineTuneState, k: int) -> PyTree:
  """Returns the parameters with the k-th moving average in place."""
  return optimizers.join(state.ema[k], state.params)


def make_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  augment: Augment,
  *,
  recipe: recipes.Recipe = recipes.PLAIN,
  loss: str = "softmax",
  frozen: Sequence[str] = (),
  decay: str = "kernel$",
  accumulate: int = 1,
  sam: bool = False,
  l2_sp: bool = False,
) -> Callable[..., tuple[FineTuneState, dict[str, jax.Array]]]:
  """Makes the update step, a pure function for `jax.jit`.

  Args:
    model: a module that returns logits and features, with `num_classes`; or a
      `models.CLIP`, for recipes of image-text pairs.
    tx: from `optimizers.make`.
    augment: `augment(key, images, targets, values)`, with the values of
      `Hyper.op_values`.
    recipe: the objective, from `recipes.of`.
    loss: a name in `losses.LOSSES`, such as "softmax" or "sigmoid"; for recipes
      of pairs, in `losses.PAIR_LOSSES`.
    frozen: regular expressions of leaves that are not trained.
    decay: regular expression of the leaves that weight decay applies to.
    accumulate: number of parts of a batch that are processed one by one to save
      memory; the gradient is that of the whole batch.
    sam: whether to use sharpness-aware minimisation (arXiv 2010.01412), with
      the gradient after a step of length `hyper.sam_rho` uphill. The norm is
      that of the whole batch's gradient, not of one device's share.
    l2_sp: whether to pull towards the initial parameters.

  Returns:
    `step(state, batch, key, hyper, shared) -> state, metrics`. A batch has
    "images" and "labels", and optionally "tokens" (batch, tokens) of captions;
    without them, recipes of pairs draw a prompt for each label from
    `shared["prompts"]` (classes, templates, tokens). `shared` has the arrays
    that the recipe names, and "start", the initial parameters, if `l2_sp`.
    Randomness depends on `key` and `state.step`. Metrics are "loss" (of the
    parameters before the step), "learning_rate" and "grad_norm".

  Raises:
    ValueError: if the loss does not exist.
  """
  known = losses.PAIR_LOSSES if recipe.pairs else losses.LOSSES
  loss_fn = known.get(loss)

  def prepared(batch, key, key_augment, hyper, shared):
    targets = None
    if recipe.pairs:
      if "tokens" not in batch:
        # A key that differs from both keys that `split` returned.
        key_prompt = jax.random.fold_in(key, 2)
        tokens = recipes.draw_prompts(
          key_prompt, batch["labels"], shared["prompts"]
        )
        batch = {**batch, "tokens": tokens}
    else:
      targets = losses.smooth_labels(
        batch["labels"], model.num_classes, hyper.label_smoothing
      )
    images, targets = augment(
      key_augment, batch["images"], targets, hyper.op_values
    )
    return {**batch, "images": images, "targets": targets}

  def step(state, batch, key, hyper, shared):
    key = jax.random.fold_in(key, state.step)
    key_augment, key_dropout = jax.random.split(key)
    batch = prepared(batch, key, key_augment, hyper, shared)
    trained, rest = optimizers.split(state.params, frozen)

    def loss_of(trained, batch, key):
      return recipe.objective(
        optimizers.join(trained, rest),
        batch,
        key,
        model=model,
        loss=loss_fn,
        hyper=hyper,
        shared=shared,
      )

    def gradient(trained):
      return _accumulated(loss_of, trained, batch, key_dropout, accumulate)

    value, grads = gradient(trained)
    norm = optax.tree.norm(grads)
    if sam:
      scale = hyper.sam_rho / jnp.maximum(norm, 1e-12)
      uphill = jax.tree.map(lambda p, g: p + scale * g, trained, grads)
      _, grads = gradient(uphill)
    if l2_sp:
      origin, _ = optimizers.split(shared["start"], frozen)
      grads = jax.tree.map(
        lambda g, p, o: g + hyper.l2_sp * (p - o), grads, trained, origin
      )
    direction, opt_state = tx.update(grads, state.opt_state, trained)
    rate = schedules.learning_rate(
      state.step,
      schedule=hyper.schedule,
      peak=hyper.learning_rate,
      total_steps=hyper.total_steps,
      warmup_steps=hyper.warmup_steps,
      cooldown_steps=hyper.cooldown_steps,
    )
    powers, _ = optimizers.split(optimizers.layer_powers(state.params), frozen)
    trained = _moved(trained, direction, rate, decay, powers, hyper)
    metrics = {"loss": value, "learning_rate": rate, "grad_norm": norm}
    return FineTuneState(
      step=state.step + 1,
      params=optimizers.join(trained, rest),
      opt_state=opt_state,
      ema=_averaged(state.ema, trained, state.step, hyper.ema_rates),
    ), metrics

  return step


def _accumulated(loss_of, trained, batch, key, parts):
  """Returns loss and gradient of a batch, computed in equal parts."""
  if parts == 1:
    return jax.value_and_grad(loss_of)(trained, batch, key)

  def cut(x):
    # Every part contains images of every device.
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

  def add(total, part):
    value_and_grad = jax.value_and_grad(loss_of)(trained, *part)
    return jax.tree.map(jnp.add, total, value_and_grad), None

  zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), trained))
  keys = jax.random.split(key, parts)
  total, _ = jax.lax.scan(add, zero, (jax.tree.map(cut, batch), keys))
  return jax.tree.map(lambda x: x / parts, total)


def _moved(trained, direction, rate, decay, powers, hyper):
  """Moves parameters against the direction, with weight decay."""

  def move(p, d, decays, power):
    pull = hyper.weight_decay * p if decays else 0.0
    factor = hyper.layer_decay**power
    return p - (rate * factor * (d + pull)).astype(p.dtype)

  decays = optimizers.matches(trained, decay)
  return jax.tree.map(move, trained, direction, decays, powers)


def _averaged(averages, trained, step, rates):
  """Moves every average by its rate, faster at the beginning.

  The decay is at most (1 + n) / (10 + n) after n updates, as in TensorFlow's
  ExponentialMovingAverage. With a constant 0.9999999, the average of a run of
  20,000 steps would remain at its start.
  """

  def move(average, rate):
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, trained)

  rates = jnp.maximum(rates, 9.0 / (10.0 + step))
  return tuple(move(average, rates[k]) for k, average in enumerate(averages))
