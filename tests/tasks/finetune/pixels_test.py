# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models are trained on the pixels on which they are evaluated."""

import json

import helpers
import pytest

from soupjax import config as config_lib
from soupjax.tasks.finetune import dry_run, pixels, run

CONFIG = str(helpers.ROOT / "configs" / "finetune" / "digits.py")
FLOATS = "random_crop({image_size}, 2)|value_range(-1, 1)"


def config_of(**changes):
  values = {f"data.{k}": v for k, v in changes.items()}
  return config_lib.load(CONFIG, "pretrain", **values)


@pytest.mark.parametrize(
  "train_ops, batch_ops, eval_ops",
  [
    (FLOATS, "", "value_range"),
    ("flip_lr|randaug(2, 9)|standardize", "mixup({mixup})", "standardize"),
    # On the device.
    ("random_crop(16, 2)", "value_range(-1, 1)|flip_lr", "value_range"),
    ("", "affine(9, 1, 0, 0)|value_range(0, 1)", "value_range(0, 1)"),
    # A model from scratch may take any range.
    ("random_crop(16, 2)", "", ""),
    ("flip_lr|value_range(0, 255)", "", "resize(16)"),
    ('standardize("imagenet")', "", "standardize((.485,.456,.406),"
     "(.229, .224, .225))"),
  ],
)  # fmt: skip
def test_ranges_that_are_equal(train_ops, batch_ops, eval_ops):
  changes = {"train_ops": train_ops, "batch_ops": batch_ops}
  pixels.check(config_of(**changes, eval_ops=eval_ops))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"train_ops": "random_crop({image_size}, 2)"}, "0..255.*-1..1"),
    ({"train_ops": "flip_lr", "batch_ops": "flip_lr"}, "0..255.*-1..1"),
    ({"train_ops": FLOATS, "eval_ops": "resize(16)"}, "-1..1.*0..255"),
    ({"train_ops": "value_range(0, 1)"}, "0..1.*-1..1"),
    (
      {"train_ops": "standardize", "eval_ops": 'standardize("imagenet")'},
      r"-1.792, -1.752, -1.48.*\(-2.118",
    ),
    (
      {"train_ops": "flip_lr", "batch_ops": "value_range(0, 1)"},
      "0..1.*-1..1",
    ),
    ({"train_ops": FLOATS, "batch_ops": "value_range"}, "applied already"),
    ({"train_ops": "resize(14)|value_range"}, r"\(14, 14, 3\).*\(16, 16, 3\)"),
  ],
)
def test_ranges_and_shapes_that_differ(changes, message, tmp_path):
  config = config_of(**changes)
  with pytest.raises(ValueError, match=f"(?s){message}"):
    dry_run.plan(config, None)
  with pytest.raises(ValueError, match=f"(?s){message}"):
    run.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_member_of_a_sweep_is_checked_too():
  sweep = [{}, {"data.train_ops": "flip_lr"}]
  with pytest.raises(ValueError, match="member_001.*0..255.*-1..1"):
    dry_run.plan(config_of(), sweep)


def test_an_operation_of_ones_own_may_convert(tmp_path, monkeypatch):
  (tmp_path / "pixels_for_test2.py").write_text(
    "def scale(images, by):\n  return images / 127.5 - 1 - by\n"
    "def floats(image):\n"
    "  import numpy as np\n  return np.asarray(image)[..., :1] / 127.5 - 1\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  for by in ("{mixup}", "0.1"):
    pixels.check(
      config_of(train_ops="flip_lr", batch_ops=f"pixels_for_test2.scale({by})")
    )
  with pytest.raises(ValueError, match="-2..0"):
    pixels.check(
      config_of(train_ops="flip_lr", batch_ops="pixels_for_test2.scale(1)")
    )
  with pytest.raises(ValueError, match="of 1 channels.*of 3"):
    pixels.check(config_of(train_ops="pixels_for_test2.floats"))


def test_the_size_of_the_model_is_that_of_the_images(tmp_path):
  config = config_of(image_size=12, train_ops="value_range")
  with pytest.raises(ValueError, match=r"\(16, 16, 3\).*data.image_size=12"):
    run.run(config, tmp_path / "run")


def test_pixels_are_those_of_the_weights_to_start_from(tmp_path):
  content = {
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
  }
  start = tmp_path / "start" / "model.safetensors"
  start.parent.mkdir()
  start.touch()
  file = start.with_name("preprocessor_config.json")
  file.write_text(json.dumps(content))
  wrong = config_lib.updated(config_of(), {"init.path": str(start)})
  right = config_lib.updated(
    wrong,
    {
      "data.train_ops": 'standardize("imagenet")',
      "data.eval_ops": 'standardize("imagenet")',
    },
  )
  pixels.check(right)
  with pytest.raises(ValueError, match=r'start/.*standardize\("imagenet"\)'):
    dry_run.plan(wrong, None)
  file.write_text(json.dumps({**content, "do_flip_channel_order": True}))
  with pytest.raises(ValueError, match="do_flip_channel_order"):
    pixels.check(right)


def test_pixels_are_those_of_a_run_of_ours(tmp_path):
  start = tmp_path / "ingredients" / "last"
  start.mkdir(parents=True)
  record = {"task": "finetune", "data": {"eval_ops": "resize(4)|standardize"}}
  (tmp_path / "config.json").write_text(json.dumps(record))
  with pytest.raises(ValueError, match="ingredients/last.*standardize"):
    pixels.check(config_lib.updated(config_of(), {"init.path": str(start)}))
