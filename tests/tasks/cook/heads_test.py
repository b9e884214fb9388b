# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of whole CLIPs, and classes that no ingredient saw."""

import io
import json
import logging
import shutil

import helpers
import jax
import numpy as np
import PIL.Image
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import data
from soupjax.checkpoints import save
from soupjax.models import CLIP, pretrained, tiny_clip, tokens, zeroshot
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as settings
from soupjax.tasks.cook import evaluate, inputs
from soupjax.tasks.cook import run as cook
from soupjax.tasks.finetune import job
from soupjax.tasks.finetune import run as finetune_run

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


def right_of(path, folder, names, templates=TEMPLATES, tower=None):
  """Whether both towers of a checkpoint classify each image correctly.

  Args:
    path: of the checkpoint.
    folder: of the images.
    names: of its classes.
    templates: prompts.
    tower: parameters in place of the image tower, whose head is not used.
  """
  model = CLIP(**pretrained.detect(path, text=True).options)
  params = pretrained.load_pretrained(path, model)
  tokenizer = tokens.open_tokenizer(path, context_length=32)
  kernel = zeroshot.zeroshot_head(model, params, names, templates, tokenizer)
  if tower is not None:
    tower = {k: v for k, v in tower.items() if k != "head"}
    params = {**params, "img": tower}
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


def test_tokens_of_other_numbers_are_refused(place, tmp_path):
  for k in range(2):
    shutil.copytree(place / f"runs/{k}", tmp_path / str(k))
  vocab = json.loads((tmp_path / "1/vocab.json").read_text())
  vocab["b"], vocab["c"] = vocab["c"], vocab["b"]
  (tmp_path / "1/vocab.json").write_text(json.dumps(vocab))
  with pytest.raises(ValueError, match="'b' is 1 in .*0/vocab.*2 in .*1/vocab"):
    inputs.open_inputs(config_of(place, ingredients=f"{tmp_path}/*"))


# --- A frozen text tower ------------------------------------------------------


def test_members_of_a_sweep_on_unseen_classes(place, tmp_path):
  """The head comes from the start's text tower, for each image tower."""
  clip = place / "start"
  config = config_lib.load(
    helpers.ROOT / "configs/finetune/clip_b32_i1k.py", "runlocal"
  )
  changes = {"init.path": str(clip), "data.batch_size": 16}
  config = config_lib.updated(config, changes, what="The test")
  sweep = tmp_path / "sweep"
  workdir_lib.open_workdir(sweep, config)
  job.open_job(config, finetune_run.members_of(config, sweep, None), sweep)
  start = sj.load_params(sweep / "initial")
  rng = np.random.default_rng(0)
  member = jax.tree.map(
    lambda x: x * (1 + rng.normal(size=x.shape).astype("f") / 2), start
  )
  workdir_lib.save_model(sweep / "member_000/ingredients/last", member)
  cook_config = helpers.cook_config(
    sweep, tests=f"unseen=folder:{place}/others/all:names=fox+red owl"
  )
  opened = inputs.open_inputs(cook_config)
  assert "none of which is in minival" in opened.unseen["unseen"]
  evaluations = evaluate.Evaluations(opened, tmp_path / "cook")
  for name, ingredient in (
    ("pretrained", opened.initial),
    ("member", opened.ingredients[0]),
  ):
    evaluations.evaluate(name, ingredient.load)
  found = {
    name: recorded(tmp_path / "cook", name, "unseen", 16)
    for name in ("pretrained", "member")
  }
  templates = ("{}", "the number {}")
  expected = right_of(clip, place / "others/all", UNSEEN, templates=templates)
  np.testing.assert_array_equal(found["pretrained"], expected)
  expected = right_of(
    clip, place / "others/all", UNSEEN, templates=templates, tower=member
  )
  np.testing.assert_array_equal(found["member"], expected)
  assert (found["member"] != found["pretrained"]).any()

  def refused(message, **changes):
    with pytest.raises(ValueError, match=message):
      inputs.open_inputs(
        helpers.cook_config(
          sweep, **{"tests": dict(cook_config.tests), **changes}
        )
      )

  refused("unseen has names.*give --config.zeroshot.text", **{
    "zeroshot.text": ""
  })  # fmt: skip
  refused("model.normalize=None", **{"model.normalize": None})


