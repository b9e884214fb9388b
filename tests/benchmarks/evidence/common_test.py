# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the benchmarks of benchmarks/evidence, from cooked runs."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

FOLDER = str(pathlib.Path(__file__).parents[3] / "benchmarks" / "evidence")
sys.path.insert(0, FOLDER)
common = importlib.import_module("common")
sys.path.remove(FOLDER)

SETS = ("test", "fog", "snow")


def test_differences_to_the_best_are_paired():
  rng = np.random.default_rng(0)
  best = rng.integers(0, 2, 50).astype(float)
  rows = {"best": best, "mean": best, "uniform": np.maximum(best, 1)}
  sweep = {"test": rows, "corrupted": rows}
  for sweeps in ([sweep], [sweep, sweep]):
    table = common.summary(sweeps)["test"]
    assert table["best"] == {"accuracy": pytest.approx(100 * best.mean())}
    assert table["mean"]["low"] == table["mean"]["high"] == 0
    assert table["uniform"]["low"] > 0
    assert table["uniform"]["each"] == pytest.approx(
      [100 * (1 - best.mean())] * len(sweeps)
    )


def test_tables_of_all_references_and_of_the_control():
  rng = np.random.default_rng(0)
  best = rng.integers(0, 2, 60).astype(float)
  rows = {"pretrained": best * 0, "mean": best, "best": best}
  sweep = dict.fromkeys(SETS, rows)
  record = common.record_of({"0": sweep, "1": sweep, "control": sweep}, {})
  assert record["finished"] == ["0", "1"]
  tables = record["sweeps"]
  assert "difference" not in tables["pretrained"]["test"]["pretrained"]
  gain = tables["pretrained"]["snow"]["best"]
  assert gain["difference"] == pytest.approx(100 * best.mean())
  assert gain["low"] > 0 and gain["each"] == [gain["difference"]] * 2
  assert len(record["control"]["pretrained"]["snow"]["best"]["each"]) == 1
  assert tables["best"]["fog"]["mean"]["difference"] == 0
  text = common.shown(record)
  assert text.count("| linear probe, the start | 0.0 |") == 2
  assert text.count("best ingredient by loss") == 6
  assert "Sweeps: 0, 1" in text


def test_rows_of_a_cooked_run(tmp_path):
  right = {
    "pretrained": [0, 0, 0],
    "member_000": [1, 1, 0],
    "member_001": [1, 0, 0],
    "uniform": [1, 1, 1],
    "wise_ft": [0, 1, 1],
    "wise_ft_0.50": [0, 0, 1],
  }
  kinds = {"pretrained": "pretrained", "wise_ft_0.50": "interpolation"}
  lines = []
  (tmp_path / "correct").mkdir()
  for model, bits in right.items():
    kind = "ingredient" if model.startswith("member") else "soup"
    for name in ("minival", *SETS):
      row = {"model": model, "kind": kinds.get(model, kind)}
      row |= {"dataset": f"pacs/{name}", "metric": "prec@1"}
      lines.append(json.dumps(row | {"value": np.mean(bits), "n": 3}))
    packed = dict.fromkeys(SETS, np.packbits(bits))
    np.savez(tmp_path / "correct" / f"{model}.npz", **packed)
  (tmp_path / "results.jsonl").write_text("\n".join(lines))
  for name, key, value in (
    ("greedy", "selected", ["a", "b"]),
    ("greedy_prec1", "selected", ["a"]),
    ("wise_ft", "alpha", 0.3),
  ):
    folder = tmp_path / "soups" / name
    folder.mkdir(parents=True)
    file = "wise_ft.json" if name == "wise_ft" else "greedy.json"
    (folder / file).write_text(json.dumps({key: value}))
  columns = {"test": ["test"], "weather": ["fog", "snow"]}
  answers = common.correct(tmp_path, columns)
  assert set(answers) == set(columns)
  for rows in answers.values():
    assert rows["mean"].tolist() == [1, 0.5, 0]
    assert rows["best"].tolist() == [1, 1, 0]
    assert rows["wise_ft"].tolist() == [0, 1, 1]
    assert set(rows) == {"pretrained", "mean", "best", "uniform", "wise_ft"}
  chosen = {"wise_ft": 0.3, "greedy": 2, "greedy_prec1": 1}
  assert common.choices(tmp_path) == chosen


def test_records_are_kept_by_name(tmp_path):
  path = tmp_path / "results.json"
  for name, value in (("a", 1), ("b", 2), ("a", 3)):
    common.save(path, name, {"value": value})
  records = json.loads(path.read_text())
  assert records == {"a": {"value": 3}, "b": {"value": 2}}
