# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.analysis import geometry
from soupjax.soups.greedy import decisions

RNG = np.random.default_rng(0)
START = {
  "blocks_0": {"kernel": RNG.normal(size=(20, 20)).astype(np.float32)},
  "blocks_1": {"kernel": RNG.normal(size=(20, 20)).astype(np.float32)},
  "head": {"kernel": RNG.normal(size=(20, 5)).astype(np.float32)},
}


def moved(seed, size=0.05, head=None):
  rng = np.random.default_rng(seed)

  def step(x, size):
    return x + size * rng.normal(size=x.shape).astype(np.float32)

  return {
    name: {
      "kernel": step(x["kernel"], head or size if name == "head" else size)
    }
    for name, x in START.items()
  }


def model(name, params):
  return sj.Ingredient.from_params(name, params)


def near_start(params):
  """A bowl around the start."""
  gap = sum(
    jnp.sum((params[k]["kernel"] - START[k]["kernel"]) ** 2) for k in START
  )
  return 1 / (1 + gap)


def some(count=4, **kwargs):
  return [model(f"m{k}", moved(k, **kwargs)) for k in range(count)]


def test_geometry_equals_that_of_flat_vectors():
  models = some(3)
  flat = np.stack(
    [np.concatenate([m.read(leaf).ravel() for leaf in m.specs]) for m in models]
  ).astype(np.float64)
  origin = model("start", START)
  zero = np.concatenate([origin.read(leaf).ravel() for leaf in origin.specs])
  result = geometry(models, origin)
  delta = flat - zero
  np.testing.assert_allclose(result.gram, delta @ delta.T, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(result.norms, np.linalg.norm(delta, axis=1), 1e-5)
  np.testing.assert_allclose(
    result.distances[0, 1], np.linalg.norm(flat[0] - flat[1]), rtol=1e-5
  )
  cosine = delta[0] @ delta[1] / np.prod(np.linalg.norm(delta[:2], axis=1))
  np.testing.assert_allclose(result.cosines[0, 1], cosine, atol=1e-5)
  mean = geometry(models)
  assert mean.origin == "their mean"
  np.testing.assert_allclose(mean.gram.sum(), 0, atol=1e-4)


def test_opposite_task_vectors_are_at_180_degrees():
  up = moved(1)
  down = {
    k: {"kernel": 2 * START[k]["kernel"] - up[k]["kernel"]} for k in START
  }
  result = geometry([model("up", up), model("down", down)], model("s", START))
  np.testing.assert_allclose(result.cosines[0, 1], -1, atol=1e-5)


def test_good_models_get_no_findings_and_gain_at_midpoints():
  report = sj.diagnose(some(), near_start, model("start", START))
  assert report.findings == (
    "Nothing stands out: these models should average well.",
  )
  assert len(report.barriers) == 6
  assert all(b < 0 for b in report.barriers.values())
  text = report.table()
  assert "m3" in text and "Nothing stands out" in text
  a, b = ("m0", "m1")
  middle = sj.uniform_soup([i for i in some() if i.name in (a, b)])
  expected = (report.scores[a] + report.scores[b]) / 2 - near_start(middle)
  assert report.barriers[a, b] == pytest.approx(float(expected))


def test_twins_are_named():
  models = [*some(3), model("copy", moved(1))]
  (finding,) = sj.diagnose(models, near_start, model("s", START)).findings
  assert finding.startswith("'m1' and 'copy' are the same model")


def test_a_model_of_another_start_is_named():
  rng = np.random.default_rng(9)
  other = {
    k: {"kernel": rng.normal(size=v["kernel"].shape).astype(np.float32)}
    for k, v in START.items()
  }
  models = [*some(4), model("stranger", other)]
  for origin in (model("s", START), None):
    findings = sj.diagnose(models, near_start, origin).findings
    assert "another initialisation" in findings[0]
    assert findings[0].startswith("'stranger'")
    assert not any("m0' is" in f for f in findings)


def fresh(name, seed):
  rng = np.random.default_rng(seed)
  params = {
    k: {"kernel": rng.normal(size=v["kernel"].shape).astype(np.float32)}
    for k, v in START.items()
  }
  return model(name, params)


def findings_of(models, origin=None, **settings):
  return sj.diagnose(models, near_start, origin, **settings).findings


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("origin", [None, model("s", START)])
def test_every_stranger_is_named(count, origin):
  models = [fresh(f"new{k}", 50 + k) for k in range(count)] + some(4)
  report = sj.diagnose(models, near_start, origin)
  named = [f for f in report.findings if "share a start with 'm0', 'm1'" in f]
  assert [f.split()[0] for f in named] == [f"'new{k}'" for k in range(count)]
  assert report.groups[0] == ("m0", "m1", "m2", "m3")
  assert len(report.groups) == 1 + count


def test_two_starts_are_told_apart():
  other = fresh("other", 50)
  near = {
    k: {"kernel": other.read(f"{k}/kernel") + np.float32(0.01)} for k in START
  }
  both = [other, model("near", near)]
  models = [*some(2), *both]
  report = sj.diagnose(models, near_start)
  assert report.groups == (("m0", "m1"), ("other", "near"))
  assert report.findings[0].startswith("The models come from 2 starts")
  assert "'m0', 'm1'; 'other', 'near'." in report.findings[0]
  # The pretrained model decides which group is wrong.
  (finding,) = [
    f
    for f in findings_of(models, model("s", START))
    if "not share a start" in f
  ]
  assert finding.startswith(
    "'other', 'near' do not share a start with 'm0', 'm1'"
  )
  assert "The models come from 2 starts" in findings_of([both[0], *some(1)])[0]
  wrong = findings_of(some(3), other)
  assert wrong[0].startswith("None of the models comes from 'other'")
  assert not any("not share a start" in f for f in wrong)


def test_models_far_from_one_start_still_share_it():
  models = [model(f"m{k}", moved(10 + k, size=1.3)) for k in range(3)]
  start = model("s", START)
  report = sj.diagnose(models, near_start, start)
  assert report.groups == (("m0", "m1", "m2"),)
  far = [f for f in report.findings if "times the norm of 's'" in f]
  assert len(far) == 3
  # Without the pretrained model, they seem to have different starts.
  assert len(sj.diagnose(models, near_start).groups) == 3


@pytest.mark.parametrize("size", [0.05, 0.4])
@pytest.mark.parametrize("origin", [None, model("s", START)])
def test_heads_without_a_common_start_are_named(size, origin):
  models = some(4, size=size)
  for k, ingredient in enumerate(models):
    params = {**ingredient.load(), "head": fresh("", 90 + k).load()["head"]}
    models[k] = model(ingredient.name, params)
  findings = findings_of(models, origin)
  assert any(
    "'head' differs between models" in f and "linear probe" in f
    for f in findings
  )
  assert not any("'head'" in f for f in findings_of(some(4, size=size), origin))


def test_heads_that_begin_at_zero_share_their_start():
  def zeroed(params):
    head = params["head"]["kernel"] - START["head"]["kernel"]
    return {**params, "head": {"kernel": head}}

  models = [model(f"m{k}", zeroed(moved(k))) for k in range(4)]
  report = sj.diagnose(models, near_start, model("s", zeroed(START)))
  assert report.findings == (
    "Nothing stands out: these models should average well.",
  )
  assert np.isnan(report.layers["head"]).all()


def test_models_that_were_not_fine_tuned_are_named():
  models = [*some(3), model("lazy", START)]
  findings = findings_of(models, model("s", START))
  (finding,) = findings
  assert finding.startswith("'lazy' is 's' itself")


def test_statistics_are_named():
  models = [
    model(n, {"params": moved(k), "batch_stats": {"mean": np.ones(3, "f")}})
    for k, n in enumerate("ab")
  ]
  findings = sj.diagnose(models, lambda p: near_start(p["params"])).findings
  assert any("'batch_stats/mean'" in f for f in findings)


@pytest.mark.parametrize(
  "module,leaf,expected",
  [
    ("BatchNorm_0", "mean", True),
    ("bn1", "var", True),
    ("bn1", "running_var", True),
    ("BatchNorm_0", "scale", False),
    ("blobn", "mean", False),
  ],
)
def test_statistics_in_any_collection(module, leaf, expected):
  models = [
    model(n, {**moved(k), module: {leaf: np.ones(3, "f")}})
    for k, n in enumerate("ab")
  ]
  texts = [f for f in findings_of(models) if "normalisation statistics" in f]
  assert bool(texts) == expected


def test_barriers_and_weak_models_and_rejections_are_named():
  def two_bowls(params):
    return abs(float(params["head"]["kernel"].sum()))

  def shifted(by):
    params = moved(0)
    return {**params, "head": {"kernel": params["head"]["kernel"] * 0 + by}}

  models = [model(n, shifted(b)) for n, b in zip("abcd", (1, -1, 0.9, -0.9))]
  ranked = [models[0], models[1], models[2], models[3]]
  greedy = sj.greedy_soup(ranked, two_bowls, accept="gt")
  report = sj.diagnose(ranked, two_bowls, greedy=greedy)
  text = " ".join(report.findings)
  assert "midpoints are worse than the mean of their" in text
  assert "Greedy left 'b' out: lowers the score by 100." in text
  assert text.count("Greedy left") == sum(
    not d.accepted for d in greedy.history
  )
  # Selected models are tried again and then rejected, but not left out.
  again = sj.greedy_soup(
    ranked, two_bowls, accept="gt", turns=sj.Turns(rounds=3)
  )
  assert len(again.history) > len(greedy.history)
  assert again.history[len(ranked)].name == again.selected[0]
  findings = sj.diagnose(ranked, two_bowls, greedy=again).findings
  assert findings == report.findings
  weak = [*some(5), model("weak", moved(7, size=0.4))]
  findings = sj.diagnose(weak, near_start, model("s", START)).findings
  assert any(f.startswith("'weak' scores") for f in findings)


def test_pairs_are_bounded_and_neighbours_first():
  report = sj.diagnose(some(5), near_start, max_pairs=5)
  assert list(report.midpoints) == [
    ("m0", "m1"),
    ("m1", "m2"),
    ("m2", "m3"),
    ("m3", "m4"),
    ("m0", "m2"),
  ]


def test_an_early_rejection_says_by_how_much():
  class Bounded:
    def __call__(self, params):
      return float(near_start(params))

    def evaluate_until(self, params, can_reach):
      score = self(params)
      if can_reach(score):
        return decisions.Trial(score=score)
      return decisions.Trial(score=None, bound=score, evaluated=0.5)

    def set_incumbent(self):
      pass

  models = [*some(2), model("bad", moved(9, size=0.5))]
  greedy = sj.greedy_soup(models, Bounded())
  last = greedy.history[-1]
  assert last.score is None
  findings = findings_of(models, greedy=greedy)
  short = f"{last.bar - last.bound:.6g} below the bar of {last.bar:.6g}"
  assert any("Greedy left 'bad' out" in f and short in f for f in findings)


class Loss:
  mode = "min"

  def __call__(self, params):
    pytest.fail("called")


def test_arguments_of_another_kind():
  with pytest.raises(ValueError, match="mode='min'"):
    sj.diagnose(some(2), Loss())
  with pytest.raises(TypeError, match="3"):
    sj.diagnose(some(2), near_start, 3)
  with pytest.raises(TypeError, match="greedy"):
    sj.diagnose(some(2), near_start, greedy=some(2))
  with pytest.raises(ValueError, match="two.*1"):
    sj.diagnose({"m0": START}, near_start)
  with pytest.raises(ValueError, match="max_pairs.*-1"):
    sj.diagnose(some(2), near_start, max_pairs=-1)
  assert sj.diagnose(some(2), near_start, max_pairs=0).midpoints == {}
  for score in (None, {"acc": 1.0}):
    with pytest.raises(ValueError, match="'m0'"):
      sj.diagnose(some(2), lambda p: score)  # noqa: B023


def test_bad_input():
  with pytest.raises(ValueError, match="got 1"):
    sj.diagnose(some(1), near_start)
  with pytest.raises(ValueError, match="'m0'.*nan"):
    sj.diagnose(some(2), lambda p: float("nan"))
  with pytest.raises(ValueError, match="shape"):
    sj.diagnose(
      some(2), near_start, model("s", {**START, "head": {"kernel": np.ones(2)}})
    )


def test_recorded_starts_that_differ_are_a_finding():
  def findings(hashes):
    models = [
      sj.Ingredient.from_params(
        f"m{k}", moved(k), hyperparameters={"init_hash": value} if value else {}
      )
      for k, value in enumerate(hashes)
    ]
    return "\n".join(sj.diagnose(models, near_start).findings)

  assert "recorded by 'm2' differs from that of 'm0'" in findings("aab")
  assert "init_hash" not in findings(["a", "a", None])


def test_a_model_without_midpoints_has_no_barrier_in_the_table():
  pool = [
    sj.Ingredient.from_params(f"m{k}", {"w": np.full(4, k + 1, np.float32)})
    for k in range(3)
  ]
  table = sj.diagnose(pool, lambda _: 0.5, max_pairs=1).table()
  rows = {line.split()[0]: line.split()[-1] for line in table.splitlines()[1:4]}
  assert rows == {"m0": "+0.0000", "m1": "+0.0000", "m2": "-"}
