# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learned soups (arXiv 2203.05482, Appendix I) in the memory of a few models.

The soup is theta = sum_i a_i theta_i with a = softmax(g). With G the gradient
of the held-out loss at theta,

  dL/dg_i = a_i <G, theta_i - theta>

(for every group of leaves with its own coefficients, over the leaves of that
group). With a base model theta_0 the soup is theta_0 + sum_i l_i (theta_i -
theta_0), the coefficients have any sign, and

  dL/dl_i = <G, theta_i - theta_0>.

A step is therefore one ordinary gradient and one dot product per ingredient,
without a graph over K models. Memory holds the soup, the first model and two
blocks of others (`streamed_passes`). The coefficients of a layer depend on that
layer alone, so AdamW needs one pass: it moves the coefficients of a layer and
mixes the layer again while this layer of all ingredients is in memory. If
layers share coefficients, a step takes two passes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import nonfinite, records, tree
from soupjax.soups.core.ingredient import (
  Ingredient,
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  check_unchanged,
  sharding_of,
)
from soupjax.soups.core.select import Selection
from soupjax.soups.learned import checks, host_optimizers, offload
from soupjax.soups.learned import state as state_lib
from soupjax.soups.learned.granularity import make_layout
from soupjax.soups.learned.options import CoefficientOptimizer, Granularity
from soupjax.soups.learned.streamed_passes import Pool

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSoup:
  """A learned soup.

  Attributes:
    params: the soup, with the dtypes of the first ingredient, or of the base.
    names: names of the ingredients, in the order of the coefficients.
    alphas: group of leaves -> (K,) coefficients, which are positive and sum to
      1, or have any sign and sum with a base. Granularity "model" has a single
      group, "model".
    beta: the learned logit scale. It changes no prediction.
    history: `{"step", "loss", "beta"}` for every step. Its loss is from before
      the step, so the first one belongs to the initial soup.
    base: name of the base, or None.
    residency: place of the ingredients between passes: "device", "host" or
      "disk".
  """

  params: PyTree
  names: tuple[str, ...]
  alphas: dict[str, np.ndarray]
  beta: float
  history: tuple[dict[str, float], ...]
  base: str | None = None
  residency: str = "disk"


