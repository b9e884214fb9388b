# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""LiT: trains a text tower for a locked image tower, on ImageNet's prompts.

  soupjax --config=configs/finetune/lit.py --workdir=runs/lit --sweep \
    --config.init.path=IMAGE_TOWER

IMAGE_TOWER is any ViT of docs/pretrained.md. Its embedding of every image is
computed once and kept in memory; a new text tower and the scale are trained
with CLIP's contrastive loss (arXiv 2111.07991). With :tuned, init.path is a
CLIP, whose text tower is trained further. :siglip uses SigLIP's sigmoid loss
(arXiv 2303.15343). Every ingredient is a whole CLIP. Needs soupjax[clip], and
OpenCLIP for class names, prompts and vocabulary; to use your own, set
--config.zeroshot.names, templates and vocabulary.

The paper trains on millions of captions (--config.data.name=csv:PATH or
wds:PATH, docs/data.md). Prompts of one dataset teach the text tower only the
names of its classes. Neither accuracy nor time has been measured.

On digits, from a tiny CLIP with random weights, in a minute on a laptop:

  soupjax --config=configs/finetune/lit.py:runlocal --sweep --workdir=/tmp/lit
"""

import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax.models import tiny_clip
from soupjax.tasks.finetune import config as finetune_config


def _parsed(arg):
  return config_lib.parse_arg(
    arg, runlocal=False, res=224, tuned=False, siglip=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.data.name = "imagenet2012"
  c.data.num_train = 1_281_167 - 26_000
  c.data.image_size = arg.res
  c.data.batch_size = 4096
  c.data.eval_batch_size = 512
  c.data.cache_gb = 16.0
  c.data.train_ops = c.data.eval_ops = (
    "resize_small({image_size}, 'bicubic')|central_crop({image_size})|"
    'standardize("imagenet")'
  )

  c.recipe = "lit"
  c.loss = "sigmoid" if arg.siglip else "softmax"
  c.model.name = "clip"
  c.model.variant = "init"
  c.model.bias = arg.siglip and not arg.tuned
  placeholder = ml_collections.config_dict.placeholder
  c.model.image = {"act": placeholder(str)}  # For weights without a config.
  c.model.text = {"act": placeholder(str)}
  if not arg.tuned:  # The text tower of CLIP ViT-B.
    c.init.text = "new"
    c.model.text.update(
      vocab_size=49_408, context_length=77, width=512, depth=12, num_heads=8,
      causal=True, pool_type="argmax",
    )  # fmt: skip
  c.zeroshot.names = "open_clip:imagenet"
  c.zeroshot.templates = "open_clip:openai"

  c.hyper.learning_rate = 1e-5 if arg.tuned else 1e-3
  c.hyper.weight_decay = 1e-4
  c.hyper.total = "20epochs"
  c.hyper.warmup = "500steps"
  if arg.runlocal:
    _runlocal(c, arg)
  return c.lock()


def _runlocal(c, arg):
  c.data.update(
    name="digits", minival="minival", num_classes=10, num_train=0,
    image_size=16, batch_size=20, eval_batch_size=160,
  )  # fmt: skip
  c.data.train_ops = c.data.eval_ops = 'standardize("clip")'
  c.init.path = tiny_clip.saved()
  if not arg.tuned:
    c.model.text.update(
      vocab_size=tiny_clip.VOCAB_SIZE, context_length=32, width=16, depth=1,
      num_heads=2,
    )  # fmt: skip
  c.zeroshot.names = "zero|one|two|three|four|five|six|seven|eight|nine"
  c.zeroshot.templates = "{}|the number {}"
  c.hyper.update(warmup="5steps", total="40steps", learning_rate=3e-3)
  c.checkpoint, c.log = "20steps", "10steps"


def get_sweep(arg=None):
  """Draws learning rates and seeds at random."""
  arg = _parsed(arg)
  base = get_config("tuned" if arg.tuned else None).hyper.learning_rate
  for k in range(2 if arg.runlocal else 8):
    rng = np.random.default_rng([k, 2111])
    yield {
      "hyper.learning_rate": float(base * 10 ** rng.uniform(-0.5, 0.5)),
      "hyper.weight_decay": float(10 ** rng.uniform(-5, -2)),
      "seed": int(rng.integers(2**31)),
    }
