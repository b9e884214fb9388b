# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Task vectors: differences of models, to add and scale."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from soupjax.checkpoints import mix as mix_lib
from soupjax.soups.core import compensated
from soupjax.soups.core.ingredient import Ingredient, as_ingredient
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.arithmetic import combine_deltas
from soupjax.soups.rules.linear import linear
from soupjax.soups.search.interpolate import key_of

PyTree = Any
Model = Ingredient | str | os.PathLike | PyTree


class TaskVector:
  """`finetuned - pretrained` (arXiv 2212.04089), not yet calculated.

  A task vector is a list of models with coefficients. It can be negated, added,
  subtracted and multiplied by a number, and sums of many are as cheap as one:
  weights are read when it is applied, block by block.

  Examples:
    >>> pretrained = {"w": jnp.array([1.0, 1.0])}
    >>> cars, dtd = {"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, 5.0])}
    >>> both = sj.TaskVector(pretrained, cars) + sj.TaskVector(pretrained, dtd)
    >>> (0.5 * both).apply_to(pretrained)["w"]
    Array([2., 3.], dtype=float32)

    Of files, to a file:

        both = sj.TaskVector("pre.npz", "cars.npz") + sj.TaskVector(
            "pre.npz", "dtd.npz")
        (0.3 * both).apply_to("pre.npz", out="edited.npz")
  """

  def __init__(self, pretrained: Model, finetuned: Model):
    """Args: pretrained and finetuned: paths, ingredients, or trees."""
    terms: dict[Any, tuple[Model, float]] = {}
    for model, sign in ((finetuned, 1.0), (pretrained, -1.0)):
      key = key_of(model)
      before = terms[key][1] if key in terms else 0.0
      terms[key] = (model, before + sign)
    self._terms: Mapping[Any, tuple[Model, float]] = _without_zeros(terms)

  @classmethod
  def _of(cls, terms) -> "TaskVector":
    made = cls.__new__(cls)
    made._terms = _without_zeros(terms)
    return made

  @property
  def terms(self) -> list[tuple[Model, float]]:
    """The models and what each is multiplied by."""
    return list(self._terms.values())

  def opened(self) -> list[tuple[Any, Ingredient, float]]:
    """The terms with their models opened; no weights are read.

    Returns:
      For each what identifies the model, the model, and its coefficient.

    Raises:
      ValueError: if a file cannot be opened.
    """
    return [
      (key, _open(model, f"term {k}"), c)
      for k, (key, (model, c)) in enumerate(self._terms.items())
    ]

  def __repr__(self) -> str:
    words = [f"{c:+g} {_name(m)}" for m, c in self._terms.values()]
    return f"TaskVector({' '.join(words) or '0'})"

  def __neg__(self) -> "TaskVector":
    return -1.0 * self

  def __add__(self, other: "TaskVector") -> "TaskVector":
    if isinstance(other, int | float) and other == 0:  # sum() begins with 0.
      return self
    if not isinstance(other, TaskVector):
      return NotImplemented
    terms = dict(self._terms)
    for key, (model, c) in other._terms.items():
      before = terms[key][1] if key in terms else 0.0
      terms[key] = (model, before + c)
    return self._of(terms)

  __radd__ = __add__

  def __sub__(self, other: "TaskVector") -> "TaskVector":
    return self + -other if isinstance(other, TaskVector) else NotImplemented

  def __mul__(self, number: float) -> "TaskVector":
    if isinstance(number, TaskVector):
      return NotImplemented
    number = rule_base.check_number("A factor of a task vector", number)
    return self._of({k: (m, number * c) for k, (m, c) in self._terms.items()})

  __rmul__ = __mul__

  def __truediv__(self, number: float) -> "TaskVector":
    return self * (1 / number)

  def apply_to(
    self,
    target: Model,
    scale: coefficients.Coefficient = 1.0,
    **settings: Any,
  ) -> PyTree | mix_lib.Mixed:
    """Returns `target + scale * self`.

    Args:
      target: what to edit: a model in any form.
      scale: one number, or one for each leaf, as for `rules.task_arithmetic`.
      **settings: of `soupjax.mix`: `out`, `sharding`, `dtype`, `select`, ...
        The base of `select` is the target.

    Returns:
      The tree; or with `out`, what `mix` returns. With scale 1, the task vector
      of the target itself and one fine-tuned model gives that model, bit for
      bit.

    Raises:
      ValueError: if the models do not fit together.
    """
    target_key = key_of(target)
    others = {k: one for k, one in self._terms.items() if k != target_key}
    weights = [c for _, c in others.values()]
    values, leaf_values = coefficients.split(
      "scale",
      scale,
      # The target differs from itself by zero, and needs no term. (The
      # coefficients of a task vector sum to zero, so that differences can be
      # taken from any model.)
      lambda number, count: compensated.delta_coefficients(weights, number),
    )
    models = [_open(target, "target")]
    for k, (model, _) in enumerate(others.values()):
      models.append(_open(model, f"term {k + 1}"))
    # Pairs, for names of people's models may be the same; called as the record
    # calls its ingredients.
    terms = [[m.name, c] for m, c in zip(models[1:], weights)]
    if target_key in self._terms:
      terms.append([models[0].name, self._terms[target_key][1]])
    rule = rule_base.Rule(
      name="task_vector",
      combine=_combine,
      values=values,
      leaf_values=leaf_values,
      settings={"scale": coefficients.check("scale", scale), "terms": terms},
    )
    if not others:
      rule = _nothing_added(rule)
    if settings.get("select"):
      settings.setdefault("base", models[0])
    mixed = mix_lib.mix(rule, models, **settings)
    return mixed if mixed.params is None else mixed.params


def _combine(stack, base, values):
  del base
  return combine_deltas(stack[1:], stack[0], values)


def _nothing_added(rule: rule_base.Rule) -> rule_base.Rule:
  """The rule of no terms: the target, with scales checked all the same."""
  alone, scales = linear(), rule.leaf_values
  leaf_values = None
  if scales:

    def leaf_values(leaves, count, every):
      return {
        leaf: alone.values(count) for leaf in scales(leaves, count, every)
      }

  return dataclasses.replace(
    rule,
    combine=alone.combine,
    values=alone.values,
    leaf_values=leaf_values,
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


def _without_zeros(terms):
  return {k: (m, c) for k, (m, c) in terms.items() if c != 0}
