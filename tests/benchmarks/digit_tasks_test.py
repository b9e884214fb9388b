# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""All searches of benchmarks/digit_tasks, shrunk: records, choices, heads."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import soupjax as sj

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "digit_tasks"
# As python does for a script in that folder.
sys.path.insert(0, str(FOLDER))
figure, run, searches, tasks = map(
  importlib.import_module, ("figure", "run", "searches", "tasks")
)
sys.path.remove(str(FOLDER))

SMALL = tasks.Settings(
  depth=1,
  pretrain_steps=60,
  probe_steps=10,
  finetune_steps=8,
  adamerging_steps=3,
  points=3,
  budget=6,
  auxiliary=("rotated", "parity"),
)
SCRIPT = """
import pathlib, run, searches, tasks
run.run({settings}, list(searches.SEARCHES), pathlib.Path({workdir!r}))
"""


def run_all(workdir):
  """Runs all searches in a process with one device; returns their records."""
  settings = f"tasks.{SMALL}"
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= {
    "PYTHONPATH": f"{FOLDER}:{FOLDER.parents[1]}",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  code = SCRIPT.format(settings=settings, workdir=str(workdir))
  done = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return {
    name: json.loads((workdir / f"{name}.json").read_text())
    for name in searches.SEARCHES
  }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """The directory of a run of all searches, and their records."""
  workdir = tmp_path_factory.mktemp("searches")
  return workdir, run_all(workdir)


@pytest.mark.slow
def test_every_search_leaves_its_record(done):
  workdir, records = done
  for name, record in records.items():
    assert f"| {name} | " in run.markdown(name, [records] * 2)
    for title, history in record["searches"].items():
      if name == "pools":
        assert set(history["runs"]) == {"pretrained", "rotated", "parity"}
        assert len(history["history"]) == 3
      elif name == "adamerging":
        assert history["names"] == ["rotated", "mirrored", "parity"]
        assert [entry["beta"] for entry in history["history"]] == [1, 1, 1]
      else:
        assert [c["chosen"] for c in history].count(True) == 1
        assert (workdir / f"{title}.png").exists()
  curves = records["paint"]["searches"]
  assert len(curves["paint_rotated"]) == 3
  assert len(curves["paint_parallel"]) == 6
  assert set(curves["paint_joint"][0]["scores"]) == {
    *("rotated", "mirrored", "upright", "inverted", "parity")
  }


@pytest.mark.slow
def test_choices_are_made_on_minival(done):
  # 200 images of minival: scores on other sets are not such fractions.
  for name in ("addition", "negation", "analogy", "paint"):
    for history in done[1][name]["searches"].values():
      for candidate in history:
        for score in candidate["scores"].values():
          assert abs(200 * score - round(200 * score)) < 1e-9
  curve = done[1]["wise_ft"]["searches"]["wise_ft"]
  best = max(c["scores"]["minival"] for c in curve)
  chosen = next(c for c in curve if c["chosen"])
  assert chosen["scores"]["minival"] == chosen["value"] == best
  assert {"minival", "test", "new_writers"} < set(chosen["scores"])


@pytest.mark.slow
def test_a_second_start_goes_on(done):
  workdir, records = done
  path, kept = workdir / "analogy.json", workdir / "pools.json"
  stamp = kept.stat().st_mtime_ns
  path.unlink()
  assert run_all(workdir) == records
  assert kept.stat().st_mtime_ns == stamp and path.exists()


@pytest.mark.slow
def test_heads_are_frozen_and_not_merged(done):
  lab = tasks.DigitTasks(SMALL, done[0])
  assert "head" not in lab.finetuned("rotated", ["rotated"]).load()
  last = "run/ingredients/last"
  trained = sj.load_params(done[0] / "models" / "rotated" / last)
  jax.tree.map(np.testing.assert_array_equal, trained["head"], lab.head)
  moved = trained["embedding"]["kernel"] - lab.encoder["embedding"]["kernel"]
  assert np.abs(moved).max() > 0
  probe, tuned = (
    sj.load_params(done[0] / "models" / name / last)
    for name in ("probed", "diwa_rotated")
  )
  assert np.abs(tuned["head"]["kernel"] - probe["head"]["kernel"]).max() > 0
  head, kernel = lab.head_of("parity"), np.asarray(lab.head["kernel"])
  assert head["kernel"].shape == (32, 2) and head["bias"].shape == (2,)
  np.testing.assert_allclose(
    head["kernel"][:, 1], kernel[:, [1, 3, 5, 7, 9]].mean(1), atol=1e-6
  )


@pytest.mark.parametrize(
  "task,pixels,label",
  [
    ("upright", [[-1, 1], [0, 0.5]], 7),
    ("inverted", [[1, -1], [0, -0.5]], 7),
    ("rotated", [[1, 0.5], [-1, 0]], 7),
    ("rotated_inverted", [[-1, -0.5], [1, 0]], 7),
    ("mirrored", [[1, -1], [0.5, 0]], 7),
    ("parity", [[-1, 1], [0, 0.5]], 1),
  ],
)
def test_variants_by_hand(task, pixels, label):
  images = np.array([[[-1, 1], [0, 0.5]]], np.float32)[..., None]
  digits = sj.data.Dataset("digits/few", images, np.array([7], np.int32))
  turned = tasks.variant(digits, task)
  np.testing.assert_array_equal(turned.images[0, :, :, 0], pixels)
  assert turned.labels.tolist() == [label]


def candidates(*coefficients):
  return [
    sj.search.Candidate(
      coefficients=c,
      scores={"a": 0.1 * k, "b": 0.2},
      value=0.1 * ((k * 7) % 5),
      chosen=k == 1,
    )
    for k, c in enumerate(coefficients)
  ]


def test_pictures():
  curve = candidates((1.0,), (0.0,), (0.5,))
  (axes,) = figure.search_figure("x", curve).axes
  a, b, chosen = axes.lines
  assert a.get_xdata().tolist() == [0, 0.5, 1]
  np.testing.assert_allclose(a.get_ydata(), [0.1, 0.2, 0])
  np.testing.assert_allclose(b.get_ydata(), 0.2)
  assert list(chosen.get_xdata()) == [0, 0]
  trials = candidates(*((0.1 * k, 0.5) for k in range(5)))
  (axes,) = figure.search_figure("y", trials).axes
  values, best = (line.get_ydata() for line in axes.lines)
  np.testing.assert_allclose(values, [0, 0.2, 0.4, 0.1, 0.3])
  np.testing.assert_allclose(best, [0, 0.2, 0.4, 0.4, 0.4])
  with pytest.raises(ValueError, match="no candidates"):
    figure.search_figure("z", [])
