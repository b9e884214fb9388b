# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.analysis import geometry

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


def test_geometry_is_that_of_the_flat_vectors():
  models = some(3)
  flat = np.stack(
    [np.concatenate([m.read(leaf).ravel() for leaf in m.specs]) for m in models]
  ).astype(np.float64)
  origin = model("start", START)
  zero = np.concatenate([origin.read(leaf).ravel() for leaf in origin.specs])
  found = geometry(models, origin)
  delta = flat - zero
  np.testing.assert_allclose(found.gram, delta @ delta.T, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found.norms, np.linalg.norm(delta, axis=1), 1e-5)
  np.testing.assert_allclose(
    found.distances[0, 1], np.linalg.norm(flat[0] - flat[1]), rtol=1e-5
  )
  cosine = delta[0] @ delta[1] / np.prod(np.linalg.norm(delta[:2], axis=1))
  np.testing.assert_allclose(found.cosines[0, 1], cosine, atol=1e-5)
  mean = geometry(models)
  assert mean.origin == "their mean"
  np.testing.assert_allclose(mean.gram.sum(), 0, atol=1e-4)


def test_opposite_task_vectors_are_at_180_degrees():
  up = moved(1)
  down = {
    k: {"kernel": 2 * START[k]["kernel"] - up[k]["kernel"]} for k in START
  }
  found = geometry([model("up", up), model("down", down)], model("s", START))
  np.testing.assert_allclose(found.cosines[0, 1], -1, atol=1e-5)


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


def test_heads_without_a_common_start_are_named():
  models = some(4, head=2.0)
  findings = sj.diagnose(models, near_start, model("s", START)).findings
  assert any("'head' moved by" in f and "linear probe" in f for f in findings)


def test_statistics_are_named():
  models = [
    model(n, {"params": moved(k), "batch_stats": {"mean": np.ones(3, "f")}})
    for k, n in enumerate("ab")
  ]
  findings = sj.diagnose(models, lambda p: near_start(p["params"])).findings
  assert any("'batch_stats/mean'" in f for f in findings)


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
  assert "midpoints are worse than their ends" in text
  assert "Greedy left 'b' out: lowers the score by 100." in text
  assert text.count("Greedy left") == sum(
    not d.accepted for d in greedy.history
  )
  # What is in is tried again, and rejected then: it was not left out.
  again = sj.greedy_soup(ranked, two_bowls, accept="gt", rounds=3)
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


def test_bad_input():
  with pytest.raises(ValueError, match="at least two, got 1"):
    sj.diagnose(some(1), near_start)
  with pytest.raises(ValueError, match="m0 scores nan"):
    sj.diagnose(some(2), lambda p: float("nan"))
  with pytest.raises(ValueError, match="shape"):
    sj.diagnose(
      some(2), near_start, model("s", {**START, "head": {"kernel": np.ones(2)}})
    )


def test_recorded_starts_that_differ_are_a_finding():
  def found(hashes):
    models = [
      sj.Ingredient.from_params(
        f"m{k}", moved(k), hyperparameters={"init_hash": one} if one else {}
      )
      for k, one in enumerate(hashes)
    ]
    return "\n".join(sj.diagnose(models, near_start).findings)

  assert "'m2' record another start (init_hash) than 'm0'" in found("aab")
  assert "init_hash" not in found(["a", "a", None])
