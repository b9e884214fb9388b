# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learned soups of a run go on at the step where they were killed."""

import itertools
import json

import jax
import ml_collections
import numpy as np
import pytest

import soupjax as sj
from soupjax.tasks.cook import soups

MODEL = sj.models.ViT(
  num_classes=3, patch_size=4, width=8, depth=1, mlp_dim=8, num_heads=1
)
IMAGES = np.random.default_rng(0).normal(size=(12, 8, 8, 1)).astype(np.float32)
INIT = jax.jit(MODEL.init)
CONFIG = ml_collections.ConfigDict(
  {"steps": 6, "learning_rate": 0.1, "memory_gb": -1.0}
)


def learn(workdir, **settings):
  config = ml_collections.ConfigDict({**CONFIG, **settings})
  pool = [
    sj.Ingredient.from_params(
      f"m{k}", INIT(jax.random.key(k), IMAGES[:1])["params"]
    )
    for k in range(3)
  ]
  batches = itertools.repeat((IMAGES, np.arange(12) % 3))
  params, record = soups.learned(
    config, "layer", MODEL, pool, batches, workdir / "state.json"
  )
  return json.dumps(record), params


def test_a_killed_learned_soup_goes_on(tmp_path, monkeypatch):
  (tmp_path / "whole").mkdir()
  record, params = learn(tmp_path / "whole")

  class Killed(Exception):
    pass

  steps = []

  def killed(*args, on_step, on_state, **settings):
    def save(state):
      on_state(state)
      if state["optimizer"]["step"] == 4 and len(steps) == 4:
        raise Killed

    def tell(entry):
      on_step(entry)
      steps.append(entry["step"])

    return sj.learned_soup(*args, on_step=tell, on_state=save, **settings)

  monkeypatch.setattr(soups, "learned_soup", killed)
  with pytest.raises(Killed):
    learn(tmp_path)
  again, result = learn(tmp_path)
  assert steps == [0, 1, 2, 3, 4, 5]
  assert again == record
  for a, b in zip(*map(jax.tree.leaves, (result, params))):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("gigabytes,limit", [(-1, None), (0, 0), (1.5, 1.5e9)])
def test_the_config_limits_memory(tmp_path, monkeypatch, gigabytes, limit):
  class Called(Exception):
    pass

  def learned_soup(*args, residency, **settings):
    raise Called(residency)

  monkeypatch.setattr(soups, "learned_soup", learned_soup)
  with pytest.raises(Called) as e:
    learn(tmp_path, memory_gb=gigabytes)
  assert e.value.args == (limit,)


@pytest.mark.parametrize(
  "text,message",
  [
    ("[]", "state.json"),
    ("{", "state.json"),
  ],
)
def test_says_which_state_to_delete(tmp_path, text, message):
  (tmp_path / "state.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    learn(tmp_path)
