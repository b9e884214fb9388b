# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""ViT-B/16 on ImageNet: the paper's random search, from any pretrained ViT.

  soupjax --config=configs/finetune/vit_b16_i1k.py --workdir=runs/b16 --sweep \
    --config.init.path=CHECKPOINT

CHECKPOINT is AugReg's ViT-B/16 of ImageNet-21k (.npz), for which OpenCV resizes
the images (pip install 'soupjax[opencv]'), or with :clip the vision tower of
CLIP; docs/pretrained.md has these and others. Settings are those of arXiv
2203.05482, appendix J: AdamW, batch 512, gradients clipped at 1, 500 steps of
warmup and a cosine, weight decay on all parameters; the head is fitted first
(LP-FT). The sweep is the random search of 72 members; :sweep=standard and
:sweep=extreme are the grids, :sweep=seeds five seeds of one setting. In a job
array, each task trains one member:

  soupjax --config=configs/finetune/vit_b16_i1k.py --workdir=runs/b16 \
    --config.init.path=CHECKPOINT --sweep_index=$SLURM_ARRAY_TASK_ID

Table 3 of the paper, for CLIP ViT-B/32: 80.4 % for the best of 72, 81.0 % for
the greedy soup. Neither that nor the time was measured here. On a laptop, in a
minute, a tiny ViT on digits:

  soupjax --config=configs/finetune/vit_b16_i1k.py:runlocal --sweep \
    --workdir=/tmp/b16
"""

from soupjax import config as config_lib
from soupjax.models import pretrained
from soupjax.tasks.finetune import config as finetune_config


def _parsed(arg):
  return config_lib.parse_arg(
    arg, runlocal=False, res=224, clip=False, sweep="random"
  )


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.data.name = "imagenet2012"
  c.data.minival_per_class = 26
  c.data.num_train = 1_281_167 - 26_000
  c.data.image_size = arg.res
  c.data.batch_size = 512
  c.data.train_ops, c.data.eval_ops = _ops(arg)

  c.model.variant = "B/16"
  c.model.pool_type = "tok"
  c.model.dtype_mm = "bfloat16"
  if arg.clip:
    c.model.update(pretrained.options("openclip"), proj_size=512)

  c.probe.total = "200steps"
  c.probe.max_examples = 200_000

  c.optimizer.name = "adamw"
  c.optimizer.clip_norm = 1.0
  c.hyper.learning_rate = 2e-5
  c.hyper.weight_decay = 0.1
  c.hyper.total = "10epochs"
  c.hyper.warmup = "500steps"
  c.decay = "."
  if arg.runlocal:
    _runlocal(c)
  return c.lock()


def _ops(arg):
  """Returns the preprocessing of training and evaluation, as in pretraining."""
  # AugReg resized without antialiasing, as OpenCV's "linear" does, and fast.
  method, pixels = "linear", "value_range(-1, 1)"
  if arg.clip:
    method, pixels = "bicubic", 'standardize("clip")'
  # Rounds fractions of a pixel as the code that trained the weights does.
  like = "" if arg.clip else ", 'big_vision'"
  small = (
    f"resize_small({{image_size}}, {method!r}{like})|"
    f"central_crop({{image_size}}{like})|"
  )
  if arg.runlocal:  # Digits are already small, and this needs no OpenCV.
    method, small = "bilinear", ""
  return (
    f"inception_crop({{image_size}}, {{crop_min}}, method={method!r})|flip_lr|"
    f"randaug({{randaug_layers}}, {{randaug_magnitude}})|{pixels}",
    small + pixels,
  )


def _runlocal(c):
  c.data.update(
    name="digits", minival="minival", num_classes=10, num_train=0,
    image_size=16, batch_size=20,
  )  # fmt: skip
  c.model.update(variant="mu/4", dtype_mm="float32")
  c.hyper.update(warmup="5steps")
  c.checkpoint, c.log = "20steps", "10steps"


def get_sweep(arg=None):
  arg = _parsed(arg)
  if arg.sweep == "standard":
    return config_lib.standard_grid()
  if arg.sweep == "extreme":
    return config_lib.extreme_grid()
  if arg.sweep == "seeds":
    return config_lib.seeds(5)
  if arg.sweep != "random":
    raise ValueError(
      f"sweep={arg.sweep!r} must be random, standard, extreme or seeds."
    )
  return config_lib.random_search(3 if arg.runlocal else 72)
