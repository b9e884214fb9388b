# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Names that a config may use, from inside and outside the package."""

import math
import re

import pytest

from soupjax.registry import Registry, parse_call, suggestion


def _named(name):
  def function():
    return name

  function.__name__ = function.__qualname__ = name
  return function


def test_a_registered_function_is_returned_by_its_name():
  registry = Registry("rule")
  f = registry.register(_named("mean"))
  g = registry.register(name="average")(_named("other"))
  assert registry.get("mean") is f
  assert registry.get("average") is g
  assert list(registry) == ["average", "mean"]
  assert "mean" in registry and "other" not in registry


def test_a_name_with_a_dot_is_imported():
  assert Registry("rule").get("math.hypot") is math.hypot


def test_two_functions_of_one_name_are_refused():
  registry = Registry("rule")
  registry.register(_named("mean"))
  with pytest.raises(ValueError, match="'mean'"):
    registry.register(math.hypot, name="mean")


def test_the_same_definition_may_be_registered_again():
  registry = Registry("rule")
  first, again = _named("mean"), _named("mean")
  registry.register(first)
  registry.register(again)
  assert registry.get("mean") is again


@pytest.mark.parametrize("path", ["no_such.thing", "math.no_such", "math..x"])
def test_an_import_path_that_leads_nowhere_is_an_error(path):
  with pytest.raises(ValueError, match=path):
    Registry("rule").get(path)


def test_unknown_names_come_with_suggestions():
  registry = Registry("rule")
  registry.register(_named("linear"))
  with pytest.raises(ValueError, match="'linear'"):
    registry.get("liner")
  assert suggestion("x", ["a", "b"]) == ": there are a, b."


def test_only_functions_have_a_signature():
  registry = Registry("rule")
  registry.register(_named("mean"))
  assert not registry.signature("mean").parameters
  for name in ("math.pi", "builtins.dict"):
    with pytest.raises(ValueError, match=f"{name!r}"):
      registry.signature(name)


@pytest.mark.parametrize(
  "text,parts",
  [
    ("ties", ("ties", [], {})),
    (" my.rules.mean( ) ", ("my.rules.mean", [], {})),
    (
      "ties(-0.2, scale={'a.b': 1, '': [1, 2]}, compat=None)",
      ("ties", [-0.2], {"scale": {"a.b": 1, "": [1, 2]}, "compat": None}),
    ),
  ],
)
def test_parse_call(text, parts):
  assert parse_call(text) == parts


@pytest.mark.parametrize(
  "text", ["", "f(", "f(x)", "f(**{'a': 1})", "f(*[1])", "f()()", "1", "a b"]
)
def test_parse_call_bad(text):
  with pytest.raises(ValueError, match=f"Cannot read {re.escape(repr(text))}"):
    parse_call(text)


@pytest.mark.parametrize(
  "text",
  [
    "def tint():\n  return 1\n",
    "class tint:\n  def f(self):\n    return 1\n",
  ],
)
def test_one_file_by_two_paths_is_one_definition(tmp_path, monkeypatch, text):
  registry = Registry("batch op")
  (tmp_path / "config.py").write_text(text)
  monkeypatch.chdir(tmp_path)
  for path, module in (("config.py", "a"), (tmp_path / "config.py", "b")):
    names = {"__name__": module}
    exec(compile(text, str(path), "exec"), names)
    registry.register(names["tint"])
  assert registry.get("tint") is names["tint"]
