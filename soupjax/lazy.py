# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Submodules as attributes of their package, imported at first use."""

from collections.abc import Callable, Iterable
import importlib
import pkgutil
import sys
from typing import Any


def submodules(
  package: str, path: Iterable[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """Makes `__getattr__` and `__dir__` of a package.

  Args:
    package: `__name__` of the package.
    path: `__path__` of the package.

  Returns:
    Both, to use as `__getattr__, __dir__ = submodules(__name__, __path__)`.
  """
  names = {module.name for module in pkgutil.iter_modules(path)}

  def get(name: str) -> Any:
    if name in names:
      return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}")

  return get, lambda: sorted({*vars(sys.modules[package]), *names})
