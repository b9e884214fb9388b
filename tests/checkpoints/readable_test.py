# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs are opened before they are published."""

import json
import os
import pathlib

import numpy as np
import pytest

import soupjax as sj
from soupjax.checkpoints.formats import block_writer, orbax
from soupjax.soups.core import tree

RULE = sj.rules.linear()
W = np.arange(3, dtype=np.float32)
OUTPUTS = ("o.safetensors", "o.npz", "o", "o.pt")


def write(how, out, params):
  if how == "save":
    sj.save_params(out, params)
  else:
    sj.mix(RULE, [sj.Ingredient.from_params("m", params)], out=out)


# Names that every format keeps.
KEPT = {
  "a.b": W,
  "w": W,
  "W": W + 1,
  "w.npy": W + 2,
  "": W + 3,
  " ": W + 4,
  "a\nb": W + 5,
  "a\\b": W + 6,
  "\u00e4\u8a9e": W + 7,
  "a%2Fb?#": W + 8,
  "..": {"etc": W + 9},
  "('a', 'b')": W + 10,
  "state": W + 11,
  "_METADATA": W + 12,
  "x" * 5000: W + 13,
  "zarr.json": W + 14,
}


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("how", ["save", "mix"])
def test_odd_names_are_read_as_they_were_written(tmp_path, how, out):
  write(how, tmp_path / out, KEPT)
  loaded, _ = tree.flatten(sj.load_params(tmp_path / out))
  expected, _ = tree.flatten(KEPT)
  assert loaded.keys() == expected.keys()
  for leaf, value in expected.items():
    np.testing.assert_array_equal(loaded[leaf], value)


@pytest.mark.parametrize(
  "params,outputs,culprit",
  [
    ({"\udcc3": W}, OUTPUTS, r"'\\udcc3' is not valid Unicode"),
    ({"x" * 40_000: W}, OUTPUTS, "40000 bytes"),
    ({"params": {"a": W}, "head": W}, OUTPUTS, r"o(\.\w+)? .*\['head'\]"),
    ({"__metadata__": W, "b": W}, OUTPUTS[:1], "'__metadata__'"),
    ({"a\0b": W}, OUTPUTS[1:2], r"'a\\x00b'"),
    ({"a": {"": {"b": W}}}, OUTPUTS[2:3], "'a//b'"),
    ({"/": W}, OUTPUTS[2:3], "'/'"),
    ({"a.b": W, "a": {"b": W}}, OUTPUTS[2:3], "'a/b' and 'a.b'"),
  ],
)
@pytest.mark.parametrize("how", ["save", "mix"])
def test_names_that_a_reader_would_lose(
  tmp_path, how, params, outputs, culprit
):
  for out in outputs:
    with pytest.raises(ValueError, match=culprit):
      write(how, tmp_path / out, params)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_train_state_is_read_as_its_weights(tmp_path, out):
  state = {"params": {"a": W}, "opt_state": {"m": W}, "step": np.int32(3)}
  write("save", tmp_path / out, state)
  assert list(sj.load_params(tmp_path / out)) == ["a"]


@pytest.mark.parametrize("out", OUTPUTS)
def test_an_output_that_cannot_be_opened_is_not_published(
  tmp_path, out, monkeypatch
):
  """A headers' error of a kind that the comparison of bytes does not see."""
  sync = block_writer.RangeWriter._sync

  def cut(writer):
    for fd in writer._fds.values():
      os.ftruncate(fd, os.fstat(fd).st_size - 1)
    sync(writer)

  monkeypatch.setattr(block_writer.RangeWriter, "_sync", cut)
  save = orbax.save

  def renaming(path, *arguments):
    save(path, *arguments)
    file = pathlib.Path(path, "state", "_METADATA")
    content = json.loads(file.read_text())
    content["tree_metadata"].popitem()
    file.write_text(json.dumps(content))

  monkeypatch.setattr(orbax, "save", renaming)
  with pytest.raises(ValueError, match=f"{out} was not published"):
    write("save", tmp_path / out, {"a": W, "b": W})
  assert not os.listdir(tmp_path)
