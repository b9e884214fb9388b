# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings run and print the outputs shown."""

import doctest
import importlib
import pathlib

import jax
import numpy as np
import pytest

import soupjax

ROOT = pathlib.Path(soupjax.__file__).parent


def with_examples() -> list[str]:
  names = []
  for path in sorted(ROOT.rglob("*.py")):
    if ">>> " in path.read_text(encoding="utf-8"):
      parts = path.relative_to(ROOT.parent).with_suffix("").parts
      names.append(".".join(parts).removesuffix(".__init__"))
  return names


@pytest.fixture(autouse=True)
def as_a_user_has_it(tmp_path, monkeypatch):
  """Provides an empty directory, and jax without the tests' strict settings."""
  monkeypatch.chdir(tmp_path)
  with jax.numpy_rank_promotion("allow"), np.printoptions(legacy=False):
    yield


def run(name: str) -> doctest.TestResults:
  module = importlib.import_module(name)
  globs = {"jax": jax, "jnp": jax.numpy, "np": np, "sj": soupjax}
  flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
  return doctest.testmod(module, extraglobs=globs, optionflags=flags)


@pytest.mark.parametrize("name", with_examples())
def test_examples(name):
  results = run(name)
  assert results.attempted
  assert not results.failed


def test_there_are_examples():
  finder = doctest.DocTestFinder(exclude_empty=True)
  tests = [
    test.name
    for name in with_examples()
    for test in finder.find(importlib.import_module(name))
    if test.examples
  ]
  assert len(tests) >= 30
