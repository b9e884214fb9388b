# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Registries of functions that configs name: rules, image ops, losses, models.

A name with a dot is an import path, so configs can use code outside of this
package.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
import difflib
import importlib
import inspect
import os
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
    """Makes an empty registry of a kind, such as "image op", for errors."""
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
      target: the function or class.
      name: a name to use instead of `target.__name__`.

    Returns:
      The target, unchanged.

    Raises:
      ValueError: if another function or class already has the name.
    """
    if target is None:
      return lambda target: self.register(target, name=name)
    name = name or target.__name__
    earlier = self._members.get(name)
    # A config file is executed again each time it is loaded.
    if earlier is not None and _origin(earlier) != _origin(target):
      raise ValueError(
        f"Two {self.kind}s are called {name!r}: {_origin(earlier)} and "
        f"{_origin(target)}. Rename one, or register it with name=."
      )
    self._members[name] = target
    return target

  def get(self, name: str) -> Any:
    """Returns the member called `name`, or the object at an import path.

    Raises:
      ValueError: if neither exists. The message suggests names.
    """
    if name in self._members:
      return self._members[name]
    if "." in name:
      return self._import(name)
    raise ValueError(
      f"Unknown {self.kind} {name!r}{suggestion(name, self._members)}"
    )

  def signature(self, name: str) -> inspect.Signature:
    """Returns the signature of a member.

    Raises:
      ValueError: if the member does not exist, or has no signature.
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
  """Describes a function or class by its name and its file or module."""
  target = inspect.unwrap(target)
  # All config files are loaded under one module name, so compare their paths.
  # The path of a class is that of its first method.
  parts = vars(target).values() if inspect.isclass(target) else [target]
  codes = (
    getattr(inspect.unwrap(part), "__code__", None)
    for part in parts
    if callable(part)
  )
  code = next(filter(None, codes), None)
  file = code.co_filename if code else getattr(target, "__module__", "?")
  # The same file may be loaded by a relative and an absolute path.
  if os.path.exists(file):
    file = os.path.abspath(file)
  return f"{getattr(target, '__qualname__', target)} of {file}"


def suggestion(name: Any, known: Iterable[str], show: int = 20) -> str:
  """Returns the end of an error about an unknown name: names to use instead.

  Args:
    name: the unknown name.
    known: the names that exist.
    show: maximum number of names to list, if none is similar.

  Examples:
    >>> suggestion("tie", ["ties", "dare", "linear"])
    ": did you mean 'ties'?"
    >>> suggestion("x", ["ties", "dare", "linear"])
    ': there are dare, linear, ties.'
  """
  known = sorted(map(str, known))
  folded = {member.lower(): member for member in known}
  close = difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.5)
  if close:
    names = " or ".join(repr(folded[member]) for member in close)
    return f": did you mean {names}?"
  more = f" and {len(known) - show} more" if len(known) > show else ""
  return f": there are {', '.join(known[:show]) or 'none'}{more}."


def parse_call(
  text: str, value: Callable[[ast.expr], Any] = ast.literal_eval
) -> tuple[str, list[Any], dict[str, Any]]:
  """Splits a call such as `ties(0.2, scale=0.5)` into its parts.

  Args:
    text: a name or an import path, alone or with arguments.
    value: evaluates the syntax tree of an argument, or raises a ValueError.

  Returns:
    The name, the positional arguments and the keyword arguments.

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
      "quoted strings, lists and dicts as arguments."
    ) from e
