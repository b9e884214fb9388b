# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that train a whole CLIP, or keep its contexts."""

import collections

import chex
import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import data, sharding
from soupjax.models import CLIP, pretrained, tiny_clip, tokens, zeroshot
from soupjax.tasks import estimate
from soupjax.tasks.cook import evaluate, inputs
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import job, needs, step, towers
from soupjax.tasks.finetune import run as finetune_run

for _package in ("tokenizers", "ftfy"):
  pytest.importorskip(_package, reason="needs pip install soupjax[clip]")

CONFIGS = helpers.ROOT / "configs/finetune"
SHORT = {
  "data.batch_size": 16,
  "data.eval_batch_size": 160,
  "data.train": "train[:96]",
  "hyper.total": "6steps",
  "hyper.warmup": "1steps",
  "checkpoint": "2steps",
  "log": "1steps",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clip")
  tiny_clip.save(folder)
  return folder


def config_of(name, clip, arg="runlocal", **changes):
  changes = {**SHORT, "init.path": str(clip), **changes}
  return config_lib.load(CONFIGS / f"{name}.py", arg, **changes)


@pytest.fixture(scope="module")
def flyp(clip, tmp_path_factory):
  folder = tmp_path_factory.mktemp("flyp")
  finetune_run.run(config_of("flyp", clip, **{"hyper.ema": (0.9,)}), folder)
  return folder


def test_an_ingredient_is_a_clip_with_a_head_of_its_own(clip, flyp):
  last = sj.open_ingredient(flyp / "ingredients" / "last")
  params, start = last.load(), sj.load_params(flyp / "initial")
  model = CLIP(**pretrained.detect(clip, text=True).options)
  chex.assert_trees_all_equal(start, pretrained.load_pretrained(clip, model))
  for name in ("img", "txt"):
    assert last.hyperparameters["recipe"] == "flyp"
    before, after = map(helpers.flat_leaves, (start[name], params[name]))
    assert all(np.any(before[k] != after[k]) for k in before)
  averaged = sj.load_params(flyp / "ingredients" / "last_ema_0.9")
  assert averaged["t"] != params["t"]

  record = sj.files.read_json(flyp / "initial" / "zeroshot.json")
  tokenizer = tokens.open_tokenizer(clip, context_length=32)
  kernel = zeroshot.zeroshot_head(
    model, params, record["names"], record["templates"], tokenizer
  )
  minival = data.open_source("digits", "minival")
  (batch,) = data.eval_batches(
    minival, batch_size=len(minival), preprocess='standardize("clip")'
  )
  zimg = model.apply({"params": params}, batch["images"], method="embed_images")
  right = (zimg @ kernel).argmax(axis=1) == batch["labels"]
  accuracy = last.metrics["minival/prec@1"]
  assert accuracy == pytest.approx(right.mean())


def run_stopped_once(config, folder, steps, monkeypatch):
  """Runs; stops before a step, and starts again."""
  compile_step = step.compile_step
  calls = []

  def stopping(*args, **kwargs):
    compiled = compile_step(*args, **kwargs)

    def stopped(*args):
      if len(calls) == steps:
        raise KeyboardInterrupt
      calls.append(None)
      return compiled.step(*args)

    return step.dataclasses.replace(compiled, step=stopped)

  monkeypatch.setattr(step, "compile_step", stopping)
  with pytest.raises(KeyboardInterrupt):
    finetune_run.run(config, folder)
  monkeypatch.undo()
  assert (folder / "state_00000004").exists()
  finetune_run.run(config, folder)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
  clip, flyp, tmp_path, monkeypatch
):
  config = config_of("flyp", clip, **{"hyper.ema": (0.9,)})
  run_stopped_once(config, tmp_path, 5, monkeypatch)
  for name in ("last", "last_ema_0.9"):
    chex.assert_trees_all_equal(
      *(sj.load_params(run / "ingredients" / name) for run in (flyp, tmp_path))
    )


def test_a_run_on_shards_that_was_stopped_ends_with_the_same_bits(
  clip, tmp_path, monkeypatch
):
  """In its second epoch of 20 images with captions, after 4 steps of 8."""
  texts = [f"a {'cat' * (k % 3)} {chr(97 + k)}" for k in range(23)]
  for shard, numbers in {
    "train-000000": range(12), "train-000001": range(12, 20),
    "val-000000": range(20, 23),
  }.items():  # fmt: skip
    folder = tmp_path / shard
    folder.mkdir()
    for k in numbers:
      (folder / f"{k:02d}.jpg").write_bytes(helpers.encoded_image(k))
      (folder / f"{k:02d}.txt").write_text(texts[k])
      (folder / f"{k:02d}.cls").write_text(str(k % 10))
    (tmp_path / "shards").mkdir(exist_ok=True)
    helpers.write_tar(tmp_path / "shards" / f"{shard}.tar", folder)
  ops = "resize(16)|standardize('clip')"
  changes = {
    "data.name": f"wds:{tmp_path}/shards",
    "data.train": "train",
    "data.minival": "val",
    "data.batch_size": 8,
    "data.eval_batch_size": 8,
    "data.train_ops": f"flip_lr|{ops}",
    "data.eval_ops": ops,
  }
  config = config_of("flyp", clip, **changes)
  finetune_run.run(config, tmp_path / "whole")
  run_stopped_once(config, tmp_path / "stopped", 5, monkeypatch)
  whole, stopped = (
    sj.load_params(tmp_path / name / "ingredients" / "last")
    for name in ("whole", "stopped")
  )
  chex.assert_trees_all_equal(whole, stopped)
  start = sj.load_params(tmp_path / "whole" / "initial")
  assert np.any(
    start["txt"]["proj"]["kernel"] != whole["txt"]["proj"]["kernel"]
  )


