# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings that cannot work with a recipe."""

import helpers
import jax
import numpy as np
import pytest

from soupjax import config as config_lib
from soupjax.models import pretrained, tiny_clip
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import objective, step
from soupjax.train import recipes

CONFIGS = helpers.ROOT / "configs/finetune"


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory):
  """Keeps the tiny CLIP of :runlocal out of the common folder."""
  with pytest.MonkeyPatch.context() as patch:
    folder = str(tmp_path_factory.mktemp("clip"))
    patch.setattr(tiny_clip.tempfile, "gettempdir", lambda: folder)
    yield


def resolved(name, changes=(), arg="runlocal"):
  config = config_lib.load(CONFIGS / f"{name}.py", arg, **dict(changes))
  return settings.with_model_of_start(config)


@pytest.mark.parametrize(
  "name, arg",
  [
    ("flyp", "runlocal"),
    ("flyp", "runlocal,siglip,mask"),
    ("lit", "runlocal"),
    ("lit", "runlocal,tuned,siglip"),
    ("car_ft", "runlocal"),
  ],
)
def test_configs_of_recipes_can_work(name, arg):
  settings.check(resolved(name, arg=arg))


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("flyp", {"data.batch_size": 1}, "data.batch_size=1"),
    ("flyp", {"data.num_classes": 1}, "data.num_classes=1"),
    ("flyp", {"hyper.mixup": 0.2}, "data.batch_ops has mixup.*hyper.mixup=0"),
    ("flyp", {"hyper.label_smoothing": 0.1}, "hyper.label_smoothing.*got 0.1"),
    ("flyp", {"accumulate": 2}, "accumulate=1, got 2"),
    ("flyp", {"probe.total": "9steps"}, "probe.total='0steps'"),
    ("flyp", {"adapter.kind": "lora"}, "adapter.kind='', got 'lora'"),
    ("flyp", {"init.head": "zeroshot"}, "init.head='auto', got 'zeroshot'"),
    ("flyp", {"zeroshot.templates": ""}, "zeroshot.templates=''"),
    ("flyp", {"zeroshot.templates": "number"}, "zeroshot.templates='number'"),
    ("flyp", {"loss": "hinge"}, "'hinge'.*sigmoid, softmax"),
    ("flyp", {"recipe": "flip"}, "'flip'.*'flyp'"),
    ("flyp", {"recipe": "plain"}, "model.name='clip' needs.*'plain'"),
    ("flyp", {"hyper.context": 1.0}, "hyper.context=1 needs.*'flyp'"),
    ("flyp", {"init.text": "none"}, "init.text.*got 'none'"),
    ("clip_b32_i1k", {"recipe": "flyp"}, "model.name='clip'"),
    ("lit", {"hyper.erasing": 0.2}, "erasing.*hyper.erasing=0"),
    ("lit", {"data.train_ops": "flip_lr|value_range(-1, 1)"}, "flip_lr"),
    ("lit", {"data.in_memory": False}, "data.in_memory unset"),
    ("car_ft", {"zeroshot.templates": "a {}"}, "zeroshot.templates='a {}' has"),
    ("car_ft", {"init.head": "new"}, "needs init.head='zeroshot'"),
  ],
)
def test_settings_that_a_recipe_excludes_are_named(name, changes, message):
  with pytest.raises(ValueError, match=message):
    settings.check(resolved(name, changes))


def test_a_vision_tower_alone_is_not_enough(tmp_path):
  config = helpers.finetune_config()
  model = settings.build_model(config)
  start = tmp_path / "vit.npz"
  shapes = step.abstract_params(config, model)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  pretrained.save_exported(start, params, model, "big_vision")
  with pytest.raises(ValueError, match="vit.npz has an image tower only"):
    resolved("flyp", {"init.path": str(start)})
  # LiT makes a new text tower.
  lit = resolved("lit", {"init.path": str(start)})
  assert lit.model.text.proj_size == lit.model.image.width == 16


def test_a_weight_of_0_is_the_plain_recipe():
  config = resolved("car_ft", {"hyper.context": 0.0})
  assert objective.recipe_of(config) is recipes.PLAIN
  assert objective.recipe_of(resolved("car_ft")).weight == "context"
