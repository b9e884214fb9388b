# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import os
import signal

import numpy as np
import pytest

from soupjax import files


def test_json_round_trip_leaves_nothing_else(tmp_path):
  files.write_json(tmp_path / "a.json", {"x": [1, 0.1, None, "\u00e9"]})
  assert files.read_json(tmp_path / "a.json") == {"x": [1, 0.1, None, "\u00e9"]}
  assert os.listdir(tmp_path) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  file = tmp_path / "a.json"
  files.write_json(file, {"x": 1})

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "fsync", killed)
  with pytest.raises(KeyboardInterrupt):
    files.write_json(file, {"x": 2})
  assert files.read_json(file) == {"x": 1}
  assert os.listdir(tmp_path) == ["a.json"]


def test_an_interrupt_waits_for_the_end_of_a_block():
  steps = []
  with pytest.raises(KeyboardInterrupt), files.uninterrupted():
    steps.append(1)
    for _ in range(2):
      signal.raise_signal(signal.SIGINT)
    steps.append(2)
  assert steps == [1, 2]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nan_is_no_json(tmp_path):
  with pytest.raises(ValueError, match="not JSON compliant"):
    files.write_json(tmp_path / "a.json", {"x": float("nan")})
  assert not (tmp_path / "a.json").exists()


def test_damaged_json_is_named(tmp_path):
  (tmp_path / "a.json").write_text('{"x": 1')
  with pytest.raises(ValueError, match=r"a\.json is not.*Copy it again or"):
    files.read_json(tmp_path / "a.json")


def test_damaged_arrays_are_named(tmp_path):
  path = tmp_path / "a.npz"
  np.savez_compressed(path, a=np.random.default_rng(0).normal(size=1000))
  whole = path.read_bytes()
  path.write_bytes(whole[:500] + b"\xff" * 500 + whole[1000:])
  with pytest.raises(ValueError, match="a.npz is damaged"):
    files.read_arrays(path)
  with path.open("wb") as f:
    np.save(f, np.zeros(3))
  with pytest.raises(ValueError, match="a.npz is damaged"):
    files.read_arrays(path)


def test_a_directory_takes_its_name_on_success_only(tmp_path):
  final = tmp_path / "out"
  with pytest.raises(RuntimeError), files.new_directory(final) as d:
    (d / "half").write_text("x")
    raise RuntimeError
  assert not list(tmp_path.iterdir())
  (tmp_path / ".out.tmp").mkdir()
  (tmp_path / ".out.tmp" / "half").write_text("x")
  with files.new_directory(final) as d:
    assert not list(d.iterdir())  # Leftovers of a killed run are gone.
    (d / "whole").write_text("x")
    assert not final.exists()
  assert os.listdir(tmp_path) == ["out"] and os.listdir(final) == ["whole"]
  with pytest.raises(ValueError, match="out "):
    with files.new_directory(final):
      pass


def test_a_lock_is_for_one(tmp_path):
  for path in (tmp_path, tmp_path / "file"):
    fd = files.lock(path, "never raised")
    with pytest.raises(ValueError, match="is busy"):
      files.lock(path, f"{path} is busy")
    os.close(fd)
    os.close(files.lock(path))
