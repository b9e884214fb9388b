# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Short texts that name operations: "inception_crop(224)|flip_lr"."""

import ast
from collections.abc import Callable, Collection, Iterable, Mapping
import difflib
import functools
import inspect
from typing import Any


def parse(
  text: str, ops: Mapping[str, Callable], given_later: Collection[str]
) -> list[tuple[str, Callable]]:
  """Turns "name(1, key=2)|name" into functions whose arguments are bound.

  Args:
    text: calls joined by "|", with literals as arguments; brackets may be left
      out where there are none. Empty means no operation.
    ops: the functions by name.
    given_later: names of parameters that a text does not give.

  Returns:
    (name, function of the other parameters by name), in order; picklable.

  Raises:
    ValueError: for an unknown operation, with suggestions, or for arguments
      that it does not take.
  """
  if not isinstance(text, str):
    raise ValueError(
      f"Operations are a text like 'flip_lr|resize(224)', not {text!r}."
    )
  bound = []
  for part in filter(None, (p.strip() for p in text.split("|"))):
    name, args, kwargs = _call(part)
    if name not in ops:
      raise ValueError(
        f"Unknown operation {name!r} in {text!r}{suggestion(name, ops)}"
      )
    parameters = [
      p
      for p in inspect.signature(ops[name]).parameters.values()
      if p.name not in given_later
    ]
    try:
      given = inspect.Signature(parameters).bind(*args, **kwargs).arguments
    except TypeError as e:
      wanted = ", ".join(map(str, parameters)) or "none"
      raise ValueError(
        f"Operation {part!r}: {e}. Its arguments: {wanted}."
      ) from e
    bound.append((name, functools.partial(ops[name], **given)))
  return bound


def _call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
  """Splits "name(1, key=2)" into its parts."""
  try:
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Name):
      return node.id, [], {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      args = [ast.literal_eval(a) for a in node.args]
      kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
      if None not in kwargs:
        return node.func.id, args, kwargs
  except (SyntaxError, ValueError):
    pass
  raise ValueError(
    f"Cannot read the operation {text!r}: write name, or name(1, key=2) with "
    "plain numbers, words and tuples."
  )


def suggestion(name: str, known: Iterable[str], show: int = 20) -> str:
  """Ends a sentence: ": did you mean 'a' or 'b'?", or what there is."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  if close:
    return f": did you mean {' or '.join(map(repr, close))}?"
  more = f" and {len(known) - show} more" if len(known) > show else ""
  return f": there are {', '.join(known[:show]) or 'none'}{more}."
