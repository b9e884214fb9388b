# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10's config on tars of fake images; the images of its benchmark."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.tasks.finetune import job
from soupjax.tasks.finetune import run as finetune

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "finetune" / "cifar10.py")
FOLDER = str(ROOT / "benchmarks" / "evidence")
sys.path.insert(0, FOLDER)
cifar10 = importlib.import_module("cifar10")
importlib.import_module("hybrid_vit")
sys.path.remove(FOLDER)

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


def source():
  dataset = sj.data.Dataset("fake", PIXELS, np.arange(20) % 10)
  return sj.data.from_dataset(dataset, 10)


@pytest.mark.parametrize("pretrain", [True, False])
def test_the_config_reads_tar_files(tmp_path, pretrain):
  for split in ("train", "minival"):
    path = tmp_path / f"{split}.tar"
    cifar10.write_tar(path, source(), lambda image, rng: image)
  arg = f"images={tmp_path},seed=3" + ",pretrain" * pretrain
  config = config_lib.load(
    CONFIG, arg, **{"data.train": "train", "data.minival": "minival"}
  )
  train, minival = job.open_data(config)
  assert len(train) == len(minival) == 20
  assert sorted(train.label(i) for i in range(20)) == sorted([*range(10)] * 2)
  decode = sj.data.Preprocess("")
  images = [np.asarray(decode(train[i]["image"])) for i in range(20)]
  assert {x.tobytes() for x in images} == {x.tobytes() for x in PIXELS}
  if pretrain:
    with pytest.raises(ValueError, match="yields nothing"):
      config_lib.load_sweep(CONFIG, arg)
  else:
    sweep = config_lib.load_sweep(CONFIG, arg)
    assert len(finetune.members_of(config, tmp_path, sweep)) == 16


def test_tfds_without_images():
  config = config_lib.load(CONFIG)
  assert config.data.name == "cifar10" and config.data.in_memory


def test_the_camera_lowers_contrast_and_adds_noise():
  black, white = (
    cifar10.Setting().camera(
      np.full((64, 64, 3), v, np.uint8), np.random.default_rng(0)
    )
    for v in (0, 255)
  )
  assert black.dtype == np.uint8
  assert black.mean() == pytest.approx(127.5 * 0.3, abs=1)
  assert white.mean() == pytest.approx(127.5 * 1.7, abs=1)
  assert black.std() == pytest.approx(15, abs=1)


def test_a_camera_without_colours_or_details():
  image = np.zeros((32, 32, 3), np.uint8)
  image[:, 16:] = 30, 60, 90
  rng = np.random.default_rng(0)
  seen = cifar10.Setting(contrast=1, noise=0, grey=True).camera(image, rng)
  assert (seen[:, :16] == 0).all() and (seen[:, 16:] == 60).all()
  setting = cifar10.Setting(contrast=1, noise=0, blur=1, grey=True)
  edge = setting.camera(image, rng)[0, 14:18, 0].astype(int)
  assert 0 < edge[0] and (np.diff(edge) > 0).all() and edge[-1] < 60


def test_corruptions_come_before_the_camera():
  setting = cifar10.SETTINGS["mild"]
  seen = setting.camera(PIXELS[0], np.random.default_rng(0))
  changed = setting.corrupted("fog")(PIXELS[0], np.random.default_rng(0))
  assert changed.shape == (32, 32, 3) and (changed != seen).any()


def test_the_hybrid_is_a_model_of_the_config():
  config = config_lib.load(CONFIG, "hybrid")
  hybrid_vit = importlib.import_module("hybrid_vit")
  model = hybrid_vit.HybridViT(
    10, patch_size=config.model.patch_size, width=16, depth=1, num_heads=2
  )
  images = np.zeros((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  assert shapes["pos_embedding"].shape == (1, 16, 16)
  assert config.model.name == "hybrid_vit.HybridViT"
