# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Operations as text: "inception_crop(224)|flip_lr|my_ops.sharpen(2)"."""

import ast
from collections.abc import Callable, Collection
import dataclasses
import functools
import inspect
from typing import Any

from soupjax import registry


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
  """An argument in braces, such as {mixup}; its value is given at call time."""

  name: str


def parse(
  text: str,
  ops: registry.Registry,
  given_later: Collection[str],
  names: Collection[str] = (),
) -> list[tuple[str, functools.partial]]:
  """Turns "name(1, key={hyper})|name" into functions with bound arguments.

  Args:
    text: calls joined by "|"; parentheses may be omitted if there are no
      arguments. A name is registered, or an import path such as
      `my_ops.sharpen`. Arguments are literals, or hyperparameters in braces.
      An empty text means no operation.
    ops: the registered functions.
    given_later: parameters that are passed when the function is called; every
      function must have the first of them.
    names: the hyperparameters that are allowed in braces.

  Returns:
    (name, partial function) of each call, in order. The keywords of the partial
    hold the arguments, with a `Hyperparameter` for each in braces; picklable.

  Raises:
    ValueError: for an unknown operation or hyperparameter, with suggestions,
      or for arguments that the operation does not take.
  """
  if not isinstance(text, str):
    raise ValueError(
      f"Operations must be text such as 'flip_lr|resize(224)', not {text!r}."
    )
  calls = [part for part in map(str.strip, text.split("|")) if part]
  return [_bind(call, ops, tuple(given_later), names) for call in calls]


def _bind(call, ops, given_later, names) -> tuple[str, functools.partial]:
  name, args, kwargs = registry.parse_call(call, value=_value)
  function = ops.get(name)
  parameters = _parameters(function)
  if given_later[0] not in {p.name for p in parameters}:
    raise ValueError(
      f"{name!r} cannot be used as {ops.kind}: it needs a parameter called "
      f"{given_later[0]!r}, but has "
      f"{', '.join(p.name for p in parameters) or 'none'}."
    )
  parameters = [p for p in parameters if p.name not in given_later]
  try:
    bound = inspect.Signature(parameters).bind(*args, **kwargs)
  except TypeError as e:
    listed = ", ".join(map(str, parameters)) or "none"
    raise ValueError(
      f"Operation {call!r}: {e}. Its arguments: {listed}."
    ) from e
  for value in bound.arguments.values():
    if isinstance(value, Hyperparameter) and value.name not in names:
      raise ValueError(
        f"{{{value.name}}} in {call!r} is not a hyperparameter"
        f"{registry.suggestion(value.name, names)}"
      )
  return name, functools.partial(function, **bound.arguments)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
  """Returns the parameters that can be passed by name."""
  try:
    parameters = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):  # Not a function, or written in C.
    return []
  by_name = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  return [p for p in parameters if p.kind in by_name]


def _value(node: ast.expr) -> Any:
  if not isinstance(node, ast.Set):
    return ast.literal_eval(node)
  # Python parses {name} as a set.
  if len(node.elts) == 1 and isinstance(node.elts[0], ast.Name):
    return Hyperparameter(node.elts[0].id)
  raise ValueError("braces must hold exactly one name")
