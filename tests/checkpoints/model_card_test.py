# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import os

import numpy as np
import pytest

import soupjax as sj
from soupjax.checkpoints import model_card

TRANSFORMERS = {
  "architectures": ["ViTModel"],
  "model_type": "vit",
  "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for k in range(2):
    sj.save_params(f"m{k}/model.safetensors", {"w": np.full(2, k, "f")})
    _write(f"m{k}/config.json", TRANSFORMERS)
    _write(f"m{k}/preprocessor_config.json", {"do_resize": True})
    _write(f"m{k}/metrics.json", {"minival/prec@1": 0.5 + k / 4})


def _write(path, content):
  with open(path, "w") as f:
    json.dump(content, f)


def _read(path):
  with open(path, encoding="utf-8") as f:
    return f.read()


def _mix(out="soup", **more):
  return sj.mix(sj.rules.linear(), "m?", out=out, format="hub", **more)


def test_a_mix_writes_a_folder_for_the_hub():
  _mix(hash_inputs=True)
  assert sorted(os.listdir("soup")) == [
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
  ]
  card = _read("soup/README.md")
  assert card.startswith("---\nlibrary_name: transformers\n")
  assert 'ViTModel.from_pretrained("USER/NAME")' in card
  assert "| rule | uniform |" in card
  record = sj.provenance("soup")
  for k, entry in enumerate(record["ingredients"]):
    row = f"| m{k} | {entry['content_hash']} | {0.5 + k / 4} |"
    assert row in card
  assert os.getcwd() not in card
  np.testing.assert_array_equal(sj.load_params("soup")["w"], [0.5, 0.5])


def test_the_config_has_the_dtype_of_the_soup():
  # transformers would round the weights to that of the ingredients.
  _mix()
  assert json.loads(_read("soup/config.json")) == {
    **TRANSFORMERS,
    "dtype": "float32",
  }


@pytest.mark.parametrize(
  "name, config, library, weights",
  [
    ("config.json", {"architecture": "vit_x"}, "timm", "model.safetensors"),
    (
      "open_clip_config.json",
      {"model_cfg": {}},
      "open_clip",
      "open_clip_model.safetensors",
    ),
    (
      "config.json",
      {"_class_name": "VQModel"},
      "diffusers",
      "diffusion_pytorch_model.safetensors",
    ),
  ],
)
def test_each_library_finds_the_weights(name, config, library, weights):
  for k in range(2):
    os.remove(f"m{k}/config.json")
    _write(f"m{k}/{name}", config)
  _mix()
  assert {name, weights} < set(os.listdir("soup"))
  assert f"library_name: {library}\n" in _read("soup/README.md")
  with pytest.raises(ValueError, match=f"{library} .* shard_bytes"):
    _mix("sharded", shard_bytes=4)


def test_shards_for_transformers():
  _mix(shard_bytes=4)
  assert "model.safetensors.index.json" in os.listdir("soup")
  assert "README.md" in os.listdir("soup")


def test_a_folder_without_a_config_is_refused():
  os.remove("m0/config.json")
  with pytest.raises(ValueError, match=r"config\.json .* 'm0'"):
    _mix()
  assert not os.path.exists("soup")


def test_only_a_card_that_nobody_edited_is_replaced():
  _mix()
  _mix(overwrite=True)
  with open("soup/README.md", "a") as f:
    f.write("My notes.\n")
  with pytest.raises(ValueError, match=r"README\.md"):
    _mix(overwrite=True)
  assert "My notes." in _read("soup/README.md")


def test_text_in_a_table_stays_in_its_cell():
  card = model_card.text("a|b", {}, {"rule": "x\n|y"}, [{"name": "<b>`"}])
  assert "| rule | x \\|y |" in card
  assert "| \\<b>\\` |" in card


def test_the_hub_reads_the_card():
  hub = pytest.importorskip("huggingface_hub")
  _mix()
  card = hub.ModelCard.load("soup/README.md")
  assert card.data.library_name == "transformers"
  assert "model-soup" in card.data.tags
