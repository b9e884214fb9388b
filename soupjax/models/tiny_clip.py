# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny CLIP with random weights, to try things without a download."""

import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from soupjax import files
from soupjax.models import pretrained
from soupjax.models.clip import CLIP

_VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 4}
_TEXT = {"layers": 1, "width": 16, "heads": 2, "context_length": 32}
_IMAGE_SIZE, _EMBED_DIM = 16, 8
# Letters within a word and at its end, two merges, and the special tokens.
_LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
_WORDS = [*_LETTERS, *(f"{c}</w>" for c in _LETTERS), "ca", "cat</w>"]
_WORDS += ["<|startoftext|>", "<|endoftext|>"]
VOCAB_SIZE = len(_WORDS)


def write_vocabulary(folder: pathlib.Path) -> None:
  """Writes vocab.json, and merges.txt with "c a" and "ca t</w>"."""
  vocab = {word: k for k, word in enumerate(_WORDS)}
  files.write_json(folder / "vocab.json", vocab)
  merges = "#version: 0.2\nc a\nca t</w>\n"
  (folder / "merges.txt").write_text(merges)


def model() -> CLIP:
  """Returns the model, for images of 16 x 16 pixels and patches of 4 x 4."""
  clip = pretrained.options("openclip")
  image = {"patch_size": 4, "width": 32, "depth": 1, "num_heads": 2, **clip}
  text = {"vocab_size": len(_WORDS), "context_length": 32, "width": 16}
  text |= {"depth": 1, "num_heads": 2, "causal": True, "pool_type": "argmax"}
  text |= {"act": "quick_gelu", "norm_eps": 1e-5}
  dim = {"proj_size": _EMBED_DIM}
  return CLIP({**image, **dim}, {**text, **dim})


def params(seed: int = 0) -> dict[str, Any]:
  """Draws random parameters of the model."""
  rng = np.random.default_rng(seed)
  images = np.zeros((1, _IMAGE_SIZE, _IMAGE_SIZE, 3), np.float32)
  tokens = np.zeros((1, 32), np.int32)
  shapes = jax.eval_shape(model().init, jax.random.key(0), images, tokens)

  def random(x):
    # Leaves with one axis, such as the scales of norms, are near 1.
    return rng.normal(x.ndim == 1, 0.2, x.shape).astype(x.dtype)

  return jax.tree.map(random, shapes["params"])


def save(folder: str | os.PathLike, seed: int = 0) -> None:
  """Writes weights, config and vocabulary, in a folder as for OpenCLIP."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_vocabulary(folder)
  pretrained.save_exported(
    folder / "open_clip_model.safetensors",
    params(seed),
    model(),
    "openclip",
    overwrite=True,
  )
  config = {
    "embed_dim": _EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {**_VISION, "image_size": _IMAGE_SIZE},
    "text_cfg": {**_TEXT, "vocab_size": len(_WORDS)},
  }
  files.write_json(folder / "open_clip_config.json", {"model_cfg": config})


def saved() -> str:
  """Returns the path of a saved model in the temporary folder."""
  folder = pathlib.Path(tempfile.gettempdir()) / "soupjax_tiny_clip"
  if not folder.exists():
    save(folder)
  return str(folder)
