# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import jax
import numpy as np
import pytest

import soupjax as sj

SIZE = 6


def make_problem(seed, count=8):
  """Noisy copies of one linear classifier, ranked, and their accuracy."""
  rng = np.random.default_rng(seed)
  truth = rng.normal(size=SIZE)
  images = rng.normal(size=(60, SIZE))
  labels = images @ truth > 0

  def evaluate(params):
    logits = images @ np.float64(params["w"]) + float(params["b"])
    return float(np.mean((logits > 0) == labels))

  trees = [
    {
      "w": np.float32(truth + rng.uniform(0.2, 2) * rng.normal(size=SIZE)),
      "b": np.float32(rng.normal()),
    }
    for _ in range(count)
  ]
  pool = [
    sj.Ingredient.from_params(f"m{k}", t, metrics={"val": evaluate(t)})
    for k, t in enumerate(trees)
  ]
  return sj.rank_by(pool, "val"), evaluate


class Counting:
  """Counts calls, and can stop after some of them."""

  def __init__(self, evaluate, stop_after=None):
    self.evaluate, self.stop_after, self.calls = evaluate, stop_after, 0

  def __call__(self, params):
    if self.calls == self.stop_after:
      raise KeyboardInterrupt
    self.calls += 1
    return self.evaluate(params)


