# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of whole CLIPs, and classes that no ingredient saw."""

import io
import json
import logging

import helpers
import jax
import numpy as np
import PIL.Image
import pytest

from soupjax import config as config_lib
from soupjax import data
from soupjax.models import CLIP, pretrained, tiny_clip, tokens, zeroshot
from soupjax.tasks.cook import run as cook

for _package in ("tokenizers", "ftfy"):
  pytest.importorskip(_package, reason="needs pip install soupjax[clip]")

NAMES, UNSEEN = ("ant", "yellow cow", "zebra"), ("fox", "red owl")
TEMPLATES = ("{}", "a {} at sea")
OPS = 'resize(16)|standardize("clip")'


def write_images(path, names, seed, count=8):
  rng = np.random.default_rng(seed)
  for name in names:
    (path / name).mkdir(parents=True)
    for k in range(count):
      # Of one colour each, so that models tell them apart.
      pixels = rng.integers(0, 256, (1, 1, 3), np.uint8)
      image = PIL.Image.fromarray(np.tile(pixels, (16, 16, 1)))
      image.save(path / name / f"{k}.png")


def write_clip(path, seed):
  """Writes a tiny CLIP whose embeddings depend more on the image."""
  tiny_clip.save(path, seed)
  params = tiny_clip.params(seed)
  tower = params["img"]
  tower["cls"] *= 0
  tower["pos_embedding"] *= 0.1
  tower["embedding"]["kernel"] *= 10
  block = tower["Transformer"]["encoderblock_0"]
  block["MultiHeadDotProductAttention_0"]["out"]["kernel"] *= 20
  pretrained.save_exported(
    path / "open_clip_model.safetensors",
    params,
    tiny_clip.model(),
    "openclip",
    overwrite=True,
  )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Three CLIPs and a start, in the names of OpenCLIP, and images."""
  place = tmp_path_factory.mktemp("clips")
  for k in range(3):
    write_clip(place / f"runs/{k}", k)
  write_clip(place / "start", 9)
  write_images(place / "photos/val", NAMES, 0)
  write_images(place / "photos/test", NAMES, 1)
  write_images(place / "others/all", UNSEEN, 2)
  return place


def config_of(place, **changes):
  values = {
    "ingredients": f"{place}/runs/*",
    "initial": f"{place}/start",
    "data.name": f"folder:{place}/photos",
    "data.minival": "val",
    "data.eval_ops": OPS,
    "data.batch_size": 32,
    "tests": f"test=test,unseen=folder:{place}/others/all:names=own",
    "zeroshot.templates": "|".join(TEMPLATES),
    "cook.metric": "loss",
    "cook.learned.steps": 2,
    "cook.learned.batch_size": 8,
    "cook.wise_ft_points": 3,
    **changes,
  }
  return config_lib.load(str(helpers.ROOT / "configs/cook.py"), **values)


@pytest.fixture(scope="module")
def cooked(place):
  log = []
  handler = logging.Handler()
  handler.emit = lambda record: log.append(record.getMessage())
  logger = logging.getLogger("jax._src.interpreters.pxla")
  logger.addHandler(handler)
  try:
    with jax.log_compiles():
      cook.run(config_of(place), place / "soups")
  finally:
    logger.removeHandler(handler)
  return place / "soups", log


def right_of(path, folder, names):
  """Whether both towers of a checkpoint classify each image correctly."""
  model = CLIP(**pretrained.detect(path, text=True).options)
  params = pretrained.load_pretrained(path, model)
  tokenizer = tokens.open_tokenizer(path, context_length=32)
  kernel = zeroshot.zeroshot_head(model, params, names, TEMPLATES, tokenizer)
  source = data.open_source(f"folder:{folder.parent}", folder.name)
  examples = [source[k] for k in range(len(source))]
  mean = np.array([0.48145466, 0.4578275, 0.40821073])
  std = np.array([0.26862954, 0.26130258, 0.27577711])
  images = [PIL.Image.open(io.BytesIO(e["image"])) for e in examples]
  x = np.stack([np.asarray(image, np.float32) for image in images])
  x = ((x / 255 - mean) / std).astype(np.float32)
  zimg = model.apply({"params": params}, x, method="embed_images")
  labels = [example["label"] for example in examples]
  return (zimg @ kernel).argmax(axis=1) == np.array(labels)


def recorded(workdir, model, split, count):
  with np.load(workdir / "correct" / f"{model}.npz") as stored:
    return np.unpackbits(stored[split], count=count).astype(bool)


def test_each_model_is_judged_by_its_own_text_tower(place, cooked):
  workdir, _ = cooked
  paths = {
    "pretrained": place / "start",
    **{str(k): place / f"runs/{k}" for k in range(3)},
    **{k: workdir / "export" / k for k in ("uniform", "learned_layer")},
  }
  seen = []
  for model, path in paths.items():
    for split, folder, names in (
      ("test", place / "photos/test", NAMES),
      ("unseen", place / "others/all", UNSEEN),
    ):
      expected = right_of(path, folder, names)
      found = recorded(workdir, model, split, len(expected))
      np.testing.assert_array_equal(found, expected, (model, split))
    seen.append(expected.tobytes())
  assert len(set(seen)) > 2, "a test that could not tell"
  # Alpha 0 is the zero-shot model, image by image.
  for split, count in (("minival", 24), ("test", 24), ("unseen", 16)):
    np.testing.assert_array_equal(
      recorded(workdir, "wise_ft_0.00", split, count),
      recorded(workdir, "pretrained", split, count),
    )


def test_one_program_a_number_of_classes(cooked):
  """Not one for each of 12 models, greedy candidates or sets."""
  _, log = cooked
  compiled = [line for line in log if line.startswith("Compiling")]
  images = [x for x in compiled if "jit(evaluate)" in x and "16,16,3]" in x]
  # Of 3 and of 2 classes with logits, and of 3 without, for the greedy soup.
  assert len(images) == 3
  # The text tower, for 3 and for 2 names.
  assert sum("jit(_class_embeddings)" in x for x in compiled) == 2


def test_unseen_classes_are_compared_with_the_start(cooked):
  workdir, _ = cooked
  rows = {
    (row["model"], row["dataset"].split("/")[-1]): row
    for row in helpers.result_rows(workdir)
    if row["metric"] == "prec@1"
  }
  right = {
    name: recorded(workdir, name, "unseen", 16)
    for name in ("pretrained", "greedy", "uniform")
  }
  for name in ("greedy", "uniform"):
    row = rows[name, "unseen"]
    change = right[name].mean() - right["pretrained"].mean()
    assert row["start"]["difference"] == pytest.approx(change)
    assert row["start"]["low"] <= change <= row["start"]["high"]
    assert "start" not in rows[name, "test"]
  assert "start" not in rows["pretrained", "unseen"]
  assert not any(split == "shifts" for _, split in rows)
  page = (workdir / "report.html").read_text()
  about = "zero-shot on 2 classes of its own, none of which is in minival"
  assert f"unseen: {about}" in page
  choices = json.loads((workdir / "choices.json").read_text())
  assert choices["unseen"] == {"unseen": about}
  assert choices["initial_head"] == "zero-shot"