def learned_soup(
  ingredients: Models,
  loss: Callable[..., jax.Array],
  *,
  base: Model | None = None,
  granularity: str | Granularity = "layer",
  init: float | Sequence[float] | Mapping[str, Sequence[float]] | None = None,
  steps: int,
  optimizer: str | CoefficientOptimizer = "adamw",
  batches: Iterable[Any] | None = None,
  select: Mapping[str, Any] | None = None,
  dtype: Any = None,
  sharding: Any = None,
  residency: str | float | None = None,
  on_step: Callable[[dict[str, float]], None] | None = None,
  resume: Mapping[str, Any] | None = None,
  on_state: Callable[[dict[str, Any]], None] | None = None,
) -> LearnedSoup:
  """Learns mixing coefficients on held-out data.

  Without a base, coefficients are a softmax and start at the uniform soup. With
  a base they multiply task vectors, have any sign and start at 0.3. With
  `entropy_loss` on unlabelled data this is AdaMerging (arXiv 2310.02575),
  task-wise for granularity "model", layer-wise for "layer" (the paper's
  released code has coefficients for every tensor, and clips them to [0, 1]).

  With residency "disk", memory holds the soup, its gradient, the first
  ingredient (or the base) and two blocks of the others, each no larger than a
  model, whatever the number of ingredients. A step reads every ingredient once
  if coefficients are per layer or tensor, the optimizer is AdamW and there are
  no more than 9 ingredients, and otherwise up to twice. The result does not
  depend on the residency. Unlike those of `uniform_soup`, its last bits may
  depend on the mesh.

  Args:
    ingredients: models in any form, at least two; with a base, at least one.
    loss: `loss(params, beta)`, the loss on all held-out data with logits
      multiplied by the scalar beta; `loss(params, beta, batch)` if `batches`
      is given. Must return one scalar and be traceable: it is compiled once.
      If it has an attribute `mode`, that must be "min".
    base: the model that all ingredients were fine-tuned from, to learn
      coefficients of task vectors instead of a weighted mean.
    granularity: "model", "layer" or "tensor", or a `Granularity`.
    init: K coefficients to start from, or a mapping from every group to K, such
      as `alphas` of another learned soup. Without a base they must be positive
      and are scaled to sum to 1; with a base, one number can stand for all.
    steps: number of optimisation steps; for L-BFGS, the maximum number of
      evaluations of loss and gradient.
    optimizer: "adamw" or "lbfgs", or a `CoefficientOptimizer`.
    batches: an iterable with at least `steps` batches.
    select: leaves that are not mixed with learned coefficients, as in `mix`;
      the loss sees the result. Leaves to keep are taken from `base`.
    dtype: dtype of the floating leaves of the soup; None keeps those of the
      first ingredient, or of the base. The loss sees float32.
    sharding: placement of the ingredients, as in `Ingredient.load`.
    residency: place of the ingredients between passes: "device" (with
      `sharding`), "host", or "disk", with one block read ahead; for the last
      two, trees in memory stay where they are. A number limits their bytes in
      this process: the first place with room for all is used, and logged. If
      there is none, it is "disk", and the leaves that fit are read once and
      stay on the host. None allows half of the free memory.
    on_step: called with every entry of the history.
    resume: the last state of an interrupted run with the same arguments. Only
      `steps` may be larger. Pass the same `batches` from the start: those of
      finished steps are skipped. The result has the same bits as that of an
      uninterrupted run.
    on_state: called after every step with the state that `resume` needs, which
      can be saved as JSON. It has a few numbers per coefficient; with L-BFGS,
      for each evaluation.

  Returns:
    The soup, its coefficients and the losses of all steps.

  Raises:
    ValueError: if there are too few ingredients, trees differ, an ingredient
      has NaN or infinity or no floating leaves, an argument is out of range or
      does not fit the others, batches run out, or the loss, its gradient or the
      soup is not finite.
    TypeError: if an ingredient is not a model.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([0.0, 4.0])}),
    ...           make("b", {"w": jnp.array([4.0, 0.0])})]
    >>> def loss(params, beta):  # Smallest at a quarter of b.
    ...   return ((params["w"] - jnp.array([1.0, 3.0])) ** 2).sum()
    >>> optimizer = sj.CoefficientOptimizer("lbfgs", learn_beta=False)
    >>> soup = sj.learned_soup(
    ...   models, loss, granularity="model", steps=20, optimizer=optimizer)
    >>> soup.alphas["model"].round(3)
    array([0.75, 0.25])
  """
  base = None if base is None else as_ingredient(base, "base")
  selection = Selection(
    as_ingredients(ingredients),
    base=base,
    select=select,
    dtype=dtype,
    mixes_base=base is not None,
  )
  ingredients, base = selection.ingredients, selection.base
  if isinstance(granularity, str):
    granularity = Granularity(granularity)
  if isinstance(optimizer, str):
    optimizer = CoefficientOptimizer(optimizer)
  steps, optimizer = checks.settings(
    ingredients, base, granularity, steps, optimizer, batches
  )
  checks.lower_is_better(loss)
  batches = checks.batches(batches, steps)
  if base is None:
    ingredients = check_ingredients(ingredients)
  else:
    base, *ingredients = check_ingredients([base, *ingredients], has_base=True)
  anchor = base or ingredients[0]
  records.warn_of_other_inits(ingredients)
  layout = make_layout(anchor.specs, granularity)
  if not layout.groups:
    raise ValueError(
      f"{anchor.name!r} has no floating leaf to learn coefficients for. Its "
      f"leaves: {sorted(anchor.specs)[:10]}."
    )
  start = state_lib.start(init, base, layout.groups, len(ingredients))
  state = state_lib.State(
    steps, optimizer, ingredients, base, layout, selection.select
  )
  past = state.restored(resume, start.size + 1)
  placement = offload.choose(
    residency, ingredients[1:] if base is None else ingredients, sharding
  )
  pool = Pool(ingredients, base, layout, sharding, placement)
  pool.check_finite()
  problem = _Problem(
    pool, loss, batches, optimizer.learn_beta, state.history, on_step, selection
  )
  if len(state.history) < steps:
    problem.check_loss()
  x = _minimize(
    problem, np.append(start, 0.0), optimizer, past, state, on_state
  )

  alphas, beta = problem.unpacked(x)
  params = problem.finished(x)
  check_unchanged(ingredients if base is None else [base, *ingredients])
  return LearnedSoup(
    params=params,
    names=tuple(i.name for i in ingredients),
    alphas=dict(zip(layout.groups, alphas)),
    beta=beta,
    history=tuple(state.history),
    base=base.name if base else None,
    residency=placement.place,
  )


