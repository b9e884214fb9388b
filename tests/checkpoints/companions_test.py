# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import os

import numpy as np
import pytest

import soupjax as sj

CONFIG = {"architectures": ["ViTModel"], "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
  """Two folders as transformers writes them."""
  monkeypatch.chdir(tmp_path)
  for k in range(2):
    sj.save_params(f"m{k}/model.safetensors", {"w": np.full(2, k, "f")})
    _write(f"m{k}/config.json", CONFIG)
    _write(f"m{k}/preprocessor_config.json", {"do_resize": True})
    _write(f"m{k}/vocab.txt", ["a", "b"])


def _write(path, content):
  with open(path, "w") as f:
    json.dump(content, f)


def _read(path):
  with open(path) as f:
    return json.load(f)


def _mix(out, **more):
  return sj.mix(sj.rules.linear(), "m?", out=out, **more)


def test_configs_are_read_with_the_checkpoint():
  for path in ("m0", "m0/model.safetensors"):
    opened = sj.open_ingredient(path)
    assert opened.configs["config.json"] == CONFIG
    assert opened.configs["preprocessor_config.json"] == {"do_resize": True}


def test_configs_of_other_programs_are_passed_over():
  _write("m0/config.json", {"task": "finetune", "num_attention_heads": 9})
  _write("m1/config.json", ["a", "list"])
  assert "config.json" not in sj.open_ingredient("m0").configs
  assert "config.json" not in sj.open_ingredient("m1").configs


def test_mix_refuses_folders_of_different_models():
  _write("m1/config.json", {**CONFIG, "architectures": ["DeiTModel"]})
  with pytest.raises(ValueError, match="architectures .* config.json"):
    _mix("soup/model.safetensors")
  assert not os.path.exists("soup")


@pytest.mark.parametrize(
  "out, more",
  [
    ("soup/model.safetensors", {}),
    ("soup/model.npz", {}),
    ("soup", {}),
    ("soup", {"shard_bytes": 100}),
  ],
)
def test_files_beside_the_ingredients_are_copied_to_the_soup(out, more):
  mixed = _mix(out, **more)
  assert "copies  config.json, preprocessor_config.json, vocab" in mixed.table
  assert _read("soup/config.json") == CONFIG
  assert _read("soup/vocab.txt") == ["a", "b"]
  soup = sj.open_ingredient(mixed.path)
  assert soup.configs == sj.open_ingredient("m0").configs
  np.testing.assert_array_equal(soup.read("w"), [0.5, 0.5])
  _mix(out, overwrite=True, **more)


def test_files_are_not_copied_beside_other_files():
  os.mkdir("soups")
  sj.save_params("soups/other.safetensors", {"w": np.ones(2, "f")})
  mixed = _mix("soups/soup.safetensors")
  assert "config.json, preprocessor_config.json, vocab.txt of m0" in mixed.table
  assert sorted(os.listdir("soups")) == [
    "other.safetensors",
    "soup.safetensors",
  ]


def test_files_that_are_there_are_replaced_only_on_request():
  os.mkdir("soup")
  _write("soup/config.json", {"mine": 1})
  with pytest.raises(ValueError, match="soup/config.json .* 'm0'"):
    _mix("soup/model.safetensors")
  assert os.listdir("soup") == ["config.json"]
  _mix("soup/model.safetensors", overwrite=True)
  assert _read("soup/config.json") == CONFIG


@pytest.mark.parametrize(
  "name, contents",
  [
    ("vocab.json", ({"a": 0, "b": 1}, {"a": 1, "b": 0})),
    (
      "tokenizer.json",
      ({"model": {"vocab": {"a": 0, "b": 1}}}, {"model": {"vocab": {"a": 1}}}),
    ),
    (
      "tokenizer.json",
      [{"model": {"vocab": [[t, -1.5] for t in ts]}} for ts in ("ab", "ba")],
    ),
  ],
)
def test_embeddings_of_different_vocabularies_are_not_averaged(name, contents):
  for k, content in enumerate(contents):
    _write(f"m{k}/{name}", content)
  with pytest.raises(ValueError, match=f"token 'a' is 0 in .*m0/{name}.* 1 in"):
    _mix(None)
  _mix(None, select={"w": [1, 0]})


def test_vocabularies_may_be_written_differently():
  _write("m0/tokenizer.json", {"model": {"vocab": {"a": 0, "b": 1}}})
  more = {"truncation": 3, "model": {"vocab": {"b": 1, "a": 0, "c": 2}}}
  _write("m1/tokenizer.json", more)
  assert _mix(None).params["w"].tolist() == [0.5, 0.5]
