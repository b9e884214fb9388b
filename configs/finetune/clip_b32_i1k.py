# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP ViT-B/32 on ImageNet from its zero-shot head: the paper's random search.

  soupjax --config=configs/finetune/clip_b32_i1k.py --workdir=runs/b32 --sweep \
    --config.init.path=CLIP

CLIP is a checkpoint with both towers: a folder of transformers or OpenCLIP, or
the state_dict of OpenAI's ViT-B/32 (docs/clip.md). Needs soupjax[clip], and
OpenCLIP for its class names and prompts; to use your own, set
--config.zeroshot.names=FILE and --config.zeroshot.templates=FILE. OpenCLIP
weights without "quickgelu" in their name need --config.model.act=gelu_exact.

Settings are those of arXiv 2203.05482, appendix J: AdamW, batch 512, gradients
clipped at 1, 500 steps of warmup and a cosine, weight decay on all parameters.
As in the released code, features are scaled to length 1 before the head. Its
weights start as the mean embeddings of 80 prompts per class times
exp(logit_scale), its bias at 0. The sweep is the random search of 72 members;
:sweep=seeds trains five seeds of one setting. Neither accuracy nor time was
measured here. Table 3 of the paper reports 80.4 % for the best of 72 and 81.0 %
for the greedy soup, starting from a linear probe or a zero-shot head.

On a laptop, in a minute, from a tiny CLIP with random weights on digits:

  soupjax --config=configs/finetune/clip_b32_i1k.py:runlocal --sweep \
    --workdir=/tmp/b32
"""

from soupjax import config as config_lib
from soupjax.models import pretrained, tiny_clip
from soupjax.tasks.finetune import config as finetune_config


def _parsed(arg):
  return config_lib.parse_arg(arg, runlocal=False, res=224, sweep="random")


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.data.name = "imagenet2012"
  c.data.minival_per_class = 26
  c.data.num_train = 1_281_167 - 26_000
  c.data.image_size = arg.res
  c.data.batch_size = 512
  pixels = 'standardize("clip")'
  small = "resize_small({image_size}, 'bicubic')|central_crop({image_size})|"
  if arg.runlocal:
    small = ""
  c.data.train_ops = (
    "inception_crop({image_size}, {crop_min}, method='bicubic')|flip_lr|"
    "randaug({randaug_layers}, {randaug_magnitude})|" + pixels
  )
  c.data.eval_ops = small + pixels

  c.model.variant = "B/32"
  c.model.update(pretrained.options("openclip"), proj_size=512)
  c.model.normalize = True
  c.model.dtype_mm = "bfloat16"

  c.init.head = "zeroshot"
  c.zeroshot.names = "open_clip:imagenet"
  c.zeroshot.templates = "open_clip:openai"

  c.optimizer.name = "adamw"
  c.optimizer.clip_norm = 1.0
  c.hyper.learning_rate = 3e-5
  c.hyper.weight_decay = 0.1
  c.hyper.total = "10epochs"
  c.hyper.warmup = "500steps"
  c.decay = "."
  if arg.runlocal:
    _runlocal(c)
  return c.lock()


def _runlocal(c):
  c.data.update(
    name="digits", minival="minival", num_classes=10, num_train=0,
    image_size=16, batch_size=20,
  )  # fmt: skip
  c.model.update(variant="mu/4", dtype_mm="float32", proj_size=8)
  c.init.path = tiny_clip.saved()
  c.zeroshot.names = "zero|one|two|three|four|five|six|seven|eight|nine"
  c.zeroshot.templates = "{}|the number {}"
  c.hyper.update(warmup="5steps")
  c.checkpoint, c.log = "20steps", "10steps"


def get_sweep(arg=None):
  arg = _parsed(arg)
  if arg.sweep == "seeds":
    return config_lib.seeds(5)
  if arg.sweep != "random":
    raise ValueError(f"sweep={arg.sweep!r} must be random or seeds.")
  return config_lib.random_search(3 if arg.runlocal else 72)
