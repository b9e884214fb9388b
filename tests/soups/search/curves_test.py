# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import jax
import numpy as np
import pytest

import soupjax as sj


def scalar(x):
  return {"w": np.float32(x)}


def peak(*places):
  """Scores that are highest at these values of the one weight."""
  return lambda params: {
    f"task{k}": 1 - (float(params["w"]) - place) ** 2
    for k, place in enumerate(places)
  }


def coefficient(search):
  return search.best.coefficients


def test_the_curve_is_wise_ft_and_alpha_comes_from_one_dataset():
  rng = np.random.default_rng(0)
  a, b = ({"w": rng.normal(size=40).astype("f")} for _ in range(2))
  seen = []

  def evaluate(params):
    seen.append(params)
    return {"held out": -float(len(seen) == 3) + 1, "test": float(len(seen))}

  search = sj.search.wise_ft_curve(
    a, b, evaluate, [0, 0.25, 0.5, 1], choose_on="held out"
  )
  for alpha, params in zip([0, 0.25, 0.5, 1], seen):
    want = sj.wise_ft(a, b, alpha)["w"]
    np.testing.assert_allclose(params["w"], want, rtol=0, atol=3e-7)
  # All but the third are equal: the first is taken, whatever test says.
  assert coefficient(search) == (0.0,)
  np.testing.assert_array_equal(search.params["w"], a["w"])
  assert [c.chosen for c in search.history] == [True, False, False, False]
  assert "tried later" in search.history[1].reason
  assert "1 below the best score on held out" in search.history[2].reason
  assert search.curve("test") == [(0, 1), (0.25, 2), (0.5, 3), (1, 4)]
  assert search.table().count("\n") == 4


def test_an_evaluator_hears_of_the_next_candidates():
  heard = []

  def evaluate(params):
    return -abs(float(params["w"]) - 1.2)

  evaluate.ahead = heard.append
  args = scalar(0), scalar(2), evaluate, [0, 0.5, 1]
  sj.search.wise_ft_curve(
    *args, resume=[{"coefficients": [0.5], "scores": {"score": -0.2}}]
  )
  weights = [[float(m()["w"]) for m in models.values()] for models in heard]
  assert weights == [[0, 2], [2], [2]]  # The known one is left out.
  assert {*heard[1]} < {*heard[0]}  # The same model has the same key.


def test_the_best_alpha_for_one_score():
  search = sj.search.wise_ft_curve(
    scalar(0), scalar(2), lambda p: -abs(float(p["w"]) - 1.2)
  )
  assert coefficient(search) == (pytest.approx(0.6),)
  assert search.best.scores == {"score": search.best.value}


def test_says_which_datasets_there_are_before_the_second_evaluation():
  calls = []

  def evaluate(params):
    calls.append(1)
    return {"val": 1.0, "test": 1.0}

  for choose_on, message in (
    (None, r"\['test', 'val'\].*choose_on"),
    ("vall", r"choose_on .*\['vall'\].*\['test', 'val'\]"),
  ):
    with pytest.raises(ValueError, match=message):
      sj.search.wise_ft_curve(
        scalar(0), scalar(1), evaluate, choose_on=choose_on
      )
  assert len(calls) == 2


def test_addition_takes_the_best_mean():
  # 0 + s (1 + 2): the mean of peaks at 1 and 2 is highest at 1.5.
  search = sj.search.task_scale(
    scalar(0), [scalar(1), scalar(2)], peak(1, 2), np.linspace(0, 1, 5)
  )
  assert coefficient(search) == (0.5,)
  assert float(search.params["w"]) == 1.5
  # Scale 0 is tried although it is not on the grid.
  search = sj.search.task_scale(scalar(0), [scalar(1)], peak(1), [1.0])
  assert [c.coefficients for c in search.history] == [(0.0,), (1.0,)]


