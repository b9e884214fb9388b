# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules
from soupjax.soups.engine import first_pass
from soupjax.soups.engine import plan as planning


def reader(values, threads=4, **more):
  ingredients = [
    sj.Ingredient.from_params(f"m{k}", {"w": np.asarray(v, "f")})
    for k, v in enumerate(values)
  ]
  plan = planning.make(
    rules.geometric_median(), ingredients, threads=threads, **more
  )
  return first_pass.LeafReader(plan)


def test_sums_are_in_order_whichever_thread_is_first(monkeypatch):
  monkeypatch.setattr(first_pass, "_UNIT_BYTES", 0)
  monkeypatch.setattr(first_pass, "_UNIT_ELEMENTS", 1)

  def reduce(stack, base):
    assert base is None
    time.sleep(0.02 if stack[0, 0] == 1e17 else 0)
    return stack[0].astype(np.float64)

  # This order loses the 1; others do not.
  sums = reader([[1.0, 1e17, -1e17, 2.0]]).each(reduce)
  assert sums["w"].tolist() == [2]


def test_units_of_many_models_are_smaller(monkeypatch):
  monkeypatch.setattr(first_pass, "_MOST_BYTES", 4 * 4 * 10)
  stack, sizes = np.arange(3 * 35).reshape(3, 35), []

  def reduce(stack, base):
    sizes.append(stack.shape)
    return stack.sum(1)

  assert reader(stack).total(reduce, ["w"]).tolist() == stack.sum(1).tolist()
  assert set(sizes) == {(3, 9), (3, 8)} and len(sizes) == 4
  chosen = reader(stack).total(lambda stack, base: stack.sum(1), ["w"], [2])
  assert chosen.tolist() == [stack[2].sum()]


def test_bytes_and_errors():
  leaves = reader([[1.0, 2.0], [3.0, 4.0]])
  total = leaves.total(lambda stack, base: stack.sum(1), ["w"])
  assert total.tolist() == [3, 7]
  assert leaves.bytes_read == 16
  assert leaves.total(lambda stack, base: 1, []) is None

  def broken(stack, base):
    raise OSError("gone")

  with pytest.raises(OSError, match="gone"):
    leaves.each(broken)


def test_leaves_that_the_rule_does_not_merge_are_not_measured():
  trees = [{"a": np.ones(2, "f"), "n": np.arange(3), "s": np.ones(1, "f")}] * 2
  plan = planning.make(
    rules.geometric_median(),
    [sj.Ingredient.from_params(str(k), t) for k, t in enumerate(trees)],
    select={"s": (1.0, 0.0)},
  )
  assert list(first_pass.LeafReader(plan).specs) == ["a"]


def test_the_report_counts_what_was_measured():
  trees = [{"w": np.ones(10, "f")}] * 2
  ingredients = [
    sj.Ingredient.from_params(str(k), t) for k, t in enumerate(trees)
  ]
  assert sj.mix(rules.karcher(), ingredients).report.bytes_read == 160
  base = sj.Ingredient.from_params("base", trees[0])
  report = sj.mix(rules.ties(0.5), ingredients, base=base).report
  assert report.bytes_read == 3 * 120


def test_processes_add_up_in_the_order_of_one(monkeypatch):
  monkeypatch.setattr(first_pass, "_UNIT_BYTES", 0)
  monkeypatch.setattr(first_pass, "_UNIT_ELEMENTS", 1)
  model = sj.Ingredient.from_params("m", {"w": np.float32([1, 1e17, -1e17, 2])})
  plan = planning.make(rules.geometric_median(), [model])
  sent = []

  def run(index, gather):
    processes = first_pass.Processes(index, 2, gather)
    leaves = first_pass.LeafReader(plan, processes)
    total = leaves.each(lambda stack, base: stack[0].astype(np.float64))
    assert leaves.bytes_read == 8
    return total["w"].tolist()

  for index in range(2):
    run(index, lambda data: [sent.append(data) or data])
  # Sums of single processes would add up to 0.
  assert run(0, lambda data: sent) == run(1, lambda data: sent) == [2]
