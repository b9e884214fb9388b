# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sweeps that start from CLIPs of other libraries, and their soups there."""

import json

import helpers
import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax import config as config_lib
from soupjax.models import tiny_clip
from soupjax.soups import average
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import export, inputs
from soupjax.tasks.finetune import job
from soupjax.tasks.finetune import run as finetune_run

for _package in ("tokenizers", "ftfy"):
  pytest.importorskip(_package, reason="needs pip install soupjax[clip]")

IMAGES, LENGTH = torch_models.IMAGES, 32
UNSEEN = ("fox", "red owl")
HF_VISION = {
  "hidden_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "image_size": 16,
  "patch_size": 4,
}
HF_TEXT = {
  "hidden_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 3,
  "intermediate_size": 12,
  "max_position_embeddings": LENGTH,
}
VISION = {"layers": 1, "width": 24, "head_width": 8, "patch_size": 4}
VISION |= {"image_size": 16}
TEXT = {"layers": 1, "width": 24, "heads": 3, "context_length": LENGTH}


def hf_clip(folder):
  """Writes a CLIPModel with its tokenizer; returns model and tokens."""
  transformers = torch_models.package("transformers")
  tiny_clip.write_vocabulary(folder)
  vocab = json.loads((folder / "vocab.json").read_text())
  tokenizer = transformers.CLIPTokenizer(
    vocab=vocab, merges=[("c", "a"), ("ca", "t</w>")]
  )
  for name in ("vocab.json", "merges.txt"):
    (folder / name).unlink()
  tokenizer.save_pretrained(folder)
  ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
  text = {**HF_TEXT, **ends, "vocab_size": len(vocab)}
  model = transformers.CLIPModel(
    transformers.CLIPConfig(
      text_config=text, vision_config=HF_VISION, projection_dim=6
    )
  )
  torch_models.randomize(model).save_pretrained(folder)
  pad = {"padding": "max_length", "max_length": LENGTH}
  return model, tokenizer(list(UNSEEN), **pad)["input_ids"]


def hf_siglip(folder):
  """Writes a SiglipModel with its tokenizer; returns model and tokens."""
  transformers = torch_models.package("transformers")
  library = pytest.importorskip("tokenizers")
  pieces = ["<unk>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyz", "red"]
  tokenizer = library.Tokenizer(
    library.models.Unigram([(p, -1.0 - k) for k, p in enumerate(pieces)], 0)
  )
  tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
  tokenizer.enable_padding(pad_id=1, pad_token="</s>", length=LENGTH)
  tokenizer.save(str(folder / "tokenizer.json"))
  ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
  text = {**HF_TEXT, **ends, "vocab_size": len(pieces)}
  model = transformers.SiglipModel(
    transformers.SiglipConfig(text_config=text, vision_config=HF_VISION)
  )
  torch_models.randomize(model).save_pretrained(folder)
  return model, [e.ids for e in tokenizer.encode_batch(list(UNSEEN))]


def openclip(folder):
  """Writes a CLIP of OpenCLIP; returns it and the tokens of soupjax."""
  model_of = torch_models.package("open_clip.model")
  safetensors = torch_models.package("safetensors.torch")
  text = {**TEXT, "vocab_size": tiny_clip.VOCAB_SIZE}
  config = {"embed_dim": 6, "vision_cfg": VISION, "text_cfg": text}
  model = torch_models.randomize(model_of.CLIP(**config))
  safetensors.save_file(
    model.state_dict(), folder / "open_clip_model.safetensors"
  )
  content = {"model_cfg": config, "preprocess_cfg": {}}
  (folder / "open_clip_config.json").write_text(json.dumps(content))
  tiny_clip.write_vocabulary(folder)
  tokenizer = sj.models.tokens.open_tokenizer(folder, context_length=LENGTH)
  return model, tokenizer(UNSEEN)


CLIPS = {"hf_clip": hf_clip, "hf_siglip": hf_siglip, "openclip": openclip}


