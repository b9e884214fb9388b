# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Early rejection changes no decision of a greedy soup."""

import threading

import chex
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.evaluators import Evaluator, evaluator
from soupjax.evaluators import metric as metric_of

N, CLASSES = 97, 4
IMAGES = np.arange(N, dtype=np.float32)[:, None]


def predict(params, images):
  """A model whose parameters are its logits."""
  return params["logits"][images[:, 0].astype(int)]


def problem(seed, count=8, skill=1.5):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, N)
  signal = skill * np.eye(CLASSES)[labels] + rng.normal(size=(N, CLASSES))
  models = [
    sj.Ingredient.from_params(
      f"m{k}",
      {"logits": (signal + rng.normal(size=(N, CLASSES))).astype(np.float32)},
    )
    for k in range(count)
  ]
  return labels, models


def cook(labels, models, metric="prec@1", batch_size=10, **options):
  evaluate = Evaluator.from_arrays(
    predict, IMAGES, labels, batch_size=batch_size, metric=metric
  )
  return sj.greedy_soup(models, evaluate, **options)


@pytest.mark.parametrize("metric", ["prec@1", "loss"])
@pytest.mark.parametrize("accept", ["ge", "gt"])
@pytest.mark.parametrize("seed", range(6))
def test_decisions_and_soup_are_those_of_the_full_pass(seed, accept, metric):
  labels, models = problem(seed)
  early = cook(labels, models, metric, accept=accept)
  full = cook(labels, models, metric, accept=accept, early_reject=False)
  assert early.selected == full.selected
  chex.assert_trees_all_equal(early.params, full.params)
  for a, b in zip(early.history, full.history):
    assert (a.name, a.accepted, a.bar, a.size) == (
      b.name,
      b.accepted,
      b.bar,
      b.size,
    )
    if a.score is None:
      assert not a.accepted and a.evaluated < 1
      assert b.score <= a.bound < a.bar + (accept == "gt") * 1e-12
      text = f"would score at most {a.bound:.6g}, "
      if a.bound < a.bar:
        text += f"{a.bar - a.bound:.6g} below the bar of {a.bar:.6g}"
      else:
        text += f"but must beat {a.bar:.6g}"
      assert a.reason == text
    else:
      assert a.score == b.score and a.evaluated == 1
  assert all(d.evaluated == 1 and d.bound is None for d in full.history)


def test_it_saves_evaluations_hardest_first():
  saved = []
  for seed in range(10):
    labels, models = problem(seed, count=12)
    soup = cook(labels, models, batch_size=5)
    saved += [d.evaluated for d in soup.history if not d.accepted]
  assert np.mean(saved) < 0.6
  assert min(saved) > 0


def test_a_resumed_run_writes_the_same_record():
  labels, models = problem(3)
  whole = cook(labels, models)
  assert any(d.score is None for d in whole.history)
  for cut in range(len(models) + 1):
    again = cook(labels, models, resume=whole.history[:cut])
    assert again.history == whole.history
    chex.assert_trees_all_equal(again.params, whole.params)


def test_it_is_a_whole_evaluation_if_the_bar_is_low():
  labels, models = problem(0)
  evaluate = Evaluator.from_arrays(predict, IMAGES, labels, batch_size=10)
  params = models[0].load()
  expected = evaluate(params)
  evaluate.set_incumbent()
  trial = evaluate.evaluate_until(params, lambda score: True)
  assert (trial.score, trial.evaluated) == (expected, 1.0)
  trial = evaluate.evaluate_until(params, lambda score: score >= 1.0)
  assert trial.score is None and trial.evaluated == pytest.approx(10 / N)


