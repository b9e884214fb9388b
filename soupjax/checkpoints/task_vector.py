# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Task vectors: differences of models that can be added and scaled."""

import dataclasses
import os
from typing import Any

from soupjax.checkpoints import mix as mix_lib
from soupjax.soups.core import compensated
from soupjax.soups.core.ingredient import Ingredient, as_ingredient
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.linear import linear
from soupjax.soups.search.interpolate import key_of

PyTree = Any
Model = Ingredient | str | os.PathLike | PyTree


class TaskVector:
  """The difference `finetuned - pretrained` (arXiv 2212.04089), kept lazy.

  A task vector is a list of models with coefficients. It can be negated, added,
  subtracted and multiplied by a number. Weights are read block by block when it
  is applied, so that a sum of many task vectors costs one pass.

  Examples:
    >>> pretrained = {"w": jnp.array([1.0, 1.0])}
    >>> cars, dtd = {"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, 5.0])}
    >>> both = sj.TaskVector(pretrained, cars) + sj.TaskVector(pretrained, dtd)
    >>> (0.5 * both).apply_to(pretrained)["w"]
    Array([2., 3.], dtype=float32)

    From files to a file:

        both = sj.TaskVector("pre.npz", "cars.npz") + sj.TaskVector(
            "pre.npz", "dtd.npz")
        (0.3 * both).apply_to("pre.npz", out="edited.npz")
  """

  def __init__(self, pretrained: Model, finetuned: Model):
    """Makes the difference of two models, each a path, Ingredient or tree."""
    self._terms = _sum((finetuned, 1.0), (pretrained, -1.0))

  @classmethod
  def _of(cls, *terms: tuple[Model, float]) -> "TaskVector":
    vector = cls.__new__(cls)
    vector._terms = _sum(*terms)
    return vector

  @property
  def terms(self) -> list[tuple[Model, float]]:
    """The models with their coefficients."""
    return list(self._terms.values())

  def opened(self) -> list[tuple[Any, Ingredient, float]]:
    """Opens the models of all terms without reading weights.

    Returns:
      Key, model and coefficient of every term.

    Raises:
      ValueError: if a file cannot be opened.
    """
    return [
      (key, _open(model, f"term {k}"), c)
      for k, (key, (model, c)) in enumerate(self._terms.items())
    ]

  def __repr__(self) -> str:
    terms = [f"{c:+g} {_name(model)}" for model, c in self.terms]
    return f"TaskVector({' '.join(terms) or '0'})"

  def __neg__(self) -> "TaskVector":
    return -1.0 * self

  def __add__(self, other: "TaskVector") -> "TaskVector":
    if isinstance(other, int | float) and other == 0:  # sum() starts with 0.
      return self
    if not isinstance(other, TaskVector):
      return NotImplemented
    return self._of(*self.terms, *other.terms)

  __radd__ = __add__

  def __sub__(self, other: "TaskVector") -> "TaskVector":
    return self + -other if isinstance(other, TaskVector) else NotImplemented

  def __mul__(self, number: float) -> "TaskVector":
    if isinstance(number, TaskVector):
      return NotImplemented
    number = rule_base.check_number("A factor of a task vector", number)
    return self._of(*((model, number * c) for model, c in self.terms))

  __rmul__ = __mul__

  def __truediv__(self, number: float) -> "TaskVector":
    return self * (1 / number)

  def apply_to(
    self, target: Model, scale: coefficients.Coefficient = 1.0, **settings: Any
  ) -> PyTree | mix_lib.Mixed:
    """Returns `target + scale * self`.

    Args:
      target: the model to edit, in any form.
      scale: one number, or one for each leaf, as in `rules.task_arithmetic`.
      **settings: other arguments of `soupjax.mix`: `out`, `sharding`, `dtype`,
        `select`, ... The base of `select` is the target.

    Returns:
      The tree; or the result of `mix` with `out` or `dry_run`. With scale 1,
      the task vector from the target to one fine-tuned model gives that model,
      bit for bit.

    Raises:
      ValueError: if the models do not fit together.
    """
    target_key = key_of(target)
    others = [term for key, term in self._terms.items() if key != target_key]
    weights = [c for _, c in others]
    models = [_open(target, "target")]
    for k, (model, _) in enumerate(others):
      models.append(_open(model, f"term {k + 1}"))
    # Pairs, since two models may have the same name.
    terms = [[m.name, c] for m, c in zip(models[1:], weights)]
    if target_key in self._terms:
      terms.append([models[0].name, self._terms[target_key][1]])
    rule = rule_base.scaled_rule(
      "task_vector",
      _combine,
      # Coefficients of a task vector sum to zero, so all models may be replaced
      # by their differences from the target. Its own term is then zero.
      lambda number, _, count: compensated.delta_coefficients(weights, number),
      scale,
      settings={"terms": terms},
      affine=True,
    )
    if not others:
      rule = _nothing_added(rule)
    if settings.get("select"):
      settings.setdefault("base", models[0])
    mixed = mix_lib.mix(rule, models, **settings)
    return mixed if mixed.params is None else mixed.params


def _combine(stack, base, values):
  del base
  return compensated.linear(stack, values["weights"], values["scale"])


def _nothing_added(rule: rule_base.Rule) -> rule_base.Rule:
  """Returns the rule without terms: the target, with scales still checked."""
  alone, scales = linear(), rule.leaf_values
  leaf_values = None
  if scales:

    def leaf_values(leaves, count, every):
      return {
        leaf: alone.values(count) for leaf in scales(leaves, count, every)
      }

  return dataclasses.replace(
    rule, combine=alone.combine, values=alone.values, leaf_values=leaf_values
  )


def _name(model) -> str:
  if isinstance(model, Ingredient):
    return model.name
  return str(model) if isinstance(model, str | os.PathLike) else "a tree"


def _open(model, label):
  opened = as_ingredient(model, label)
  if opened.name == label:
    return opened
  return dataclasses.replace(opened, name=f"{label}, {opened.name}")


def _sum(*terms: tuple[Model, float]) -> dict[Any, tuple[Model, float]]:
  """Adds the coefficients of equal models; drops those that are zero."""
  total: dict[Any, tuple[Model, float]] = {}
  for model, c in terms:
    key = key_of(model)
    total[key] = (model, total[key][1] + c if key in total else c)
  return {k: (model, c) for k, (model, c) in total.items() if c != 0}
