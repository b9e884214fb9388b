# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""FLYP: CLIP ViT-B/16 on ImageNet, fine-tuned with its pretraining loss.

  soupjax --config=configs/finetune/flyp.py --workdir=runs/flyp --sweep \
    --config.init.path=CLIP

CLIP is a checkpoint with both towers (docs/clip.md). Both are trained with
CLIP's contrastive loss between images and prompts of their classes (arXiv
2212.00638), and every ingredient is a whole CLIP, evaluated with the head that
its own text tower makes. Needs soupjax[clip], and OpenCLIP for its class names
and prompts; to use your own, set --config.zeroshot.names=FILE and
--config.zeroshot.templates=FILE.

Settings are those of the paper's code: AdamW, learning rate 1e-5, weight decay
0.1, batch 512, 10 epochs, 500 steps of warmup and a cosine, no gradient
clipping. Pairs of different images of one class are not masked, unless :mask is
given. :siglip uses SigLIP's sigmoid loss (arXiv 2303.15343). The sweep varies
learning rate, weight decay, epochs and seed. Neither accuracy nor time was
measured here. The paper reports 82.6 % for ViT-B/16.

On a laptop, in a minute, from a tiny CLIP with random weights on digits:

  soupjax --config=configs/finetune/flyp.py:runlocal --sweep \
    --workdir=/tmp/flyp
"""

import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax.models import tiny_clip
from soupjax.tasks.finetune import config as finetune_config


def _parsed(arg):
  return config_lib.parse_arg(
    arg, runlocal=False, res=224, mask=False, siglip=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.data.name = "imagenet2012"
  c.data.num_train = 1_281_167 - 26_000
  c.data.image_size = arg.res
  c.data.batch_size = 512
  pixels = 'standardize("clip")'
  c.data.train_ops = (
    f"inception_crop({{image_size}}, 90, method='bicubic')|{pixels}"
  )
  c.data.eval_ops = (
    "resize_small({image_size}, 'bicubic')|central_crop({image_size})|" + pixels
  )

  c.recipe = "flyp(mask_same_class=True)" if arg.mask else "flyp"
  c.loss = "sigmoid" if arg.siglip else "softmax"
  c.model.name = "clip"
  c.model.variant = "init"  # Both towers are as in the checkpoint.
  placeholder = ml_collections.config_dict.placeholder
  c.model.image = {"act": placeholder(str)}  # For weights without a config.
  c.model.text = {"act": placeholder(str)}
  c.model.dtype_mm = "bfloat16"
  c.zeroshot.names = "open_clip:imagenet"
  c.zeroshot.templates = "open_clip:openai"

  c.optimizer.clip_norm = 0.0
  c.hyper.learning_rate = 1e-5
  c.hyper.weight_decay = 0.1
  c.hyper.total = "10epochs"
  c.hyper.warmup = "500steps"
  if arg.runlocal:
    _runlocal(c)
  return c.lock()


def _runlocal(c):
  c.data.update(
    name="digits", minival="minival", num_classes=10, num_train=0,
    image_size=16, batch_size=20, eval_ops='standardize("clip")',
  )  # fmt: skip
  c.model.dtype_mm = "float32"
  c.init.path = tiny_clip.saved()
  c.zeroshot.names = "zero|one|two|three|four|five|six|seven|eight|nine"
  c.zeroshot.templates = "{}|the number {}"
  c.hyper.update(learning_rate=1e-3, warmup="5steps", total="40steps")
  c.checkpoint, c.log = "20steps", "10steps"


def get_sweep(arg=None):
  """Draws hyperparameters at random, around those of the paper."""
  arg = _parsed(arg)
  for k in range(2 if arg.runlocal else 8):
    rng = np.random.default_rng([k, 2212])
    rate = 10 ** rng.uniform(-5.5, -4.5)
    total = (
      {} if arg.runlocal else {"hyper.total": f"{rng.integers(4, 11)}epochs"}
    )
    yield {
      "hyper.learning_rate": float(rate) * (100 if arg.runlocal else 1),
      "hyper.weight_decay": float(10 ** rng.uniform(-3, -0.5)),
      "seed": int(rng.integers(2**31)),
      **total,
    }