def stepped(config, count, params, batch, prompts, steps=2, **arrays):
  """Takes steps on a number of devices; returns parameters and losses."""
  mesh = sharding.make_mesh({"data": count}, jax.devices()[:count])
  model = settings.build_model(config)
  off = settings.off([config])
  compiled = step.compile_step(config, model, mesh, params, off=off)
  hyper, key = compiled.ready(settings.hyper(config, 96), np.uint32(0))
  everywhere = sharding.replicated(mesh)
  arrays = jax.device_put({"prompts": prompts, **arrays}, everywhere)
  start = jax.device_put(params, everywhere)
  shared = step.shared_of(config, False, start, arrays)
  batch = sharding.put_batch(mesh, batch, (None, "data"))
  state, losses = compiled.begin(params), []
  for _ in range(steps):
    state, metrics = compiled.step(state, batch, key, hyper, shared)
    losses.append(float(metrics["loss"][0]))
  return jax.device_get(state.params), losses


def batch_of(shape=(16, 16, 3)):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(1, 16, *shape)).astype(np.float32)
  return {"images": images, "labels": rng.integers(0, 10, (1, 16))}


@pytest.mark.parametrize("arg", ["runlocal", "runlocal,siglip,mask"])
def test_two_devices_compare_the_whole_batch(clip, arg):
  config = config_of("flyp", clip, arg, **{"optimizer.name": "sgd"})
  config = settings.with_model_of_start(config)
  prompts = np.random.default_rng(1).integers(0, 50, (10, 2, 8))
  args = tiny_clip.params(), batch_of(), prompts.astype(np.int32)
  chex.assert_trees_all_close(
    *(stepped(config, count, *args) for count in (1, 2)), atol=1e-5, rtol=1e-5
  )


def test_an_image_is_embedded_once_for_all_members(clip, tmp_path, monkeypatch):
  reads, sets = collections.Counter(), []
  read, embedded = data.Source.__getitem__, towers.embedded

  def counted(self, index):
    reads[self.name, index] += 1
    return read(self, index)

  def kept(*args):
    reads.clear()
    sets.append(embedded(*args))
    return sets[-1]

  monkeypatch.setattr(data.Source, "__getitem__", counted)
  monkeypatch.setattr(towers, "embedded", kept)
  finetune_run.run(
    config_of("lit", clip),
    tmp_path,
    sweep=[{"seed": 0}, {"seed": 1, "hyper.learning_rate": 1e-3}],
  )
  (held,) = sets
  train = {k: n for k, n in reads.items() if k[0] == held.name}
  # The first image also tells the shape of all.
  assert len(train) == 96 and sum(train.values()) == 97
  start = sj.load_params(tmp_path / "initial")
  ours = [
    sj.load_params(tmp_path / f"member_00{k}/ingredients/last") for k in (0, 1)
  ]
  for params in ours:
    chex.assert_trees_all_equal(params["img"], start["img"])
    assert np.any(
      params["txt"]["proj"]["kernel"] != start["txt"]["proj"]["kernel"]
    )
  assert np.any(ours[0]["t"] != ours[1]["t"])
  # The tower of the checkpoint, and a new one beside it.
  whole = tiny_clip.params()
  chex.assert_trees_all_close(
    start["img"]["proj"], whole["img"]["proj"], atol=0
  )
  image = data.open_source("digits", "train")[3]["image"]
  pixels = data.Preprocess('standardize("clip")')(image)
  z = tiny_clip.model().apply(
    {"params": whole}, pixels[None], method="embed_images"
  )
  np.testing.assert_allclose(held.images[3], z[0], atol=1e-5)

  # In cooking, the settings of both towers are those of the sweep.
  opened = inputs.open_inputs(helpers.cook_config(tmp_path, tests=""))
  assert opened.config.initial_head == ""  # Its text tower is new.
  evaluations = evaluate.Evaluations(opened, tmp_path / "cook")
  ingredient = opened.ingredients[1]
  found = evaluations.evaluate("member", ingredient.load)["minival"]["prec@1"]
  assert found == pytest.approx(ingredient.metrics["minival/prec@1"])


