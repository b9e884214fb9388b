# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches on digits: choices, tables, records, resumption."""

import json
import re
import shutil

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import report
from soupjax.models import tiny_clip
from soupjax.tasks.search import run as search
from soupjax.tasks.search import work as work_lib

CONFIG = str(helpers.ROOT / "configs" / "search.py")
# The same digits, and blurred ones; each has the head of another member.
TASKS = (
  "sharp=digits:minival=minival[:100]:test=test[:100]:head=own:model=member_001,"
  "blurred=digits:minival=minival[:100]:test=test[:100]:head=own:"
  "model=member_002|resize(5)|resize(16)"
)


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


def values_of(sweep, **changes):
  return {
    "initial": str(sweep / "initial"),
    "ingredients": str(sweep / "member_00[12]/ingredients/last"),
    "tasks": TASKS,
    "data.eval_ops": "value_range(-1, 1)",
    **changes,
  }


def config_of(sweep, method, **changes):
  return config_lib.load(CONFIG, method, **values_of(sweep, **changes))


def record_of(workdir):
  return json.loads((workdir / "search.json").read_text())


@pytest.fixture(scope="module")
def added(sweep, tmp_path_factory):
  """The directory of task addition from the shell, and its output."""
  workdir = tmp_path_factory.mktemp("addition") / "run"
  values = values_of(sweep, **{"search.points": 3})
  done = helpers.soupjax(
    f"--config={CONFIG}:addition",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return workdir, done.stdout


def test_addition_from_the_shell(sweep, added):
  workdir, printed = added
  record = record_of(workdir)
  curve = record["searches"]["addition"]
  assert [c["coefficients"] for c in curve] == [[0.0], [0.5], [1.0]]
  tables = {t["title"]: t for t in record["tables"]}
  minival = tables["Accuracy on minival, where the choice was made (%)"]
  assert minival["columns"] == ["blurred", "sharp", "mean", "normalised"]
  own = [minival["rows"]["member_002"][0], minival["rows"]["member_001"][1]]
  for row in minival["rows"].values():
    assert row[2] == pytest.approx((row[0] + row[1]) / 2)
    expected = np.mean([row[0] / own[0], row[1] / own[1]])
    assert row[3] == pytest.approx(expected)
  for candidate in curve:  # The objective is the normalised accuracy.
    shares = [
      candidate["scores"][t] / o for t, o in zip(("blurred", "sharp"), own)
    ]
    assert candidate["value"] == pytest.approx(np.mean(shares))
  best = next(c for c in curve if c["chosen"])
  assert best["value"] == max(c["value"] for c in curve)
  assert minival["rows"]["chosen"][:2] == list(best["scores"].values())
  change = tables["Change from the initial model on test (points)"]["rows"]
  test = tables["Accuracy on test (%)"]["rows"]
  assert change["member_001"] == [
    a - b for a, b in zip(test["member_001"][:2], test["pretrained"][:2])
  ]
  assert "Accuracy on test (%)" in printed and record["summary"] in printed
  for task, line in zip(("blurred", "sharp"), record["differences"][1:]):
    gain = change["chosen"][("blurred", "sharp").index(task)]
    assert line.startswith(f"{task}: {100 * gain:+.2f} points, 95 % interval")
    assert line in printed
  assert "at most 3 candidates on the 200 images" in printed
  page = (workdir / "report.html").read_text()
  assert "normalised" in page and "<svg" in page
  assert (workdir / "figures/addition.png").exists()


def test_the_chosen_model_is_written_with_its_heads(sweep, added):
  workdir, _ = added
  scale = record_of(workdir)["searches"]["addition"]
  scale = next(c for c in scale if c["chosen"])["coefficients"][0]
  chosen = sj.load_params(workdir / "chosen")
  start, *members = [
    sj.load_params(sweep / path)
    for path in (
      "initial", "member_001/ingredients/last", "member_002/ingredients/last",
    )
  ]  # fmt: skip
  assert "head" not in chosen
  kernel = [m["embedding"]["kernel"] for m in (start, *members)]
  expected = kernel[0] + scale * (kernel[1] + kernel[2] - 2 * kernel[0])
  np.testing.assert_allclose(chosen["embedding"]["kernel"], expected, atol=1e-6)
  with np.load(workdir / "heads/blurred.npz") as head:
    expected = members[1]["head"]["kernel"]
    np.testing.assert_array_equal(head["head/kernel"], expected)
  record = sj.provenance(workdir / "chosen")
  assert record["search"] == "addition"
  names = [i["name"] for i in record["ingredients"]]
  assert names == ["member_001", "member_002", "initial"]


def test_goes_on_where_it_was(sweep, added, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  shutil.copytree(added[0], workdir, copy_function=shutil.copy2)
  before = {
    name: (workdir / name).read_bytes()
    for name in ("search.json", "results.jsonl")
  }
  for name in before:
    (workdir / name).unlink()
  path = workdir / "candidates/addition.json"
  # As a kill leaves it after the second candidate.
  path.write_text(json.dumps(json.loads(path.read_text())[:2]))
  scored = []
  scores = work_lib.Work.scores
  monkeypatch.setattr(
    work_lib.Work, "scores", lambda *a: scored.append(scores(*a)) or scored[-1]
  )
  config = config_of(sweep, "addition", **{"search.points": 3})
  search.run(config, workdir)
  assert len(scored) == 1
  assert before == {name: (workdir / name).read_bytes() for name in before}


def test_a_dry_run_says_how_long_it_takes(sweep, tmp_path, capsys):
  options = {"search.points": 5, "search.show": "0.5+0.7"}
  config = config_of(sweep, "wise_ft", **options)
  assert search.run(config, tmp_path / "run", dry_run=True) is None
  text = capsys.readouterr().out
  seen = re.search(r"(\d+) candidates on the (\d+) images of minival", text)
  all_images = re.search(r"2 models .* and the result on all ([\d,]+)", text)
  (models,) = re.findall(r"; (\d+) checkpoints", text)
  total = int(seen[1]) * int(seen[2])
  total += (int(models) + 3) * int(all_images[1].replace(",", ""))
  assert re.search(r"host memory .*arrays on devices", text)
  assert re.search(r"disk space .*the chosen model", text)
  assert re.search(rf"forward passes [\d.]+ s: {total:,} images at", text)
  assert not (tmp_path / "run").exists()


def test_another_head_is_another_search(sweep, tmp_path, monkeypatch):
  head, workdir = tmp_path / "head.npz", tmp_path / "run"
  sj.save_params(head, {"kernel": np.zeros((16, 10), "f")})
  tasks = f"a=digits:minival=minival:head=file:{head}"
  config = config_of(sweep, "wise_ft", tasks=tasks)
  monkeypatch.setattr(search, "_run", lambda *args: None)
  search.run(config, workdir)
  search.run(config, workdir)
  head.unlink()
  sj.save_params(head, {"kernel": np.ones((16, 10), "f")})
  for _ in range(2):
    with pytest.raises(ValueError, match="the head of a changed"):
      search.run(config, workdir)
    for name in ("search.json", "report.html"):  # As a finished search.
      (workdir / name).write_text("{}")


def test_wise_ft_chooses_alpha_on_minival(sweep, tmp_path):
  tasks = "digits=digits:minival=minival[:100]:test=test[:100]"
  config = config_of(
    sweep,
    "wise_ft",
    tasks=tasks,
    **{"search.points": 3, "cook.metric": "loss"},
  )
  search.run(config, tmp_path)
  record = record_of(tmp_path)
  assert [table["title"].split(" (")[0] for table in record["tables"]] == [
    "loss on test",
    "Accuracy on test",
    "loss on minival, where the choice was made",
    "Accuracy on minival, where the choice was made",
  ]
  curve = record["searches"]["wise_ft"]
  assert [c["coefficients"] for c in curve] == [[0.0], [0.5], [1.0]]
  best = next(c for c in curve if c["chosen"])
  assert best["value"] == max(c["value"] for c in curve)
  rows = record["tables"][-2]["rows"]
  better = min(("member_001", "member_002"), key=lambda n: rows[n])
  assert curve[2]["scores"]["digits"] == pytest.approx(-rows[better][0])
  assert curve[0]["scores"]["digits"] == pytest.approx(-rows["pretrained"][0])
  assert f"{rows['pretrained'][0]:.4g}" in report.tables_text(record["tables"])
  assert "head" in sj.load_params(tmp_path / "chosen")


def test_a_clip_keeps_its_text_tower(tmp_path):
  for folder, seed in (("start", 0), ("tuned", 1)):
    tiny_clip.save(tmp_path / folder, seed)
  task = "digits:minival=minival[:40]:head=zeroshot"
  values = {
    "initial": str(tmp_path / "start"),
    "ingredients": str(tmp_path / "tuned"),
    "tasks": f"a={task}|crop_border(1)|resize(16),control={task}",
    "data.eval_ops": 'standardize("clip")',
    "zeroshot.names": "zero|one|two|three|four|five|six|seven|eight|nine",
    "search.points": 2,
    "search.patching": "a",
  }
  search.run(config_lib.load(CONFIG, "paint", **values), tmp_path / "run")
  with np.load(tmp_path / "run/heads/a.npz") as head:
    norms = np.linalg.norm(head["head/kernel"], axis=0)
  np.testing.assert_allclose(norms, norms[0], rtol=1e-5)  # One logit scale.
  curve = record_of(tmp_path / "run")["searches"]["paint"]
  best = next(c for c in curve if c["chosen"])["coefficients"][0]
  folders = [tmp_path / k for k in ("start", "tuned", "run/export/chosen")]
  start, tuned, chosen = map(sj.open_ingredient, folders)
  assert {*chosen.specs} == {*start.specs}
  assert (folders[2] / "open_clip_config.json").exists()
  for leaf in start.specs:
    a, b, x = (np.asarray(i.read(leaf)) for i in (start, tuned, chosen))
    expected = a + best * (b - a) if leaf.startswith("visual.") else a
    np.testing.assert_allclose(x, expected, atol=1e-5, err_msg=leaf)
  assert sj.provenance(folders[2])["search"] == "paint"
