"""A tiny CLIP with random weights, as users of OpenCLIP have one."""

import json
import pathlib

import jax
import numpy as np

from soupjax.models import CLIP, pretrained

VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 4}
TEXT = {"layers": 1, "width": 16, "heads": 2, "context_length": 12}
IMAGE_SIZE, EMBED_DIM = 16, 8
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
WORDS = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "ca", "cat</w>"]
WORDS += ["<|startoftext|>", "<|endoftext|>"]


def write_vocabulary(folder: pathlib.Path) -> None:
  """Writes letters and the merges "c a" and "ca t</w>"."""
  vocab = {word: k for k, word in enumerate(WORDS)}
  (folder / "vocab.json").write_text(json.dumps(vocab))
  merges = "#version: 0.2\nc a\nca t</w>\n"
  (folder / "merges.txt").write_text(merges)


def model() -> CLIP:
  clip = pretrained.options("openclip")
  image = {"patch_size": 4, "width": 32, "depth": 1, "num_heads": 2, **clip}
  text = {"vocab_size": len(WORDS), "context_length": 12, "width": 16}
  text |= {"depth": 1, "num_heads": 2, "causal": True, "pool_type": "argmax"}
  text |= {"act": "quick_gelu", "norm_eps": 1e-5}
  dim = {"proj_size": EMBED_DIM}
  return CLIP({**image, **dim}, {**text, **dim})


def params(seed: int = 0):
  rng = np.random.default_rng(seed)
  images = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
  tokens = np.zeros((1, 12), np.int32)
  shapes = jax.eval_shape(model().init, jax.random.key(0), images, tokens)

  def random(x):
    # Norms with scales near 1, as they are.
    return rng.normal(x.ndim == 1, 0.2, x.shape).astype(x.dtype)

  return jax.tree.map(random, shapes["params"])


def save(folder: pathlib.Path, seed: int = 0) -> None:
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
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {**VISION, "image_size": IMAGE_SIZE},
    "text_cfg": {**TEXT, "vocab_size": len(WORDS)},
  }
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": config})
  )