def test_context_0_is_plain_and_at_the_start_contexts_are_equal(clip):
  def run(recipe, context):
    changes = {"recipe": recipe, "hyper.context": context}
    config = config_of("car_ft", clip, **changes)
    model = settings.build_model(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32),
      step.abstract_params(config, model),
    )
    kernel = 9 * rng.normal(size=(8, 3)).astype(np.float32)
    return stepped(config, 1, params, batch_of(), None, 3, context=kernel)

  plain, losses = run("plain", 0.0)
  zero, same = run("car_ft", 0.0)
  chex.assert_trees_all_equal(plain, zero)
  assert losses == same
  # The first step is plain, as the divergence has its minimum at the start; in
  # the second it moves the tower, and thereby the head in the third.
  held, regular = run("car_ft", 5.0)
  assert regular[0] == pytest.approx(losses[0], abs=1e-6)
  assert regular[1] > losses[1] + 1e-4
  assert np.any(held["head"]["kernel"] != plain["head"]["kernel"])


def test_contexts_are_means_over_classes(clip, tmp_path):
  config = config_of("car_ft", clip, **{"hyper.total": "1steps"})
  config.unlock().hyper.warmup = "0steps"
  finetune_run.run(config.lock(), tmp_path)
  weights = sj.files.read_json(tmp_path / "initial" / "context.json")
  model, params = tiny_clip.model(), tiny_clip.params()
  tokenizer = tokens.open_tokenizer(clip, context_length=32)
  for k, template in enumerate(("{}", "the number {}")):
    texts = [template.format(n) for n in config.zeroshot.names.split("|")]
    z = model.apply({"params": params}, tokenizer(texts), method="embed_texts")
    mean = z.mean(axis=0) / np.linalg.norm(z.mean(axis=0))
    expected = np.exp(params["t"]) * mean
    np.testing.assert_allclose(np.array(weights)[:, k], expected, atol=1e-4)


def test_captions_take_the_place_of_prompts(clip, tmp_path):
  place = tmp_path / "photos"
  helpers.write_image_folder(place, {"a": 4})
  texts = ["a cab", "an ace", "a cab", "a bed"]
  for name, column in (("train", "caption"), ("val", "label")):
    rows = [f"a/{k:02d}.jpg,{text}" for k, text in enumerate(texts)]
    text = "\n".join([f"path,{column}", *rows])
    (place / f"{name}.csv").write_text(text)
  changes = {
    "data.name": f"csv:{place}",
    "data.train": "train",
    "data.minival": "val",
    "data.num_classes": 3,
    "data.batch_size": 8,
    "data.eval_batch_size": 8,
    "data.train_ops": "resize(16)|standardize('clip')",
    "data.eval_ops": "resize(16)|standardize('clip')",
    "zeroshot.names": "",
  }
  config = config_of("flyp", clip, **changes)
  config = settings.with_model_of_start(config)
  members = finetune_run.members_of(config, tmp_path, None)
  opened = job.open_job(config, members, tmp_path)
  # In order of their first use; the names are in that of the alphabet.
  assert [opened.train.label(k) for k in range(4)] == [0, 1, 0, 2]
  tokenizer = tokens.open_tokenizer(clip, context_length=32)
  expected = tokenizer(["a cab", "an ace", "a bed"])
  found = np.asarray(opened.shared["prompts"])
  assert found.shape[:2] == (3, 1)
  np.testing.assert_array_equal(found[:, 0], expected[:, : found.shape[2]])
  names = sj.files.read_json(tmp_path / "initial" / "zeroshot.json")["names"]
  assert names == ["a bed", "a cab", "an ace"]
  assert opened.prompts.shape[:2] == (3, 2)
  with pytest.raises(ValueError, match="train.csv, line 2.*no class"):
    changes = {"data.train": "val", "data.minival": "train[:1]"}
    plain = config_lib.updated(config, changes, what="The test")
    job.open_job(plain, members, tmp_path / "other")


def test_tokens_of_captions_are_in_the_estimate(clip, tmp_path, monkeypatch):
  monkeypatch.setattr(estimate, "can_compile", lambda *_: False)
  changes = {"data.name": f"csv:{tmp_path}", "data.num_train": 10**6}
  config = config_of("flyp", clip, **changes)
  model = settings.build_model(settings.with_model_of_start(config))
  assert towers.prompt_shape(config, model) == (10**6, 1, 32)
  needed = needs.needs(config, None, None, str(tmp_path))
  assert needed.host["tokens"] == 4 * 32 * 10**6
  config = config_of("flyp", clip, **{**changes, "data.num_train": 0})
  needed = needs.needs(config, None, None, str(tmp_path))
  assert needed.host["tokens"] == 4 * 32 * 20  # Of 10 classes, 2 prompts.
  assert any("captions: data.num_train" in note for note in needed.notes)


def test_labels_that_are_alike_are_named(clip):
  config = config_of("flyp", clip)
  images = np.zeros((4, 2, 2, 3), np.uint8)
  alike = data.from_dataset(data.Dataset("ones", images, np.ones(4, int)), 10)
  with pytest.raises(ValueError, match="4 labels of ones.*all are 1"):
    towers.check_labels(config, alike)
