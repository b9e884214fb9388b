# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Config of clip.py: contrastive training on the images that it writes.

:pretrain trains a tiny CLIP from scratch, on captions of photos, paintings,
cartoons and sketches. Otherwise this is FLYP (configs/finetune/flyp.py) on
photos and paintings of five classes, from config.init.path: a tiny CLIP or,
with :clip, a real one.
"""

import json
import pathlib

import numpy as np

from soupjax import config as config_lib

FLYP = pathlib.Path(__file__).parents[2] / "configs" / "finetune" / "flyp.py"
TEMPLATES = (
  "a photo of a {}|a painting of a {}|a cartoon of a {}|a sketch of a {}"
)
# Steps of pretraining; minimum and maximum epochs of fine-tuning.
STEPS, EPOCHS = 800, (5, 10)
# Ranges for tiny models and, as in flyp.py, for real ones.
LOG_RATES, REAL_LOG_RATES = (-4, -3), (-5.5, -4.5)
MEMBERS = 8


def _parsed(arg):
  return config_lib.parse_arg(
    arg, images="", pretrain=False, clip=False, size=32, seed=0, short=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  images = pathlib.Path(arg.images)
  c = config_lib.load(str(FLYP), f"mask,res={arg.size}").unlock()
  c.seed = c.init.seed = arg.seed
  c.data.name = f"wds:{images}/captions" if arg.pretrain else f"folder:{images}"
  c.data.name += "" if arg.pretrain else "/seen"
  c.data.minival = "minival"
  c.data.num_train = 0
  c.data.num_classes = 15 if arg.pretrain else 5
  c.data.batch_size = 128 if arg.pretrain else 64
  c.data.eval_batch_size = 200
  c.zeroshot.names, c.zeroshot.templates = "", TEMPLATES
  c.hyper.warmup = "100steps" if arg.pretrain else "10steps"
  c.hyper.total = f"{STEPS}steps" if arg.pretrain else f"{EPOCHS[1]}epochs"
  if not arg.clip:
    _tiny(c, images, arg.pretrain)
  if arg.short:
    c.hyper.warmup, c.hyper.total = "2steps", "10steps"
  return c.lock()


def _tiny(c, images, pretrain):
  c.data.in_memory = True
  c.data.train_ops = c.data.eval_ops = "value_range(-1, 1)"
  c.data.batch_ops = "flip_lr|affine(10, 3, 0.1, 0.1)"
  if pretrain:
    c.data.batch_ops += "|jitter(0.5, 0.3, 0.5)"
  vocabulary = images / "vocabulary" / "tokenizer.json"
  words = json.loads(vocabulary.read_text("utf-8"))["model"]["vocab"]
  c.model.variant = ""
  c.model.dtype_mm = "float32"
  c.model.image = dict(
    patch_size=8, width=128, depth=4, mlp_dim=256, num_heads=4,
    pool_type="gap", proj_size=64,
  )  # fmt: skip
  c.model.text = dict(
    vocab_size=len(words), context_length=16, width=64, depth=2, num_heads=2,
    causal=True, pool_type="eos", eos_id=words["<|endoftext|>"], proj_size=64,
  )  # fmt: skip
  c.zeroshot.vocabulary = str(vocabulary.parent)
  c.optimizer.clip_norm = 1.0
  c.hyper.learning_rate = 1e-3
  c.checkpoint = "200steps"


def get_sweep(arg=None):
  """Draws hyperparameters at random, as flyp.py does."""
  arg = _parsed(arg)
  if arg.pretrain:
    return  # A single run.
  low, high = REAL_LOG_RATES if arg.clip else LOG_RATES
  for k in range(MEMBERS // 2 if arg.short else MEMBERS):
    rng = np.random.default_rng([arg.seed, k, 2212])
    rate, decay = 10 ** rng.uniform((low, -3), (high, -0.5))
    epochs = int(rng.integers(EPOCHS[0], EPOCHS[1] + 1))
    yield {
      "hyper.learning_rate": float(rate),
      "hyper.weight_decay": float(decay),
      "hyper.total": f"{2 * epochs}steps" if arg.short else f"{epochs}epochs",
      "seed": int(rng.integers(2**31)),
    }