def sweep_of(name, folder, clip, values):
  """Makes a sweep of two members without training them."""
  settings = {
    "init.path": str(clip),
    "data.name": f"folder:{folder}/photos",
    "data.minival": "val",
    "data.num_classes": 3,
    "data.num_train": 0,
    "data.image_size": 16,
    "data.batch_size": 8,
    "data.train_ops": f"resize(16)|{values}",
    "data.eval_ops": f"resize(16)|{values}",
    "model.variant": "init",
    "model.dtype_mm": "float32",
    "hyper.total": "1steps",
    "hyper.warmup": "0steps",
    "zeroshot.names": "",
    "zeroshot.templates": "{}",
  }
  path = helpers.ROOT / f"configs/finetune/{name}.py"
  config = config_lib.load(path, **settings)
  config = finetune_run.settings.with_model_of_start(config)
  sweep = folder / "sweep"
  workdir_lib.open_workdir(sweep, config)
  job.open_job(config, finetune_run.members_of(config, sweep, None), sweep)
  start = sj.load_params(sweep / "initial")
  for seed in range(2):
    rng = np.random.default_rng(seed)
    member = jax.tree.map(
      lambda x, rng=rng: x * (1 + rng.normal(size=x.shape).astype("f") / 4),
      start,
    )
    run = sweep / f"member_00{seed}"
    workdir_lib.open_workdir(run, config)
    workdir_lib.save_model(run / "ingredients" / "last", member)
  return sweep


def load_in_library(model, folder):
  """Loads an exported soup, with every leaf."""
  if hasattr(model, "encode_text"):
    factory = torch_models.package("open_clip.factory")
    file = folder / "open_clip_model.safetensors"
    factory.load_checkpoint(model, str(file), strict=True)
    return model.eval()
  model, report = type(model).from_pretrained(folder, output_loading_info=True)
  assert not any(report.values()), report
  return model


def logits_in_library(model, tokens):
  torch = torch_models.torch()
  x = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
  tokens = torch.from_numpy(np.array(tokens))
  with torch.no_grad():
    if hasattr(model, "encode_text"):
      return model.get_logits(x, tokens)[0].numpy()
    outputs = model(input_ids=tokens, pixel_values=x)
    bias = getattr(model, "logit_bias", torch.zeros(1))
    return (outputs.logits_per_image - bias).numpy()


@pytest.mark.parametrize(
  "config, clip",
  [
    ("clip_b32_i1k", "hf_clip"),
    ("clip_b32_i1k", "hf_siglip"),
    ("clip_b32_i1k", "openclip"),
    ("flyp", "hf_siglip"),
  ],
)
def test_a_soup_is_a_clip_of_the_library_of_the_start(
  config, clip, tmp_path, recwarn
):
  (tmp_path / "clip").mkdir()
  model, tokens = CLIPS[clip](tmp_path / "clip")
  for split in ("train", "val"):
    classes = dict.fromkeys(helpers.IMAGE_CLASSES, 2 + (split == "val"))
    helpers.write_image_folder(tmp_path / "photos" / split, classes)
  helpers.write_image_folder(
    tmp_path / "others" / "all", dict.fromkeys(UNSEEN, 1)
  )
  values = "value_range(-1, 1)" if "siglip" in clip else "standardize('clip')"
  sweep = sweep_of(config, tmp_path, tmp_path / "clip", values)
  opened = inputs.open_inputs(
    helpers.cook_config(
      sweep, tests=f"unseen=folder:{tmp_path}/others/all:names=own"
    )
  )
  assert any("clip" in note and "export/" in note for note in opened.notes)
  assert not [w for w in recwarn if "act=" in str(w.message)]
  params = average.uniform_soup(opened.ingredients)
  workdir_lib.save_model(tmp_path / "soup", params)
  export.write(opened, tmp_path / "soup", tmp_path / "export")

  head = opened.heads["unseen"]
  ours = np.asarray(head.classifier(head(params), IMAGES))
  ours = ours - np.asarray(params.get("b", 0.0))  # Of whole SigLIPs.
  theirs = logits_in_library(
    load_in_library(model, tmp_path / "export"), tokens
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  assert np.ptp(theirs, axis=0).min() > 1e-2  # The images differ.
