# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups with replacement, patience and limits, and of losses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.greedy import decisions, soup


def pool_of(seed, count=6, size=5):
  rng = np.random.default_rng(seed)
  return [
    sj.Ingredient.from_params(f"m{k}", {"w": rng.normal(size=size).astype("f")})
    for k in range(count)
  ]


def distance(params):
  """A loss: the squared norm, which is lower for a mean of noise."""
  return float(np.square(np.float64(params["w"])).sum())


def closeness(params):
  return -distance(params)


def multiset(pool, names):
  """Ingredients, repeated as often as named, under distinct names."""
  by_name = {i.name: i for i in pool}
  return [
    dataclasses.replace(by_name[name], name=f"{k}: {name}")
    for k, name in enumerate(names)
  ]


def assert_same_bits(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("accept", ["ge", "gt"])
@pytest.mark.parametrize("seed", range(5))
def test_lower_is_better_is_higher_is_better_turned_around(seed, accept):
  pool = pool_of(seed)
  low = sj.greedy_soup(
    pool, distance, mode="min", accept=accept, min_delta=0.01
  )
  high = sj.greedy_soup(pool, closeness, accept=accept, min_delta=0.01)
  assert low.selected == high.selected
  assert_same_bits(low.params, high.params)
  assert low.score == -high.score
  for a, b in zip(low.history, high.history):
    assert (a.score, a.accepted, a.size) == (-b.score, b.accepted, b.size)
    if a.bar is not None and a.accepted:
      assert a.score < a.bar and a.reason.startswith("lowers the score by")
    elif a.bar is not None and a.score > a.bar:
      assert a.reason.startswith("raises the score by")


class Bounded:
  """A sum of terms that stops early when it cannot be low enough."""

  mode = "min"

  def __call__(self, params):
    return distance(params)

  def evaluate_until(self, params, can_reach):
    terms = np.square(np.float64(params["w"]))
    for k in range(1, len(terms)):
      bound = float(terms[:k].sum()) * (1 - 1e-12)
      if not can_reach(bound):
        return decisions.Trial(
          score=None, bound=bound, evaluated=k / len(terms)
        )
    return decisions.Trial(score=distance(params))

  def set_incumbent(self):
    pass


@pytest.mark.parametrize("rounds", [1, 3])
def test_early_rejection_of_losses(rounds):
  given_up = 0
  for seed in range(6):
    pool = pool_of(seed)
    early = sj.greedy_soup(
      pool, Bounded(), mode="min", turns=sj.Turns(rounds=rounds)
    )
    full = sj.greedy_soup(
      pool, distance, mode="min", turns=sj.Turns(rounds=rounds)
    )
    assert early.selected == full.selected
    assert_same_bits(early.params, full.params)
    for a, b in zip(early.history, full.history, strict=True):
      assert a.accepted == b.accepted
      if a.score is None:
        given_up += 1
        assert b.score >= a.bound > a.bar
        assert a.reason == (
          f"would score at least {a.bound:.6g}, "
          f"{a.bound - a.bar:.6g} above the bar of {a.bar:.6g}"
        )
  assert given_up > 3


@pytest.mark.parametrize(
  "mode,accept,bound,ending",
  [
    ("max", "ge", 0.5, "0.26 below the bar of 0.76 (0.75 and min_delta 0.01)"),
    ("max", "gt", 0.76, "but must beat 0.76 (0.75 and min_delta 0.01)"),
    ("min", "ge", 1.0, "0.26 above the bar of 0.74 (0.75 and min_delta 0.01)"),
  ],
)
def test_an_early_rejection_says_by_how_much(mode, accept, bound, ending):
  rule = decisions.AcceptanceRule.of(accept, 0.01, mode)
  trial = decisions.Trial(score=None, bound=bound, evaluated=0.5)
  reason = decisions.decide("m", trial, 0.75, rule, 1).reason
  extreme = "most" if mode == "max" else "least"
  assert reason == f"would score at {extreme} {bound:.6g}, {ending}"


def test_an_evaluator_knows_which_way_is_better():
  with pytest.raises(ValueError, match="'max'.*'min'"):
    sj.greedy_soup(pool_of(0), Bounded())


@pytest.mark.parametrize("seed", range(4))
def test_with_replacement_the_bits_are_those_of_the_multiset(seed):
  pool = pool_of(seed)
  soup = sj.greedy_soup(pool, closeness, turns=sj.Turns(rounds=20))
  assert len(set(soup.selected)) < len(soup.selected)
  assert_same_bits(soup.params, sj.uniform_soup(multiset(pool, soup.selected)))
  assert sum(soup.weights.values()) == pytest.approx(1)
  first = soup.selected[0]
  assert soup.weights[first] == soup.selected.count(first) / len(soup.selected)
  # One round is the beginning of many.
  once = sj.greedy_soup(pool, closeness)
  assert soup.history[: len(pool)] == once.history
  assert soup.score >= once.score


def test_rounds_end_when_another_would_change_nothing():
  pool = pool_of(1)
  soup = sj.greedy_soup(
    pool, closeness, turns=sj.Turns(rounds=100), accept="gt"
  )
  assert len(soup.history) < 100 * len(pool)
  assert not any(d.accepted for d in soup.history[-len(pool) :])
  assert soup.history[-len(pool) - 1].accepted


def test_max_size_counts_what_is_in_twice():
  pool = pool_of(2)
  soup = sj.greedy_soup(
    pool, lambda _: 0.5, turns=sj.Turns(rounds=3, max_size=8)
  )
  assert len(soup.selected) == len(soup.history) == 8
  assert soup.selected == tuple(f"m{k % 6}" for k in range(8))


def test_patience():
  scores = iter([5, 4, 6, 4, 4, 9])
  soup = sj.greedy_soup(
    pool_of(3), lambda _: next(scores), turns=sj.Turns(patience=2)
  )
  assert [d.accepted for d in soup.history] == [True, False, True, False, False]


def test_resumes_from_every_prefix_of_rounds():
  pool = pool_of(4)
  settings = dict(turns=sj.Turns(rounds=8, patience=5, max_size=9))
  want = sj.greedy_soup(pool, closeness, **settings)
  assert len(want.history) > 2 * len(pool)
  calls = []
  for cut in range(len(want.history) + 1):
    past = [dataclasses.asdict(d) for d in want.history[:cut]]
    count = len(calls)
    got = sj.greedy_soup(
      pool,
      lambda p: calls.append(1) or closeness(p),
      resume=json.loads(json.dumps(past)),
      **settings,
    )
    assert got.history == want.history
    assert len(calls) - count == len(want.history) - cut
    assert_same_bits(got.params, want.params)


@pytest.mark.parametrize(
  "settings,message",
  [
    ({}, "Decision 6 .*'m0'"),
    (
      {"turns": sj.Turns(rounds=9, patience=1)},
      r"patience=1",
    ),
    (
      {"turns": sj.Turns(rounds=9, max_size=2)},
      r"max_size=2",
    ),
    (
      {"turns": sj.Turns(rounds=9), "mode": "min"},
      "Decision 1 .*acceptance rule",
    ),
  ],
)
def test_resume_notices_other_ends(settings, message):
  pool = pool_of(4)
  history = sj.greedy_soup(pool, closeness, turns=sj.Turns(rounds=9)).history
  with pytest.raises(ValueError, match=message):
    sj.greedy_soup(
      pool, lambda _: pytest.fail("called"), resume=history, **settings
    )


@pytest.mark.parametrize(
  "settings,message",
  [
    ({"mode": "lowest"}, "mode .*'lowest'"),
    ({"turns": sj.Turns(rounds=0)}, "rounds .*0"),
    (
      {"turns": sj.Turns(patience=1.5)},
      "patience .*1.5",
    ),
    ({"turns": sj.Turns(max_size=0)}, "max_size .*0"),
  ],
)
def test_refuses_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    sj.greedy_soup(pool_of(0), lambda _: pytest.fail("called"), **settings)


def test_what_was_read_too_early_is_not_evaluated():
  calls = []
  sj.greedy_soup(
    pool_of(5),
    lambda _: calls.append(1) or -len(calls),
    turns=sj.Turns(patience=1),
  )
  assert len(calls) == 2


def test_the_reading_thread_puts_floats_on_devices_and_leaves_counters():
  # JAX would cut the counter to 32 bits.
  params = {"w": np.ones(3, np.float32), "step": np.int64(2**40)}
  model = sj.Ingredient.from_params("m", params)
  ((turn, got),) = soup._read_ahead(iter([(0, model)]), None)
  assert turn == (0, model)
  assert isinstance(got["w"], jax.Array)
  assert got["step"] == 2**40 and got["step"].dtype == np.int64
