# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import logging
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from soupjax import sharding
from soupjax.checkpoints import train_state

STATE = {
  "step": jnp.asarray(3, jnp.int32),
  "params": {"w": jnp.arange(12.0).reshape(3, 4), "frozen": None},
  "moment": (jnp.ones((4, 2), jnp.bfloat16) / 3,),
}


def scaled(k):
  return jax.tree.map(lambda x: x * k, STATE)


def saved(path, steps=(1, 2, 3)):
  saver = train_state.StateSaver(path)
  for k in steps:
    saver.save(k, scaled(k), {"data": {"next": k}})
  saver.wait()
  return saver


def test_the_newest_comes_back_bit_for_bit(tmp_path):
  saved(tmp_path)
  state, record = train_state.restore(tmp_path, STATE)
  chex.assert_trees_all_equal(state, scaled(3))
  chex.assert_trees_all_equal_dtypes(state, STATE)
  assert record == {"data": {"next": 3}}
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ["state_00000002", "state_00000003"]


def test_training_may_go_on_while_a_state_is_written(tmp_path):
  advance = jax.jit(
    lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0
  )
  state = {"w": jnp.zeros((512, 2048))}
  saver = train_state.StateSaver(tmp_path)
  for k in range(3):
    saver.save(k, state, {})
    for _ in range(5):
      state = advance(state)
  saver.wait()
  restored, _ = train_state.restore(tmp_path, state)
  assert float(restored["w"].min()) == float(restored["w"].max()) == 10


def largest(path):
  files = [p for p in path.rglob("*") if p.is_file() and p.suffix != ".json"]
  return max(files, key=lambda p: p.stat().st_size)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


@pytest.mark.parametrize(
  "damage",
  [
    lambda p: flip(largest(p)),
    lambda p: largest(p).unlink(),
    lambda p: (p / "record.json").unlink(),
    lambda p: (p / "record.json").write_text("{"),
  ],
  ids=["bit", "file", "record", "json"],
)
def test_a_damaged_state_is_passed_over_and_said(tmp_path, damage, caplog):
  saved(tmp_path)
  damage(tmp_path / "state_00000003")
  with caplog.at_level(logging.WARNING, logger="absl"):
    state, record = train_state.restore(tmp_path, STATE)
  chex.assert_trees_all_equal(state, scaled(2))
  assert record == {"data": {"next": 2}}
  assert "state_00000003 is damaged" in caplog.text


@pytest.mark.parametrize("damaged, step", [(3, 3), (4, 3)])
def test_a_damaged_state_takes_no_place_of_a_whole_one(tmp_path, damaged, step):
  saved(tmp_path, steps=(1, 2))
  (tmp_path / f"state_{damaged:08d}").mkdir()
  saver = train_state.StateSaver(tmp_path)
  saver.save(step, scaled(step), {})
  saver.wait()
  for whole in (step, 2):
    state, _ = train_state.restore(tmp_path, STATE)
    chex.assert_trees_all_equal(state, scaled(whole))
    shutil.rmtree(tmp_path / f"state_{whole:08d}")


def test_a_missing_state_is_none_but_damaged_ones_are_an_error(tmp_path):
  assert train_state.restore(tmp_path, STATE) is None
  saved(tmp_path, steps=(1,))
  flip(largest(tmp_path / "state_00000001"))
  with pytest.raises(ValueError, match="damaged"):
    train_state.restore(tmp_path, STATE)


def test_half_written_states_are_not_seen(tmp_path):
  saved(tmp_path, steps=(1,))
  (tmp_path / "state_00000001").rename(tmp_path / ".state_00000002.tmp")
  assert train_state.restore(tmp_path, STATE) is None
  saved(tmp_path, steps=(2,))  # Takes the place of what was left.
  assert train_state.restore(tmp_path, STATE)[1] == {"data": {"next": 2}}


def test_the_state_of_another_model_is_refused(tmp_path):
  saved(tmp_path)
  other = {**STATE, "params": {"w": jnp.zeros((3, 5)), "frozen": None}}
  with pytest.raises(ValueError, match="model or optimizer"):
    train_state.restore(tmp_path, other)


def test_states_come_back_onto_a_mesh(tmp_path):
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  places = jax.tree.map(lambda _: sharding.replicated(mesh), STATE)
  places["params"]["w"] = sharding.along(mesh, None, "model")
  placed = jax.device_put(STATE, places)
  saver = train_state.StateSaver(tmp_path)
  saver.save(1, placed, {})
  saver.wait()
  state, _ = train_state.restore(tmp_path, STATE, places)
  chex.assert_trees_all_equal(state, STATE)
  assert state["params"]["w"].sharding == places["params"]["w"]


def test_wait_raises_errors_of_the_background_write(tmp_path):
  saver = train_state.StateSaver(tmp_path)
  saver.save(1, STATE, {"data": float("nan")})  # No JSON.
  with pytest.raises(ValueError, match=f"train state in {tmp_path}"):
    saver.wait()
  assert train_state.restore(tmp_path, STATE) is None


def test_removing_leaves_nothing(tmp_path):
  saver = saved(tmp_path)
  (tmp_path / "other").mkdir()
  saver.remove()
  assert [p.name for p in tmp_path.iterdir()] == ["other"]
