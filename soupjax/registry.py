# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Open lists of things that a config names: rules, image ops, losses, models.

A name is looked up among the registered functions. One with a dot is an import
path, so that a config can use code that this package has never seen.
"""

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


def suggestion(name: str, known: Iterable[str], show: int = 20) -> str:
  """Ends a sentence about an unknown name: close matches, or the whole list.

  Examples:
    >>> suggestion("tie", ["ties", "dare", "linear"])
    ": did you mean 'ties'?"
    >>> suggestion("x", ["ties", "dare", "linear"])
    ': there are dare, linear, ties.'
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  if close:
    return f": did you mean {' or '.join(map(repr, close))}?"
  more = f" and {len(known) - show} more" if len(known) > show else ""
  return f": there are {', '.join(known[:show]) or 'none'}{more}."
