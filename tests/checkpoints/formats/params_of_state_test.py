# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Train states in every format: only the weights of them are an ingredient."""

import warnings

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.checkpoints import readable
from soupjax.checkpoints.formats import params_of_state

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
    ingredient = sj.open_ingredient(tmp_path / name)
  assert sorted(ingredient.specs) == ["layers/b", "layers/w"]
  assert np.array_equal(ingredient.load()["layers"]["w"], W)
  part = ingredient.read("layers/w", index=(slice(1, 2), slice(0, 2)))
  assert part.tolist() == [[3, 4]]
  mixed = sj.mix(sj.rules.linear(), [ingredient], block_bytes=8)
  assert np.array_equal(mixed.params["layers"]["w"], W)


def test_models_of_one_architecture_are_searched_for_weights_once(
  tmp_path, monkeypatch
):
  calls, choose = [], params_of_state.choose

  def counted(*args, **kwargs):
    calls.append(args)
    return choose(*args, **kwargs)

  monkeypatch.setattr(params_of_state, "choose", counted)
  params_of_state._is_model.cache_clear()
  for k in range(3):
    tree = {"w": np.full(k + 1, k, np.float32), "b": np.ones(2, np.float32)}
    sj.save_params(tmp_path / f"{k}.npz", tree)
    assert sj.open_ingredient(tmp_path / f"{k}.npz").specs["w"].size == k + 1
  assert len(calls) == 1


STEP = np.int32(3)
STATES = {
  "net": {"net": PARAMS, "optimizer": OPT, "step": STEP},
  "an unknown name": {"vit": PARAMS, "opt_state": OPT},
  "inside": {"train_state": {"params": PARAMS, "opt_state": OPT}, "rng": W},
  "t5x": {"target": PARAMS, "state": {"param_states": PARAMS, "step": STEP}},
  "beside": {**PARAMS, "optimizer": OPT, "scale": {"w": W}},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("state", STATES)
def test_states_of_optimizers_are_not_read(tmp_path, name, state):
  sj.save_params(tmp_path / name, STATES[state])
  ingredient = sj.open_ingredient(tmp_path / name)
  extra = {"scale/w"} if state == "beside" else set()
  assert set(ingredient.specs) == {"layers/b", "layers/w"} | extra
  whole = sj.open_ingredient(f"{tmp_path / name}#")
  assert len(whole.specs) == len(jax.tree.leaves(STATES[state]))


@pytest.mark.parametrize("name", FORMATS)
def test_of_several_models_the_user_chooses_one(tmp_path, name):
  state = {"student": PARAMS, "teacher": PARAMS, "opt_state": OPT}
  path = tmp_path / name
  sj.save_params(path, state)
  with pytest.raises(ValueError, match=f"{path}.*'student'.*'teacher'.*#stud"):
    sj.open_ingredient(path)
  teacher = sj.open_ingredient(f"{path}#teacher")
  assert (teacher.name, teacher.path) == (f"{name}#teacher", str(path))
  assert np.array_equal(teacher.read("layers/w"), W)
  opened = sj.open_ingredient(f"{path}#teacher/layers")
  assert set(opened.specs) == {"b", "w"}
  with pytest.raises(ValueError, match="'teacher/x'.*'layers'"):
    sj.open_ingredient(f"{path}#teacher/x")


@pytest.mark.parametrize("name", FORMATS)
def test_batch_stats_stay_with_the_weights(tmp_path, name):
  stats = {"mean": np.full(3, 5, np.float32)}
  state = {"params": PARAMS, "batch_stats": stats, "opt": OPT}
  sj.save_params(tmp_path / name, state)
  ingredient = sj.load_params(tmp_path / name)
  assert set(ingredient) == {"params", "batch_stats"}
  assert np.array_equal(ingredient["batch_stats"]["mean"], stats["mean"])
  assert np.array_equal(ingredient["params"]["layers"]["w"], W)


@pytest.mark.parametrize("name", FORMATS)
def test_ignored_entries_that_may_belong_to_the_model_are_named(
  tmp_path, name, monkeypatch
):
  # Other programs write such files; ours are checked.
  monkeypatch.setattr(readable, "check_names", lambda path, specs: specs)
  monkeypatch.setattr(readable, "check_written", lambda *_: None)
  sj.save_params(tmp_path / name, {"params": PARAMS, "head": {"w": W}})
  with pytest.warns(UserWarning, match=r"'head' \(beside 'params'\).*#head"):
    ingredient = sj.open_ingredient(tmp_path / name)
  assert sorted(ingredient.specs) == ["layers/b", "layers/w"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
  "state",
  [{"params": PARAMS}, {"params": W, "opt": W}, {"a": W, "opt_gate": OPT}],
)
def test_other_trees_stay_unchanged(tmp_path, name, state):
  sj.save_params(tmp_path / name, state)
  assert set(sj.load_params(tmp_path / name)) == set(state)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_may_be_called_opt(tmp_path, name):
  model = {"opt": {"decoder": PARAMS}, "lm_head": {"w": W}}
  joined = {"opt.decoder.layers.0.weight": W, "lm_head.weight": W}
  for k, params in enumerate((model, joined)):
    sj.save_params(tmp_path / f"{k}{name}", params)
    assert set(sj.load_params(tmp_path / f"{k}{name}")) == set(params)


@pytest.mark.parametrize("name", FORMATS)
def test_a_state_without_model_is_read_as_the_message_says(tmp_path, name):
  sj.save_params(tmp_path / name, {"optimizer.mu.w": W, "optimizer.nu.w": W})
  with pytest.raises(ValueError, match="holds no model") as error:
    sj.open_ingredient(tmp_path / name)
  path = str(error.value).rpartition(": ")[2].removesuffix(".")
  assert len(sj.open_ingredient(path).specs) == 2


def test_training_state_is_named_in_the_plan_without_a_warning(tmp_path):
  for k in range(2):
    arrays = {n: np.full(2, k, "f") for n in ("opt.mu.w", "opt.nu.w", "net.w")}
    np.savez(tmp_path / f"m{k}.npz", **arrays)
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    mixed = sj.mix(sj.rules.linear(), tmp_path / "m?.npz")
  assert list(mixed.params) == ["net.w"]
  assert "'opt' (training state)" in mixed.table
