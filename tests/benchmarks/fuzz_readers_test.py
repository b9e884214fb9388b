# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A thousand damaged checkpoints, always the same ones."""

import importlib
import pathlib
import sys

import pytest

FOLDER = str(pathlib.Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)
fuzz_readers = importlib.import_module("fuzz_readers")
mutations = importlib.import_module("mutations")
sys.path.remove(FOLDER)


def test_damaged_checkpoints_are_refused_or_give_the_same_values(tmp_path):
  counts, failures, slowest = fuzz_readers.fuzz(1000, 0, tmp_path)
  assert not failures
  assert sum(sum(found.values()) for found in counts.values()) >= 1000
  for kind, found in counts.items():
    # Most damage is noticed, and some is harmless.
    assert found["refused"] > 5 and found["refused"] + found["same"] > 8, kind
  assert slowest < 20
  assert "| all | 1,0" in fuzz_readers.table(counts)


def test_a_reader_without_checks_is_found_out(tmp_path, monkeypatch):
  (tmp_path / "sound").mkdir()
  seeds = fuzz_readers.make_seeds(tmp_path / "sound")
  cases = range(40)

  def outcomes():
    return {
      fuzz_readers.outcome(seeds, "soup.safetensors", k, tmp_path).split(":")[0]
      for k in cases
    }

  assert outcomes() <= {"same", "refused", "other values"}
  monkeypatch.setattr("soupjax.soups.core.crc32.check", lambda *_: None)
  monkeypatch.setattr(
    "soupjax.checkpoints.formats.leaf_digest.check", lambda *_, **__: {}
  )
  assert "wrong values, without a word" in outcomes()


@pytest.mark.parametrize("died", ["crash", "hang"])
def test_a_process_that_ends_or_hangs_is_a_failure(tmp_path, monkeypatch, died):
  # The worker of this test is a stub.
  stub = tmp_path / "stub.py"
  stub.write_text(
    "import json, os, sys, time\n"
    "start = int(sys.argv[-1].split('=')[1])\n"
    "for k in range(start, 4):\n"
    "  if k == 2:\n"
    f"    os.abort() if {died == 'crash'} else time.sleep(99)\n"
    "  print(json.dumps(['npz', k, 'same', 0.1]), flush=True)\n"
  )
  monkeypatch.setattr(fuzz_readers, "__file__", str(stub))
  monkeypatch.setattr(fuzz_readers, "PATIENCE", 1)
  monkeypatch.setattr(fuzz_readers, "make_seeds", lambda folder: {})
  todo = [("npz", k) for k in range(4)]
  monkeypatch.setattr(fuzz_readers, "cases", lambda *_: todo)
  folder = tmp_path / "folder"
  folder.mkdir()
  counts, failures, _ = fuzz_readers.fuzz(4, 0, folder)
  assert [failure[:2] for failure in failures] == [("npz", 2)]
  assert counts["npz"] == {"same": 3, "failed": 1}
