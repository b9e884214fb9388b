# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Train states in every format: only the weights of them are an ingredient."""

import warnings

import numpy as np
import pytest

import soupjax as sj

W = np.arange(6, dtype=np.float32).reshape(2, 3)
PARAMS = {"layers": {"w": W, "b": np.ones(3, np.float32)}}
OPT = {"mu": {"w": np.full((2, 3), 7, np.float32)}}
FORMATS = ["x.safetensors", "x.npz", "x"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_train_state_is_cut_to_its_weights(tmp_path, name):
  state = {"params": PARAMS, "opt": OPT, "opt_state": OPT, "step": np.int32(3)}
  sj.save_params(tmp_path / name, state)
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    found = sj.open_ingredient(tmp_path / name)
  assert sorted(found.specs) == ["layers/b", "layers/w"]
  assert np.array_equal(found.load()["layers"]["w"], W)
  part = found.read("layers/w", index=(slice(1, 2), slice(0, 2)))
  assert part.tolist() == [[3, 4]]
  mixed = sj.mix(sj.rules.linear(), [found], block_bytes=8)
  assert np.array_equal(mixed.params["layers"]["w"], W)


@pytest.mark.parametrize("name", FORMATS)
def test_batch_stats_stay_with_the_weights(tmp_path, name):
  stats = {"mean": np.full(3, 5, np.float32)}
  state = {"params": PARAMS, "batch_stats": stats, "opt": OPT}
  sj.save_params(tmp_path / name, state)
  found = sj.load_params(tmp_path / name)
  assert set(found) == {"params", "batch_stats"}
  assert np.array_equal(found["batch_stats"]["mean"], stats["mean"])
  assert np.array_equal(found["params"]["layers"]["w"], W)


@pytest.mark.parametrize("name", FORMATS)
def test_what_may_belong_to_the_model_is_named(tmp_path, name):
  sj.save_params(tmp_path / name, {"params": PARAMS, "head": {"w": W}})
  with pytest.warns(UserWarning, match=r"only params is read.*\['head'\]"):
    found = sj.open_ingredient(tmp_path / name)
  assert sorted(found.specs) == ["layers/b", "layers/w"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
  "state", [{"params": PARAMS}, {"params": W, "opt": W}, {"a": W, "opt": OPT}]
)
def test_what_is_no_train_state_stays(tmp_path, name, state):
  sj.save_params(tmp_path / name, state)
  assert set(sj.load_params(tmp_path / name)) == set(state)