def assert_same_bits(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def named(pool, names):
  return [i for name in names for i in pool if i.name == name]


def scores_by_mean(table):
  """Looks up the score of a soup of scalar ingredients by its value."""
  return lambda params: table[round(float(params["w"]), 4)]


def scalars(*values):
  return [
    sj.Ingredient.from_params(f"m{k}", {"w": np.float32(v)})
    for k, v in enumerate(values)
  ]


@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_never_below_the_best_single(accept):
  improved = 0
  for seed in range(40):
    pool, evaluate = make_problem(seed)
    soup = sj.greedy_soup(pool, evaluate, accept=accept)
    best = max(i.metrics["val"] for i in pool)
    assert evaluate(soup.params) == soup.score >= best
    improved += soup.score > best
  assert improved > 10  # Or the test would pass without any soup.


@pytest.mark.parametrize("seed", range(1, 5))
def test_same_bits_as_the_uniform_soup_of_those_selected(seed):
  pool, evaluate = make_problem(seed)
  soup = sj.greedy_soup(pool, evaluate)
  assert 1 < len(soup.selected) < len(pool)
  assert_same_bits(soup.params, sj.uniform_soup(named(pool, soup.selected)))


def test_accepting_all_gives_the_uniform_soup():
  pool, _ = make_problem(0)
  soup = sj.greedy_soup(pool, lambda params: 0.5)
  assert soup.selected == tuple(i.name for i in pool)
  assert_same_bits(soup.params, sj.uniform_soup(pool))


def test_accepting_nothing_gives_the_first():
  pool, _ = make_problem(0)
  scores = iter(range(8, 0, -1))
  soup = sj.greedy_soup(pool, lambda params: next(scores))
  assert soup.selected == (pool[0].name,)
  assert_same_bits(soup.params, pool[0].load())


def test_the_first_is_evaluated_afresh():
  pool, _ = make_problem(0, count=2)
  pool[0] = dataclasses.replace(pool[0], metrics={"val": 0.99})
  soup = sj.greedy_soup(pool, lambda params: 0.25)
  assert soup.history[0].score == 0.25
  assert soup.history[1].bar == 0.25


def test_evaluates_every_candidate_once_and_records_it():
  pool, evaluate = make_problem(1)
  counting, told = Counting(evaluate), []
  soup = sj.greedy_soup(pool, counting, on_decision=told.append)
  assert counting.calls == len(pool) == len(soup.history)
  assert tuple(told) == soup.history
  assert [d.name for d in told] == [i.name for i in pool]
  bar, size = None, 0
  for decision in told:
    assert decision.bar == bar
    assert decision.accepted == (bar is None or decision.score >= bar)
    size += decision.accepted
    bar = decision.score if decision.accepted else bar
    assert decision.size == size
  assert [d.name for d in told if d.accepted] == list(soup.selected)


def test_ge_takes_a_duplicate_and_gt_does_not():
  # The duplicate changes the weights, which turns the last decision.
  table = {0.0: 0.5, 2.0: 0.4, round(4 / 3, 4): 0.6}
  pool = scalars(0.0, 0.0, 4.0)
  ge = sj.greedy_soup(pool, scores_by_mean(table), accept="ge")
  gt = sj.greedy_soup(pool, scores_by_mean(table), accept="gt")
  assert ge.selected == ("m0", "m1", "m2")
  assert gt.selected == ("m0",)
  assert [d.reason for d in gt.history] == [
    "the first ingredient",
    "leaves the score unchanged, which is not enough",
    "lowers the score by 0.1",
  ]


@pytest.mark.parametrize(
  "accept,min_delta,expected",
  [
    ("ge", 0.0, True),
    ("ge", 0.25, True),
    ("gt", 0.25, False),
    ("ge", 0.26, False),
    ("gt", 0.24, True),
    ("gt", -0.1, True),
  ],
)
def test_min_delta(accept, min_delta, expected):
  scores = iter([0.5, 0.75])
  soup = sj.greedy_soup(
    scalars(1, 2), lambda _: next(scores), accept=accept, min_delta=min_delta
  )
  assert soup.history[1].accepted == expected
  reason = soup.history[1].reason
  assert reason.startswith("raises the score by 0.25")
  assert reason.endswith("not enough") != expected


def test_ranked_pools_give_one_soup_whatever_the_order():
  for seed in range(20):
    pool, evaluate = make_problem(seed, count=5)
    if len({i.metrics["val"] for i in pool}) == len(pool):
      break
  want = sj.greedy_soup(pool, evaluate)
  for shuffle in range(5):
    shuffled = list(pool)
    np.random.default_rng(shuffle).shuffle(shuffled)
    got = sj.greedy_soup(sj.rank_by(shuffled, "val"), evaluate)
    assert got.history == want.history
    assert_same_bits(got.params, want.params)


def test_order_by_names():
  pool, evaluate = make_problem(2)
  names = [i.name for i in reversed(pool)]
  got = sj.greedy_soup(pool, evaluate, turns=sj.Turns(order=names))
  want = sj.greedy_soup(pool[::-1], evaluate)
  assert got.history == want.history
  assert_same_bits(got.params, want.params)


@pytest.mark.parametrize("as_json", [False, True])
def test_resumes_from_every_prefix(as_json):
  pool, evaluate = make_problem(3)
  want = sj.greedy_soup(pool, evaluate)
  for cut in range(len(pool) + 1):
    past = want.history[:cut]
    if as_json:
      past = json.loads(json.dumps([dataclasses.asdict(d) for d in past]))
    counting, told = Counting(evaluate), []
    got = sj.greedy_soup(pool, counting, resume=past, on_decision=told.append)
    assert counting.calls == len(told) == len(pool) - cut
    assert tuple(told) == want.history[cut:]
    assert got.history == want.history
    assert got.selected == want.selected
    assert_same_bits(got.params, want.params)


def test_resumes_after_being_cut_short():
  pool, evaluate = make_problem(4)
  want, saved = sj.greedy_soup(pool, evaluate), []
  with pytest.raises(KeyboardInterrupt):
    sj.greedy_soup(pool, Counting(evaluate, 3), on_decision=saved.append)
  assert len(saved) == 3
  got = sj.greedy_soup(
    pool, Counting(evaluate, 5), resume=saved, on_decision=saved.append
  )
  assert tuple(saved) == got.history == want.history
  assert_same_bits(got.params, want.params)


def test_resume_does_not_mistake_another_trace_for_its_own():
  pool, evaluate = make_problem(5)
  history = sj.greedy_soup(pool, evaluate).history
  with pytest.raises(ValueError, match="Decision 0 .*'m"):
    sj.greedy_soup(pool[1:], evaluate, resume=history)
  with pytest.raises(ValueError, match="Decision 3"):
    sj.greedy_soup(pool[:3], evaluate, resume=history)
  with pytest.raises(ValueError, match="Decision . .*acceptance rule"):
    sj.greedy_soup(pool, evaluate, resume=history, min_delta=0.5)
  with pytest.raises(ValueError, match="Decision 0 .*value"):
    sj.greedy_soup(pool, evaluate, resume=[{"name": "m0", "value": 3}])


def test_sharded_greedy_soup_has_the_same_bits():
  pool, evaluate = make_problem(6)
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def sharding(leaf, spec):
    axes = ("x",) if spec.shape else ()
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

  got = sj.greedy_soup(pool, evaluate, sharding=sharding)
  want = sj.greedy_soup(pool, evaluate)
  assert got.history == want.history
  assert len(got.params["w"].sharding.device_set) == 2
  assert_same_bits(got.params, want.params)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_refuses_a_score_that_is_not_finite(score):
  scores = iter([0.5, 0.4, score])
  with pytest.raises(ValueError, match=rf"\['m0', 'm2'\].*{score}"):
    sj.greedy_soup(scalars(1, 2, 3), lambda _: next(scores))


@pytest.mark.parametrize(
  "arguments,message",
  [
    ({"accept": "maybe"}, "accept .*'maybe'"),
    ({"min_delta": np.nan}, "min_delta .*nan"),
    ({"turns": sj.Turns(order=["m0"])}, r"Missing: \['m1'\]"),
    ({"turns": sj.Turns(order=["m0", "m1", "m9"])}, r"unknown: \['m9'\]"),
    ({"turns": sj.Turns(order=["m0", "m1", "m1"])}, r"\['m1'\]"),
  ],
)
def test_refuses_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    sj.greedy_soup(scalars(1, 2), lambda _: pytest.fail("called"), **arguments)


def test_order_does_not_hide_two_ingredients_of_one_name():
  pool = [*scalars(1, 2), *scalars(3)]
  with pytest.raises(ValueError, match="'m0'"):
    sj.greedy_soup(pool, lambda _: 0.0, turns=sj.Turns(order=["m0", "m1"]))


@pytest.mark.parametrize("kind", [iter, reversed, tuple, dict.fromkeys])
def test_order_may_be_any_iterable_of_names(kind):
  got = sj.greedy_soup(
    scalars(1, 2, 3),
    lambda _: 0.5,
    turns=sj.Turns(order=kind(["m2", "m0", "m1"])),
  )
  names = ["m2", "m0", "m1"]
  assert list(got.selected) == (names[::-1] if kind is reversed else names)


@pytest.mark.parametrize(
  "order,message",
  [
    (scalars(1, 2), "order .*Ingredient.*i.name for i"),
    ({"m0", "m1"}, "order .*set"),
    ("m0", "order .*str"),
    (3, "order .*int"),
  ],
)
def test_refuses_an_order_without_names(order, message):
  with pytest.raises(ValueError, match=message):
    sj.greedy_soup(
      scalars(1, 2),
      lambda _: pytest.fail("called"),
      turns=sj.Turns(order=order),
    )


@pytest.mark.parametrize("score", [None, {}, "0.5", np.ones(3)])
def test_a_score_that_is_no_number_names_the_ingredient(score):
  scores = iter([0.5, score])
  with pytest.raises(ValueError, match=r"\['m0', 'm1'\].*'m1'"):
    sj.greedy_soup(scalars(1, 2), lambda _: next(scores))


def test_an_array_of_one_score_is_a_score():
  soup = sj.greedy_soup(scalars(1, 2), lambda _: np.float32([0.5]))
  assert soup.score == 0.5 and isinstance(soup.score, float)


def test_min_delta_must_be_a_number():
  with pytest.raises(ValueError, match="min_delta .*'0.1'"):
    sj.greedy_soup(scalars(1), lambda _: pytest.fail("called"), min_delta="0.1")


def test_a_reason_says_that_a_gain_is_less_than_min_delta():
  scores = iter([0.2, 0.3])
  soup = sj.greedy_soup(scalars(1, 2), lambda _: next(scores), min_delta=0.1)
  assert soup.history[1].reason == (
    "raises the score by 0.09999999999999998, less than min_delta (0.1): not "
    "enough"
  )


@pytest.mark.parametrize(
  "change,message",
  [
    ({"score": np.nan}, "score nan"),
    ({"score": "1.0"}, "score '1.0'"),
    ({"bar": 99.0}, "bar 99.0"),
    ({"bar": None}, "bar None"),
    ({"size": 77}, "size 77"),
  ],
)
def test_resume_checks_numbers(change, message):
  pool, evaluate = make_problem(3)
  history = list(sj.greedy_soup(pool, evaluate).history[:3])
  history[2] = dataclasses.replace(history[2], **change)
  with pytest.raises(ValueError, match=f"Decision 2 .*{message}"):
    sj.greedy_soup(pool, lambda _: pytest.fail("called"), resume=history)


def test_a_candidate_that_overflows_is_an_error():
  told, pool = [], scalars(1.0, 3e38)
  with pytest.raises(ValueError, match="float16.*'w'"):
    sj.greedy_soup(pool, lambda _: 0.5, dtype="float16",
                   on_decision=told.append)  # fmt: skip
  assert [d.name for d in told] == ["m0"]


def test_candidates_whose_sums_overflow_are_means():
  seen = []

  def evaluate(params):
    seen.append(float(params["w"]))
    return 0.5

  pool = scalars(3e38, -3e38, 3e38)
  soup = sj.greedy_soup(pool, evaluate)
  assert seen == [np.float32(3e38), 0, np.float32(1e38)]
  assert_same_bits(soup.params, sj.uniform_soup(pool))


def test_candidates_and_ingredients_can_be_used_afterwards():
  # Sums are updated in place, in memory that is not shared.
  pool, evaluate = make_problem(3)
  trees = [jax.tree.map(jax.numpy.asarray, i.load()) for i in pool]
  pool = [sj.Ingredient.from_params(i.name, t) for i, t in zip(pool, trees)]
  candidates = []
  soup = sj.greedy_soup(pool, lambda p: candidates.append(p) or evaluate(p))
  assert 1 < len(soup.selected) < len(pool)
  chosen = []
  for decision, candidate in zip(soup.history, candidates, strict=True):
    names = [*chosen, decision.name]
    assert_same_bits(candidate, sj.uniform_soup(named(pool, names)))
    chosen = names if decision.accepted else chosen


def test_repr_leaves_out_the_arrays():
  pool, evaluate = make_problem(0)
  soup = sj.greedy_soup(pool, evaluate)
  assert "params" not in repr(soup) and "selected" in repr(soup)
