# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Cooks soups of ImageNet models and evaluates them as in arXiv 2203.05482.

  soupjax --config=configs/tests/imagenet.py:sweep=runs/b16 \
    --workdir=runs/b16_soups

The sets are ImageNet (validation), the three variants of V2, R, A, Sketch and
ReaL, from TFDS, prepared as array_record (docs/data.md). "shifts" is the mean
over those of V2 (matched frequency), R, Sketch, ObjectNet and A that are used;
with objectnet=FOLDER it is the paper's mean over shifts.

  objectnet=FOLDER   the download with images/ and mappings/: images of the 113
                     classes of the map, without their 2-pixel border
  c=True             ImageNet-C, 75 sets: plain mean and mCE
  folder=FOLDER      folders of class folders instead of TFDS: val,
                     v2_matched, v2_threshold, v2_top, r, a, sketch, and
                     c/fog/3 and so on; ReaL's labels come from timm
  sweep, which, family  as in configs/cook.py

Without sweep, give --config.ingredients; minival is then part of ImageNet's
train split. In your own config, `del c.tests.v2_top` leaves out a set.

One evaluation of ViT-B/16 reads 218,000 images, 3.9 million more with c=True.
"""

import os

from soupjax.config import parse_arg
from soupjax.evaluators import label_spaces
from soupjax.tasks.cook import config as cook_config

_TFDS = {
  "test": "imagenet2012/validation",
  "v2": "imagenet_v2/matched-frequency/test",
  "v2_threshold": "imagenet_v2/threshold-0.7/test",
  "v2_top": "imagenet_v2/topimages/test",
  "r": "imagenet_r/test",
  "sketch": "imagenet_sketch/test",
  "a": "imagenet_a/test",
  "real": "imagenet2012_real/validation",
}
_FOLDERS = {
  "test": "val",
  "v2": "v2_matched",
  "v2_threshold": "v2_threshold",
  "v2_top": "v2_top",
  "r": "r",
  "sketch": "sketch",
  "a": "a",
  "real": "val:labels=real",
}


def _place(folder: str, path: str) -> str:
  """Returns the name of the test set in a folder of class folders."""
  path, colon, options = path.partition(":")
  return f"folder:{os.path.join(folder, path)}/all{colon}{options}"


def get_config(arg=None):
  arg = parse_arg(
    arg, sweep="", which="last", family="", folder="", objectnet="", c=False
  )
  c = cook_config.default_config()
  c.data.name = f"folder:{arg.folder}" if arg.folder else "imagenet2012"
  if arg.sweep:
    cook_config.of_sweep(c, arg.sweep, arg.which)
  c.family = arg.family
  c.tests = type(c.tests)(
    {name: _place(arg.folder, path) for name, path in _FOLDERS.items()}
    if arg.folder
    else _TFDS
  )
  if arg.objectnet:
    c.tests.objectnet = {
      "split": _place(arg.objectnet, "images"),
      "map": os.path.join(arg.objectnet, "mappings"),
      "ops": "crop_border(2)",
    }
  if arg.c:
    for name in label_spaces.ALEXNET:
      for severity in range(1, 6):
        c.tests[f"c_{name}_{severity}"] = (
          _place(arg.folder, f"c/{name}/{severity}")
          if arg.folder
          else f"imagenet2012_corrupted/{name}_{severity}/validation"
        )
    c.means.c = "c_*"
  shifts = ("v2", "r", "sketch", "objectnet", "a")
  c.means.shifts = "+".join(name for name in shifts if name in c.tests)
  return c.lock()