def test_addition_by_normalised_accuracy():
  def evaluate(params):
    w = float(params["w"])
    return {"hard": 0.2 * w, "easy": 1 - 0.25 * w}

  plain = sj.search.task_scale(scalar(0), [scalar(1)], evaluate, [0, 1])
  assert coefficient(plain) == (0.0,)
  own = {"hard": 0.2, "easy": 1.0}
  fair = sj.search.task_scale(
    scalar(0), [scalar(1)], evaluate, [0, 1], finetuned_scores=own
  )
  assert coefficient(fair) == (1.0,)
  assert fair.best.value == sj.search.normalized_accuracy(fair.best.scores, own)
  with pytest.raises(ValueError, match=r"\['hard'\].*'easy'"):
    sj.search.task_scale(
      scalar(0), [scalar(1)], evaluate, finetuned_scores={"hard": 1.0}
    )


@pytest.mark.parametrize(
  "keep,scale", [(1.0, 0.0), (0.95, 0.5), (0.5, 1.0), (0, 1.0)]
)
def test_negation_forgets_most_with_the_control_kept(keep, scale):
  # Forgets on the way down to -1; the control loses 0.1 a unit, squared.
  def evaluate(params):
    w = float(params["w"])
    return {"target": 0.5 + 0.5 * w, "control": 0.8 - 0.16 * w**2}

  search = sj.search.task_scale(
    scalar(0),
    [scalar(1)],
    evaluate,
    [0.25, 0.5, 0.75, 1.0],
    negate=True,
    control="control",
    keep=keep,
  )
  assert coefficient(search) == (scale,)
  assert float(search.params["w"]) == -scale
  refused = [c for c in search.history if "control is" in c.reason]
  assert len(refused) == {1.0: 4, 0.95: 2, 0.5: 0, 0: 0}[keep]


def test_the_boundary_of_the_control_is_allowed():
  scores = iter([0.8, 0.76, 0.7599])
  search = sj.search.task_scale(
    scalar(0),
    [scalar(1)],
    lambda p: {"t": -float(p["w"]), "c": next(scores)},
    [0.5, 1.0],
    negate=False,
    control="c",
  )
  assert coefficient(search) == (0.0,)
  assert ["below 0.95" in c.reason for c in search.history] == [
    False,
    False,
    True,
  ]


def test_task_scale_of_task_vectors_on_disk(tmp_path):
  for name, value in (("pre", 0), ("a", 1), ("b", 2)):
    sj.save_params(tmp_path / f"{name}.npz", scalar(value))
  pre, a, b = (str(tmp_path / f"{n}.npz") for n in ("pre", "a", "b"))
  base = sj.open_ingredient(pre)
  vectors = [sj.TaskVector(pre, a), sj.TaskVector(pre, b)]
  for tasks in (vectors, [sum(vectors)], sum(vectors)):
    for in_memory in (True, False):
      search = sj.search.task_scale(
        base, tasks, peak(1.5), [0.25, 0.5], in_memory=in_memory
      )
      assert coefficient(search) == (0.5,)
      assert float(search.params["w"]) == 1.5


def test_analogy():
  search = sj.search.analogy(
    scalar(1), scalar(3), scalar(10), peak(11), np.linspace(0, 1, 5)
  )
  assert coefficient(search) == (0.5,)
  assert float(search.params["w"]) == 11
  # If B is A, the result is C at every scale.
  search = sj.search.analogy(scalar(1), scalar(1), scalar(10), peak(11))
  assert all(c.scores == {"task0": 0.0} for c in search.history)


def test_resumes_without_evaluating_again():
  want = sj.search.wise_ft_curve(scalar(0), scalar(1), peak(0.7))
  saved, calls = [], []

  def evaluate(params):
    if len(calls) == 4:
      raise KeyboardInterrupt
    calls.append(1)
    return peak(0.7)(params)

  with pytest.raises(KeyboardInterrupt):
    sj.search.wise_ft_curve(
      scalar(0), scalar(1), evaluate, on_candidate=saved.append
    )
  assert len(saved) == 4
  past = json.loads(json.dumps([dataclasses.asdict(c) for c in saved]))
  calls.clear()
  got = sj.search.wise_ft_curve(
    scalar(0),
    scalar(1),
    lambda p: calls.append(1) or peak(0.7)(p),
    resume=past,
    on_candidate=saved.append,
  )
  assert got.history == want.history
  assert len(calls) == 7 and len(saved) == 11
  np.testing.assert_array_equal(got.params["w"], want.params["w"])