@pytest.mark.parametrize("metric", ["prec@1", "loss"])
def test_images_that_are_not_held_decide_the_same(metric):
  labels, models = problem(3)
  batches = [
    {
      "images": IMAGES[at : at + 10],
      "labels": labels[at : at + 10],
      "mask": np.ones(10, bool),
    }
    for at in range(0, 90, 10)
  ]
  stopped = 0
  for cache_gb in (0, 1):
    evaluate = Evaluator(predict, batches, metric=metric, cache_gb=cache_gb)
    early = sj.greedy_soup(models, evaluate)
    full = sj.greedy_soup(models, evaluate, early_reject=False)
    assert early.selected == full.selected
    stopped += sum(d.score is None for d in early.history)
  assert stopped


def test_a_metric_without_a_bound_is_evaluated_in_full():
  @metric_of("margin without a bound")
  def margin(logits, labels, mask):
    del labels, mask
    return logits.max(axis=-1)

  labels, models = problem(0)
  soup = cook(labels, models, "margin without a bound")
  assert all(d.evaluated == 1 for d in soup.history)


@pytest.mark.parametrize("metric", ["prec@1", "loss"])
def test_few_batches_run_for_nothing(metric, monkeypatch):
  launched, used, rejected = [0], 0, 0
  compiled = evaluator._compiled

  def counted(*key):
    program = compiled(*key)

    def run(params, batch):
      launched[0] += 1
      return program(params, batch)

    return run

  monkeypatch.setattr(evaluator, "_compiled", counted)
  for seed in range(6):
    labels, models = problem(seed)
    soup = cook(labels, models, metric, batch_size=5)
    used += sum(np.ceil(d.evaluated * N / 5) for d in soup.history)
    rejected += sum(d.score is None for d in soup.history)
  assert rejected > 12
  assert used <= launched[0] < used + rejected / 2


def test_the_next_batch_is_launched_before_the_last_is_looked_at(monkeypatch):
  events = []
  compiled, device_get = evaluator._compiled, jax.device_get

  def watched(*key):
    program = compiled(*key)

    def run(params, batch):
      events.append("launch")
      return program(params, batch)

    return run

  labels, models = problem(0)
  evaluate = Evaluator.from_arrays(predict, IMAGES, labels, batch_size=25)
  params = models[0].load()
  evaluate(params)
  monkeypatch.setattr(evaluator, "_compiled", watched)
  monkeypatch.setattr(
    jax, "device_get", lambda x: events.append("look") or device_get(x)
  )
  evaluate.evaluate_until(params, lambda score: True)
  assert events == ["launch", "launch", "look"] + 2 * ["launch", "look"] + [
    "look"
  ]


def test_traces_without_a_score_are_checked():
  labels, models = problem(3)
  history = list(cook(labels, models).history)
  at = next(k for k, d in enumerate(history) if d.score is None)
  bad = {**history[at].__dict__, "bound": None}
  with pytest.raises(ValueError, match=f"Decision {at}"):
    cook(labels, models, resume=[*history[:at], bad])
  lies = {**history[at].__dict__, "bound": 1.0}
  with pytest.raises(ValueError, match="acceptance"):
    cook(labels, models, resume=[*history[:at], lies])


def test_the_next_ingredient_is_read_during_evaluation():
  events = []

  def reader(name, value):
    def read(leaf, index):
      del leaf, index
      events.append(f"read {name}")
      return np.full(2, value, np.float32)

    return read

  spec = {"w": jax.ShapeDtypeStruct((2,), np.float32)}
  models = [
    sj.Ingredient(
      name=f"m{k}",
      specs=spec,
      treedef=jax.tree.structure({"w": 0}),
      reader=reader(f"m{k}", k),
      path="somewhere",
    )
    for k in range(3)
  ]

  def evaluate(params):
    del params
    wanted = f"read m{min(len(seen) + 1, 2)}"
    # The reader runs in another thread: give it a moment.
    for _ in range(500):
      if events[3:].count(wanted):
        break
      pause.wait(0.01)
    seen.append(events[3:].count(wanted))
    return 1.0

  pause, seen = threading.Event(), []
  sj.greedy_soup(models, evaluate)
  assert seen == [1, 1, 1]