def abstract_step(
  ingredients: Sequence[Ingredient],
  loss: Callable[..., jax.Array],
  batch: Any,
  *,
  granularity: Granularity,
  sharding: Any = None,
) -> tuple[Any, tuple[Any, ...]]:
  """Returns the loss and gradient of a step, to be compiled.

  Args:
    ingredients: at least two, without a base or selected leaves.
    loss: as in `learned_soup`, with `batches`.
    batch: shapes and shardings of one batch.
    granularity: of the coefficients.
    sharding: as in `learned_soup`; its devices need not exist.

  Returns:
    The jitted function and its arguments, with shapes in place of leaves.
  """
  anchor = ingredients[0]
  pool = types.SimpleNamespace(
    anchor=anchor,
    layout=make_layout(anchor.specs, granularity),
    # Only integer leaves are used.
    first=[
      None if tree.is_float(spec) else anchor.read(leaf)
      for leaf, spec in anchor.specs.items()
    ],
    sharding=sharding,
  )
  selection = Selection(ingredients, base=None, select=None, dtype=None)
  problem = _Problem(pool, loss, (), True, [], None, selection)
  floats = {
    k: jax.ShapeDtypeStruct(
      spec.shape, np.float32, sharding=sharding_of(sharding, leaf, spec)
    )
    for k, (leaf, spec) in enumerate(anchor.specs.items())
    if k in pool.layout.floats
  }
  args = (floats, np.float32(1), problem.rest, batch)
  return problem.value_and_grad, args