@pytest.mark.parametrize(
  "past,message",
  [
    ({"coefficients": [0, 1], "scores": {}}, "2 coefficients.* 1"),
    ({"scores": {"task0": 1}}, "0 of resume .*coefficients"),
    ({"coefficients": [0], "scores": {"old": 1.0}}, r"\['old'"),
    ({"coefficients": [0], "scores": {"task0": "high"}}, "'high' on 'task0'"),
  ],
)
def test_resume_checks(past, message):
  with pytest.raises(ValueError, match=message):
    sj.search.wise_ft_curve(scalar(0), scalar(1), peak(0), resume=[past])


@pytest.mark.parametrize(
  "result,message",
  [
    (np.nan, r"nan on 'score' .*\(0.0,\)"),
    ({}, r"no scores .*\(0.0,\)"),
    ({"a": "0.5"}, "'0.5' on 'a'"),
    (None, "'score'"),
  ],
)
def test_scores_must_be_finite_numbers(result, message):
  with pytest.raises(ValueError, match=message):
    sj.search.wise_ft_curve(scalar(0), scalar(1), lambda p: result)


@pytest.mark.parametrize(
  "settings,message",
  [
    ({"scales": []}, r"scales .*\[\]"),
    ({"scales": [0, np.inf]}, "scales .*inf"),
    ({"scales": "0.5"}, "scales .*'0.5'"),
    ({"keep": 1.5}, "keep .*1.5"),
    ({"control": "c"}, r"control .*\['c'\]"),
    ({"control": "task0"}, "'task0'"),
  ],
)
def test_refuses_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    sj.search.task_scale(scalar(0), [scalar(1)], peak(0), **settings)


def test_a_control_must_not_be_negative():
  with pytest.raises(ValueError, match="control 'c' .*-1"):
    sj.search.task_scale(
      scalar(0), [scalar(1)], lambda p: {"c": -1, "t": 1}, control="c"
    )


def test_normalized_accuracy():
  own = {"a": 0.8, "b": 0.5}
  scores = {"a": 0.6, "b": 0.6, "other": 0.0}
  assert sj.search.normalized_accuracy(scores, own) == pytest.approx(
    (0.75 + 1.2) / 2
  )
  assert sj.search.normalized_accuracy(own, own) == 1
  with pytest.raises(ValueError, match="'b'"):
    sj.search.normalized_accuracy({"a": 1}, own)
  with pytest.raises(ValueError, match="'b' .*0.0"):
    sj.search.normalized_accuracy(scores, {"a": 1, "b": 0})
  with pytest.raises(ValueError, match="finetuned_scores"):
    sj.search.normalized_accuracy(scores, {})


def test_curves_of_several_coefficients_are_refused():
  search = sj.search.wise_ft_curve(scalar(0), scalar(1), peak(0))
  with pytest.raises(ValueError, match="'test'"):
    search.curve("test")
  many = dataclasses.replace(search.best, coefficients=(0.0, 1.0))
  with pytest.raises(ValueError, match="wise_ft has 2"):
    dataclasses.replace(search, history=(many,)).curve("task0")


def test_works_on_a_jax_tree():
  a = jax.tree.map(jax.numpy.asarray, scalar(0))
  assert sj.search.wise_ft_curve(a, scalar(1), peak(1)).params["w"] == 1


class Loss:
  mode = "min"

  def __call__(self, params):
    pytest.fail("called")


def test_evaluators_of_losses_are_refused():
  tasks = {"patching": ["a"], "supported": ["b"]}
  a, b = scalar(0), scalar(1)

  def never(*args):
    pytest.fail("called")

  for run in (
    lambda e: sj.search.wise_ft_curve(a, b, e),
    lambda e: sj.search.task_scale(a, [b], e),
    lambda e: sj.search.analogy(a, b, b, e),
    lambda e: sj.search.paint(a, b, e, **tasks),
    lambda e: sj.search.paint_parallel(a, [b], e, **tasks),
    lambda e: sj.search.paint_sequential(a, never, e, **tasks),
  ):
    with pytest.raises(ValueError, match="mode='min'"):
      run(Loss())