# --- Bad input ----------------------------------------------------------------


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"zeroshot.names": "ant|zebra"}, "has 2 names, but .* has 3 classes"),
    ({"zeroshot.names": "ant|ox|ox"}, r"'ox' is the name of classes \[1, 2\]"),
    ({"zeroshot.names": "ant| |ox"}, "the name of class 1 is ' '"),
    ({"zeroshot.names": "ant|1|ox"}, "class 1 is the number '1'"),
    ({"zeroshot.names": "ant|zebra|ox"}, "'zebra' has index 1, but is class 2"),
    ({"zeroshot.templates": "a photo"}, "zeroshot.templates='a photo'"),
    ({"zeroshot.templates": "{} {}"}, "zeroshot.templates has '{} {}'"),
    ({"zeroshot.templates": "|".join(["{}"] * 1400)}, "all 4,200 prompts"),
    ({"tests": "u={others}:names=fox"}, "'fox' is not a file"),
    ({"tests": "u={others}:names=fox+ox+owl"}, "tests.u.*3 names.*2 classes"),
    ({"tests": "u={others}:names=ox+ox"}, r"tests.u.*'ox' is the name of"),
    ({"tests": "u={others}:names=red owl+fox"}, "'red owl' has index 0, but"),
    ({"tests": "u={others}:names=own:classes=all"}, "exclude each other"),
  ],
)
def test_names_and_prompts_that_cannot_be_used(changes, message, place):
  others = f"folder:{place}/others/all"
  changes = {k: v.replace("{others}", others) for k, v in changes.items()}
  with pytest.raises(ValueError, match=message):
    config = config_of(place, **changes)
    settings.check(config)
    inputs.open_inputs(config)


def scaled(value):
  return lambda leaves: leaves | {"logit_scale": np.float32(value)}


def without_text(*names):
  """Puts leaves of another tower in place of the text tower."""

  def change(leaves):
    image = {k: v for k, v in leaves.items() if k.startswith("visual.")}
    scale = {"logit_scale": leaves["logit_scale"]} if names else {}
    return image | scale | {name: np.zeros(2, np.float32) for name in names}

  return change


def narrow(leaves, names=("text_projection", "visual.proj")):
  cut = {name: np.ascontiguousarray(leaves[name][:, :6]) for name in names}
  return leaves | cut


def uneven(leaves):
  return narrow(leaves, ["text_projection"])


@pytest.mark.parametrize(
  "change, message",
  [
    (scaled(100), "scale of '1' is 100, but it should be a logarithm"),
    (scaled(-4), "scales of '1' and 'initial' are -4 and .* similar scales"),
    (scaled(np.nan), "scale of '1' is nan"),
    (
      lambda leaves: leaves | {"logit_bias": np.float32(-10)},
      "runs/1.* has a logit bias .SigLIP.*runs/0.* has none",
    ),
    (without_text(), "runs/1.* has an image tower only"),
    (
      without_text("text.transformer.encoder.layer.0.output.dense.weight"),
      "runs/1.*RoBERTa.*'text.transformer.encoder.layer.0",
    ),
    (
      without_text("text.transformer.encoder.block.0.layer.0.q.weight"),
      "runs/1.*mT5.*'text.transformer.encoder.block.0",
    ),
    (
      lambda leaves: leaves | {"text_decoder.ln_final.weight": np.ones(2)},
      "runs/1.*CoCa.*'text_decoder",
    ),
    (narrow, "has proj_size=8, but the weights of .*runs/1 have 6"),
    (uneven, "The projections of .*runs/1.* differ"),
    (
      lambda leaves: leaves | {"head.weight": np.zeros((3, 8), np.float32)},
      "runs/0 is a CLIP with both towers.*runs/1 has a head of 3 outputs",
    ),
  ],
)
def test_clips_that_do_not_fit(change, message, place, tmp_path):
  for k in range(3):
    shutil.copytree(place / f"runs/{k}", tmp_path / f"runs/{k}")
  source = sj.open_ingredient(tmp_path / "runs/1")
  leaves = change({leaf: source.read(leaf) for leaf in source.specs})
  file = tmp_path / "runs/1/open_clip_model.safetensors"
  save.write(file, leaves, overwrite=True)
  with pytest.raises(ValueError, match=message):
    inputs.open_inputs(config_of(place, ingredients=f"{tmp_path}/runs/*"))


def test_files_beside_clips(place, tmp_path, monkeypatch):
  def refused(message, ingredients="runs/*"):
    with pytest.raises(ValueError, match=message):
      inputs.open_inputs(
        config_of(place, ingredients=f"{tmp_path}/{ingredients}", initial="")
      )

  shutil.copytree(place / "runs/0", tmp_path / "runs/0")
  file = tmp_path / "runs/0/vocab.json"
  vocabulary = json.loads(file.read_text())
  file.write_text(json.dumps({**vocabulary, "zebra</w>": len(vocabulary)}))
  refused("vocab.json has 57 tokens.*56 rows")
  # Both projections are of the same size.
  source = sj.open_ingredient(tmp_path / "runs/0")
  leaves = narrow({leaf: source.read(leaf) for leaf in source.specs})
  folder = tmp_path / "bare"
  folder.mkdir()
  save.write(folder / "a.safetensors", leaves)
  refused("heads of the text tower of .*bare.* is unknown", "bare/*")
  monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda _: None)
  refused(r"the package tokenizers: pip install 'soupjax\[clip\]'")
