# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Open lists of things that a config names: rules, image ops, losses, models.

A name is looked up among the registered functions. One with a dot is an import
path, so that a config can use code that this package has never seen.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
import difflib
import importlib
import inspect
from typing import Any, TypeVar, overload

T = TypeVar("T")


class Registry:
  """Functions or classes by name.

  Examples:
    >>> losses = Registry("loss")
    >>> @losses.register
    ... def hinge(logits, targets):
    ...   return (1 - logits * targets).clip(0).mean()
    >>> losses.get("hinge") is hinge
    True
    >>> losses.get("math.hypot")(3, 4)
    5.0
  """

  def __init__(self, kind: str):
    """Makes an empty list; errors call its members `kind`, as "image op"."""
    self.kind = kind
    self._members: dict[str, Any] = {}

  @overload
  def register(
    self, target: None = None, *, name: str | None = None
  ) -> Callable[[T], T]: ...

  @overload
  def register(self, target: T, *, name: str | None = None) -> T: ...

  def register(self, target: Any = None, *, name: str | None = None) -> Any:
    """Adds a function or class under its own name, as a decorator.

    Args:
      target: what to add.
      name: another name than `target.__name__`.

    Returns:
      The target, unchanged.

    Raises:
      ValueError: if another function already has the name.
    """
    if target is None:
      return lambda target: self.register(target, name=name)
    name = name or target.__name__
    before = self._members.get(name)
    # A config file is executed anew each time it is loaded.
    if before is not None and _origin(before) != _origin(target):
      raise ValueError(
        f"Two {self.kind}s are called {name!r}: {_origin(before)} and "
        f"{_origin(target)}. Rename one, or register it with name=."
      )
    self._members[name] = target
    return target

  def get(self, name: str) -> Any:
    """Returns the member called `name`, or what an import path leads to.

    Raises:
      ValueError: if there is no such member, with suggestions, or nothing at
        that path.
    """
    if name in self._members:
      return self._members[name]
    if "." in name:
      return self._import(name)
    raise ValueError(
      f"Unknown {self.kind} {name!r}{suggestion(name, self._members)}"
    )

  def signature(self, name: str) -> inspect.Signature:
    """Returns the parameters of a member.

    Raises:
      ValueError: if there is no such member, or its parameters are not known.
    """
    target = self.get(name)
    try:
      return inspect.signature(target)
    except (TypeError, ValueError) as e:
      raise ValueError(
        f"The {self.kind} {name!r} is not a Python function: {e}."
      ) from e

  def _import(self, path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    try:
      return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
      raise ValueError(
        f"The {self.kind} {path!r} cannot be imported: {e}. The module must be "
        "installed or on PYTHONPATH."
      ) from e

  def __contains__(self, name: str) -> bool:
    return name in self._members

  def __iter__(self) -> Iterator[str]:
    return iter(sorted(self._members))


def _origin(target: Any) -> str:
  """Says where a function or class was defined."""
  code = getattr(target, "__code__", None)
  where = code.co_filename if code else getattr(target, "__module__", "?")
  return f"{getattr(target, '__qualname__', target)} of {where}"


def suggestion(name: Any, known: Iterable[str], show: int = 20) -> str:
  """Ends a sentence about an unknown name: close matches, or the whole list.

  Examples:
    >>> suggestion("tie", ["ties", "dare", "linear"])
    ": did you mean 'ties'?"
    >>> suggestion("x", ["ties", "dare", "linear"])
    ': there are dare, linear, ties.'
  """
  known = sorted(map(str, known))
  folded = {one.lower(): one for one in known}
  close = difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.5)
  if close:
    names = " or ".join(repr(folded[one]) for one in close)
    return f": did you mean {names}?"
  more = f" and {len(known) - show} more" if len(known) > show else ""
  return f": there are {', '.join(known[:show]) or 'none'}{more}."


def parse_call(
  text: str, value: Callable[[ast.expr], Any] = ast.literal_eval
) -> tuple[str, list[Any], dict[str, Any]]:
  """Splits a call such as `ties(0.2, scale=0.5)` into its parts.

  Args:
    text: a name or an import path, alone or with arguments.
    value: returns the value of an argument, or raises a ValueError.

  Returns:
    The name, the positional arguments and the arguments by name.

  Raises:
    ValueError: if the text is not such a call.

  Examples:
    >>> parse_call("ties(0.2, scale={'head': 0.0, '': 1.0})")
    ('ties', [0.2], {'scale': {'head': 0.0, '': 1.0}})
    >>> parse_call("my_rules.trimmed_mean")
    ('my_rules.trimmed_mean', [], {})
  """
  try:
    node: ast.expr = ast.parse(text.strip(), mode="eval").body
    args, keywords = [], []
    if isinstance(node, ast.Call):
      args, keywords, node = node.args, node.keywords, node.func
    name = ast.unparse(node)
    if not all(part.isidentifier() for part in name.split(".")):
      raise ValueError(name)
    values = {k.arg or "**": value(k.value) for k in keywords}
    if "**" in values:
      raise ValueError("**")
    return name, [value(a) for a in args], values
  except (SyntaxError, ValueError) as e:
    raise ValueError(
      f"Cannot read {text!r}: write a name, or name(1, key=2) with numbers, "
      "quoted words, lists and dicts as arguments."
    ) from e