class _Problem:
  """Loss and gradient as functions of unbounded numbers.

  The numbers are the logits of the coefficients, group by group (with a base,
  the coefficients themselves), and the logarithm of beta at the end.
  """

  def __init__(
    self, pool, loss, batches, learn_beta, history, on_step, selection
  ):
    self.pool, self.loss, self.learn_beta = pool, loss, learn_beta
    self.history, self.on_step, self.selection = history, on_step, selection
    self.names = list(pool.anchor.specs)
    self.fixed = selection.fixed(pool.sharding)
    floats = [self.names[k] for k in pool.layout.floats]
    self.ends = selection.ends(floats, pool.sharding)
    # Arguments of the compiled function, where constants would take memory.
    self.rest = {
      "fixed": {k: x for k, x in self.fixed.items() if tree.is_float(x)},
      "bases": {k: end[0] for k, end in zip(floats, self.ends) if end},
    }
    # The next soup, mixed along with the last gradient, and its numbers.
    self._next: tuple[np.ndarray, list[Any]] | None = None
    # Skip the batches of finished steps.
    self.batches = itertools.islice(batches, len(history), None)
    self.value_and_grad = jax.jit(
      jax.value_and_grad(self._loss_of, argnums=(0, 1))
    )

  def _loss_of(self, floats, beta, rest, *batch):
    leaves = {**dict(zip(self.names, self.pool.first)), **self.fixed}
    for name, value in rest["fixed"].items():
      leaves[name] = value.astype(jnp.float32)
    for k, value in floats.items():
      name = self.names[k]
      if name in rest["bases"]:
        # Plain arithmetic instead of compensated sums, for the gradient.
        base = rest["bases"][name].astype(jnp.float32)
        value = base + self.selection.share(name) * (value - base)
      leaves[name] = value
    return self.loss(self.selection.assembled(leaves), beta, *batch)

  def _mixed(self, x: np.ndarray) -> list[Any]:
    """Returns the leaves of a soup."""
    following, self._next = self._next, None
    if following is not None and np.array_equal(following[0], x):
      return following[1]
    return self.pool.mix(self.unpacked(x)[0])

  def finished(self, x: np.ndarray) -> PyTree:
    """Returns the soup in its dtypes.

    Raises:
      ValueError: naming the first leaf that overflows its dtype.
    """
    with self.pool.kept():
      leaves = dict(zip(self.names, self._mixed(x)))
      means = {
        self.names[k]: leaves[self.names[k]] for k in self.pool.layout.floats
      }
      leaves |= {**self.fixed, **self.selection.finished(means, self.ends)}
    specs = self.selection.specs
    nonfinite.check_overflow(
      specs, [leaves[name] for name in specs], checks.TOO_FAR
    )
    return self.selection.assembled(leaves)

  def check_loss(self) -> None:
    """Checks the type of the loss, without computing it."""
    # The check needs the first batch, and puts it back.
    batch = next(self.batches)
    checks.loss(self._loss_of, self.pool, (self.rest, *batch))
    self.batches = itertools.chain([batch], self.batches)

  def unpacked(self, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the coefficients, (groups, K), and beta."""
    alphas = x[:-1].reshape(len(self.pool.layout.groups), -1)
    return self._alphas(alphas), float(np.exp(x[-1]))

  def _alphas(self, numbers: np.ndarray) -> np.ndarray:
    return numbers if self.pool.base else _softmax(numbers)

  def evaluate(
    self, x: np.ndarray, update: host_optimizers.Update | None = None
  ) -> tuple[float, np.ndarray]:
    """Returns the loss and its gradient.

    Args:
      x: the numbers.
      update: moves numbers whose gradient is known. If no layers share
        coefficients, the next soup is then mixed layer by layer, while their
        leaves are in memory for the gradient.
    """
    step, pool = len(self.history), self.pool
    alphas, beta = self.unpacked(x)
    with pool.kept():
      soup = self._mixed(x)
      floats = {
        k: leaf.astype(jnp.float32) for k, leaf in pool.floats(soup).items()
      }
    value, (grads, beta_grad) = self.value_and_grad(
      floats,
      np.float32(beta),
      self.rest,
      *next(self.batches),
    )
    del floats
    value, beta_grad = float(value), float(beta_grad)
    beta_grad = beta_grad * beta if self.learn_beta else 0.0
    specs = pool.anchor.specs
    checks.value(value, step, specs, soup)
    grad = np.zeros_like(x)
    grad[-1] = beta_grad

    def checked(groups, products, specs, leaves):
      if pool.base is None:
        products = alphas[groups] * products
      checks.gradient(products, beta_grad, value, step, specs, leaves)
      numbers = np.arange(alphas.size).reshape(alphas.shape)[groups]
      grad[numbers] = products
      return numbers

    if update is None or not pool.layout.is_separable:
      with pool.kept():
        products = pool.products(grads, soup)
      checked(slice(None), products, specs, soup)
      if update is not None:
        update(slice(None), grad)
    else:
      moved = np.empty_like(x)

      def move(chunk, products):
        part = {name: specs[name] for name in chunk.names}
        numbers = checked(chunk.groups, products, part, chunk.of(soup))
        moved[numbers] = update(numbers, grad[numbers])
        return self._alphas(moved[numbers])

      with pool.kept():
        pool.descend(grads, soup, move)
      moved[-1:] = update(slice(-1, None), grad[-1:])
      self._next = (moved, soup)
    self.history.append({"step": step, "loss": value, "beta": beta})
    if self.on_step:
      self.on_step(self.history[-1])
    return value, grad


def _minimize(problem, x, optimizer, past, state, on_state) -> np.ndarray:
  def save(optimizer_state):
    if on_state:
      on_state(state.saved(optimizer_state))

  arguments = {"steps": state.steps, "state": past, "on_state": save}
  if optimizer.name == "lbfgs":
    return host_optimizers.lbfgs(problem.evaluate, x, **arguments)
  decay = np.full(x.size, optimizer.weight_decay)
  decay[-1] = 0  # Beta does not decay.
  return host_optimizers.adamw(
    problem.evaluate,
    x,
    learning_rate=optimizer.learning_rate,
    weight_decay=decay,
    **arguments,
  )


def _softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(x - x.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)
