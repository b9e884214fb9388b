# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""All searches on digits, shrunk: what they write, and what they look at."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from soupjax.data.variants import variant

import soupjax as sj
from soupjax import config as config_lib
from soupjax.tasks import digit_tasks, search

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "search.py")
SMALL = {
  "pretrain.total_steps": 60,
  "pretrain.warmup_steps": 6,
  "model.depth": 1,
  "finetune.total_steps": 8,
  "finetune.warmup_steps": 2,
  "probe.total_steps": 10,
  "search.points": 3,
  "search.budget": 6,
  "search.adamerging_steps": 3,
  "search.auxiliary": ("rotated", "parity"),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("search") / "run"
  search.run(config_lib.load(CONFIG, **SMALL), workdir)
  return workdir


def record(workdir, name):
  return json.loads((workdir / "search" / f"{name}.json").read_text())


def test_every_search_leaves_its_record(done):
  names = {path.stem for path in (done / "search").glob("*.json")}
  assert names == set(search.SEARCHES)
  rows = [
    json.loads(line)
    for line in (done / "results.jsonl").read_text().split("\n")
    if line
  ]
  for name in names:
    found = record(done, name)
    mine = {
      (r["model"], r["dataset"]): r["value"]
      for r in rows
      if r["search"] == name
    }
    assert mine == {
      (model, dataset): value
      for model, values in found["judged"].items()
      for dataset, value in values.items()
    }
    for one, history in found["searches"].items():
      if name == "pools":
        assert set(history["runs"]) == {"pretrained", "rotated", "parity"}
        assert len(history["history"]) == 3
        continue
      if name == "adamerging":
        assert history["names"] == ["rotated", "mirrored", "parity"]
        assert [entry["beta"] for entry in history["history"]] == [1, 1, 1]
        continue
      assert [c["chosen"] for c in history].count(True) == 1
      assert (done / "figures" / f"search_{one}.png").exists()
  curves = record(done, "paint")["searches"]
  assert len(curves["paint_rotated"]) == 3
  assert len(curves["paint_parallel"]) == 6
  assert set(curves["paint_joint"][0]["scores"]) == {
    "rotated",
    "mirrored",
    "upright",
    "inverted",
    "parity",
  }


def test_choices_are_made_on_minival(done):
  # 200 images of minival: other sets have scores that are no such fractions.
  for name in ("addition", "negation", "analogy", "paint"):
    for history in record(done, name)["searches"].values():
      for candidate in history:
        for score in candidate["scores"].values():
          assert abs(200 * score - round(200 * score)) < 1e-9
  curve = record(done, "wise_ft")["searches"]["wise_ft"]
  best = max(c["scores"]["minival"] for c in curve)
  chosen = next(c for c in curve if c["chosen"])
  assert chosen["scores"]["minival"] == chosen["value"] == best
  assert {"minival", "test", "new_writers"} < set(chosen["scores"])


def test_wise_ft_looks_at_test_after_the_choice(done, monkeypatch):
  lab, seen = lab_of(done, searches=("wise_ft",)), []
  evaluator = lab.evaluator

  def spied(dataset, tasks):
    judge = evaluator(dataset, tasks)
    return lambda params: seen.append(dataset.name) or judge(params)

  monkeypatch.setattr(lab, "evaluator", spied)
  found, _ = search.wise_ft(lab)
  points = len(found["wise_ft"].history)
  assert seen[:points] == ["digits/minival"] * points
  assert "digits/minival" not in seen[points:]


def test_a_second_start_goes_on(done, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(done, workdir)
  before = (workdir / "results.jsonl").read_bytes()
  (workdir / "search" / "analogy.json").unlink()
  (workdir / "results.jsonl").unlink()
  kept = (workdir / "search" / "pools.json").stat().st_mtime_ns
  search.run(config_lib.load(CONFIG, **SMALL), workdir)
  assert (workdir / "results.jsonl").read_bytes() == before
  assert (workdir / "search" / "pools.json").stat().st_mtime_ns == kept


def lab_of(workdir, **changes):
  config = config_lib.load(CONFIG, **{**SMALL, **changes})
  splits = sj.data.load_digits(seed=0, num_train=300, num_minival=200)
  return digit_tasks.DigitTasks(config, splits, workdir)


def test_heads_are_frozen_and_not_merged(done):
  lab = lab_of(done)
  for name in ("rotated", "parity", "joint"):
    assert "head" not in lab.finetuned(name, [name]).load()
  probe = sj.load_params(done / "initial")
  tuned = sj.load_params(done / "finetuned" / "diwa_rotated")
  assert np.abs(tuned["head"]["kernel"] - probe["head"]["kernel"]).max() > 0
  # A frozen head stays as it is, bit for bit, while the encoder moves.
  start = {**lab.encoder, "head": lab.head}
  data = variant(lab.splits.train, "rotated")
  after = lab._train("rotated", data, start, 1.0, False)
  jax.tree.map(np.testing.assert_array_equal, after["head"], lab.head)
  moved = after["embedding"]["kernel"] - lab.encoder["embedding"]["kernel"]
  assert np.abs(moved).max() > 0


def test_the_head_of_parity_is_made_of_the_digits(done):
  lab = lab_of(done)
  head, kernel = lab.head_of("parity"), np.asarray(lab.head["kernel"])
  assert head["kernel"].shape == (32, 2) and head["bias"].shape == (2,)
  np.testing.assert_allclose(
    head["kernel"][:, 1], kernel[:, [1, 3, 5, 7, 9]].mean(1), atol=1e-6
  )
  assert lab.head_of("mirrored") is lab.head


@pytest.mark.parametrize(
  "key,value",
  [
    ("searches", ("paint", "soup")),
    ("searches", ()),
    ("pretrain.tasks", ("upside_down",)),
    ("search.auxiliary", ()),
    ("data.num_pool_train", 300),
    ("search.average", "best"),
    ("search.budget", 3),
  ],
)
def test_configs_that_cannot_work_touch_nothing(key, value, tmp_path):
  config = config_lib.load(CONFIG, **{key: value})
  with pytest.raises(ValueError, match=key):
    search.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_argument_names_searches(tmp_path, capsys):
  assert config_lib.load(CONFIG).searches == tuple(search.SEARCHES)
  config = config_lib.load(CONFIG, "paint,pools")
  assert config.searches == ("paint", "pools")
  assert search.run(config, tmp_path / "run", dry_run=True) is None
  assert '"paint"' in capsys.readouterr().out
  assert not (tmp_path / "run").exists()
