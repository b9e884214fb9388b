# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from elsewhere are cooked as their own libraries mean them."""

import json
import shutil

import family_models
import helpers
import jax
import numpy as np
import PIL.Image
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import data
from soupjax.models import ViT, pretrained
from soupjax.tasks.cook import classes, infer, inputs
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import run as cook

CONFIG = str(helpers.ROOT / "configs" / "cook.py")
NAMES = ("ant", "bee", "cow")
ORDER = ("cow", "ant", "bee")  # Of the models' outputs.
MODEL = ViT(
  num_classes=3,
  patch_size=4,
  width=8,
  depth=2,
  mlp_dim=12,
  num_heads=4,
  **pretrained.options("hf_vit"),
)
LOGITS = jax.jit(lambda params, x: MODEL.apply({"params": params}, x)[0])
HF = {
  "model_type": "vit",
  "hidden_size": 8,
  "num_attention_heads": 4,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
  "id2label": dict(enumerate(ORDER)),
}
PREPARED = {
  "do_resize": True,
  "size": {"height": 8, "width": 8},
  "resample": 3,
  "do_normalize": True,
  "image_mean": [0.4, 0.4, 0.4],
  "image_std": [0.2, 0.2, 0.2],
}


def params_of(seed):
  rng = np.random.default_rng(seed)
  image = np.zeros((1, 8, 8, 3), np.float32)
  made = jax.eval_shape(MODEL.init, jax.random.key(0), image)["params"]
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), made)


def write_model(path, seed, **changes):
  path.mkdir(parents=True)
  pretrained.save_exported(
    path / "model.safetensors", params_of(seed), MODEL, "hf_vit"
  )
  (path / "config.json").write_text(json.dumps({**HF, **changes}))
  (path / "preprocessor_config.json").write_text(json.dumps(PREPARED))


def write_images(path, names, seed=0, count=4):
  rng = np.random.default_rng(seed)
  for name in names:
    (path / name).mkdir(parents=True)
    for k in range(count):
      pixels = rng.integers(0, 256, (14, 10, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(path / name / f"{k}.png")


@pytest.fixture
def place(tmp_path):
  for k in range(2):
    write_model(tmp_path / f"runs/{k}", k)
  for k, split in enumerate(("val", "test")):
    write_images(tmp_path / "photos" / split, NAMES, k)
  write_images(tmp_path / "street", ("ant", "cow"), 3)  # No bees there.
  return tmp_path


def config_of(place, **changes):
  values = {
    "ingredients": f"{place}/runs/*",
    "data.name": f"folder:{place}/photos",
    "data.minival": "val",
    "tests": f"test=test,street=folder:{place}/street/all",
    "cook.learned.granularities": (),
    **changes,
  }
  return config_lib.load(CONFIG, **values)


def accuracy(params, folder, among=ORDER):
  """As transformers' own preparation and labels have it."""
  columns = [ORDER.index(name) for name in among]
  right, total = 0, 0
  for name in sorted(p.name for p in folder.iterdir()):
    for file in sorted((folder / name).iterdir()):
      image = PIL.Image.open(file).resize((8, 8), PIL.Image.BICUBIC)
      x = (np.asarray(image, np.float32) / 255 - 0.4) / 0.2
      logits = LOGITS(params, x[None])
      right += among[int(logits[0][np.array(columns)].argmax())] == name
      total += 1
  return right / total


def test_nothing_but_folders_has_to_be_said(place):
  cook.run(config_of(place), place / "soups")
  lines = (place / "soups/results.jsonl").read_text().splitlines()
  result = {
    (r["model"], r["dataset"].split("/")[-1]): r["value"]
    for r in map(json.loads, lines)
    if r["metric"] == "prec@1"
  }
  soup = sj.uniform_soup(
    [sj.Ingredient.from_params(str(k), params_of(k)) for k in range(2)]
  )
  folders = {
    "minival": place / "photos/val",
    "test": place / "photos/test",
    "street": place / "street",
  }
  for name, params in (("0", params_of(0)), ("1", params_of(1))):
    for split, folder in folders.items():
      # Of the classes that the set has, as in ImageNet-A.
      among = ("ant", "cow") if split == "street" else ORDER
      expected = accuracy(params, folder, among)
      assert result[name, split] == pytest.approx(expected)
  assert result["uniform", "test"] == pytest.approx(
    accuracy(soup, folders["test"])
  )
  assert len(set(result.values())) > 2, "a test that could not tell"
  # Ready for the hub, with scores.
  folder = place / "soups/export/greedy"
  assert {f.name for f in folder.iterdir()} == {
    *("README.md", "config.json", "model.safetensors"),
    "preprocessor_config.json",
  }
  card = (folder / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: transformers\n")
  assert "| metric | prec@1 |" in card
  row = next(x for x in card.splitlines() if x.startswith("| greedy |"))
  assert f"{result['greedy', 'street']:.6g}" in row
  assert str(place / "runs") not in card
  report = (place / "soups/report.html").read_text()
  assert "2 models were fine-tuned. The best" in report  # No start is known.
  assert (
    "Metrics: street over the 2 of 3 outputs that are its classes" in report
  )
  # Their library opens it as it is.
  export = place / "soups/export/uniform"
  assert json.loads((export / "config.json").read_text())["hidden_size"] == 8
  assert (export / "preprocessor_config.json").exists()
  assert pretrained.detect(export).classes == ORDER
  theirs = sj.open_ingredient(place / "runs/0")
  assert set(sj.open_ingredient(export).specs) == set(theirs.specs)


def test_evaluated_checkpoints_must_not_change(place):
  config = config_of(place)
  cook.run(config, place / "soups")
  (place / "street/cow/3.png").unlink()
  cook.run(config, place / "soups")  # It is finished, and opens no data.
  (place / "soups/results.jsonl").unlink()
  with pytest.raises(ValueError, match="street"):
    cook.run(config, place / "soups")
  write_images(place / "more", ("cow",), 3)
  (place / "more/cow/3.png").rename(place / "street/cow/3.png")
  # Written over in its directory.
  weights = place / "runs/1/model.safetensors"
  weights.write_bytes(weights.read_bytes())
  with pytest.raises(ValueError, match="1 changed.*--workdir"):
    cook.run(config, place / "soups")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.num_heads": 2}, "model.num_heads=2.* 4"),
    ({"model.act": "gelu"}, "model.act='gelu'.*'gelu_exact'"),
    ({"model.width": 16}, r"\(8,\), and \(16,\) is needed"),
    ({"data.image_size": 16}, "8 x 8.*data.image_size=16"),
    (
      {"data.eval_ops": "resize(8)|value_range(0, 1)"},
      r"data.eval_ops=.* in 0..1, .*-2..3.*value_range\(-2, 3\)",
    ),
    (
      {"data.eval_ops": "resize(8)"},
      "data.eval_ops='resize.8.' gives pixels in 0..255",
    ),
    ({"data.num_classes": 4}, r"classifier.bias is \(3,\), and \(4,\) is"),
    ({"data.classes": "/nowhere"}, "data.classes='/nowhere'"),
  ],
)
def test_what_contradicts_the_files(place, changes, message):
  with pytest.raises(ValueError, match=f"(?s){message}"):
    cook.run(config_of(place, **changes), place / "soups")
  assert not (place / "soups").exists()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"num_attention_heads": 2}, "'0'.*'2'.*model.num_heads"),
    ({"id2label": dict(enumerate(NAMES))}, "order of classes"),
  ],
)
def test_ingredients_that_mean_different_things(place, changes, message):
  write_model(place / "runs/2", 2, **changes)
  with pytest.raises(ValueError, match=message):
    cook.run(config_of(place), place / "soups")


def test_an_ingredient_without_files_hides_no_difference(place, capsys):
  for name in ("config.json", "preprocessor_config.json"):
    (place / "runs/0" / name).unlink()
  heads = {"model.num_heads": 4}
  cook.run(config_of(place, **heads), None, dry_run=True)
  assert 'resize(8, "bicubic")|value_range(-2, 3)' in capsys.readouterr().out
  write_model(place / "runs/2", 2, id2label=dict(enumerate(NAMES)))
  with pytest.raises(ValueError, match="'1' and '2' differ in the order of cl"):
    cook.run(config_of(place, **heads), None, dry_run=True)


def test_ingredients_that_were_prepared_differently(place):
  write_model(place / "runs/2", 2)
  record = place / "runs/2/preprocessor_config.json"
  record.write_text(json.dumps({**PREPARED, "image_mean": [0.5] * 3}))
  with pytest.raises(ValueError, match="preprocessing"):
    cook.run(config_of(place), place / "soups")


def test_what_no_file_says_is_asked_for(place, capsys):
  for k in range(2):
    (place / f"runs/{k}/config.json").unlink()
  config = config_of(place)
  with pytest.raises(ValueError, match="--config.model.num_heads"):
    cook.run(config, None, dry_run=True)
  heads = {"model.num_heads": 4}
  cook.run(config_of(place, **heads), None, dry_run=True)
  text = capsys.readouterr().out
  assert "assumed, since no file specifies it: act gelu_exact" in text
  for k in range(2):
    (place / f"runs/{k}/preprocessor_config.json").unlink()
  with pytest.raises(ValueError, match="--config.data.eval_ops"):
    cook.run(config_of(place, **heads), None, dry_run=True)


def test_other_images_than_theirs_are_a_warning(place, capsys):
  config = config_of(
    place,
    **{"data.eval_ops": "resize(12)|value_range(-2, 3)", "data.image_size": 12},
  )
  cook.run(config, None, dry_run=True)
  text = capsys.readouterr().out
  assert "WARNING: the checkpoints' own preprocessing is resize(8, " in text
  assert "WARNING: position embeddings for 8 px are resampled to 12" in text


def detected(config=None, family="timm", classes=None):
  return pretrained.Detected(
    family=family,
    options={},
    said=frozenset(),
    assumed=frozenset(),
    image_size=None,
    classes=classes,
    config=config or {},
  )


def test_pixels_that_no_file_describes_may_not_be_what_was_meant(place, capsys):
  for k in range(2):
    (place / f"runs/{k}/preprocessor_config.json").unlink()
  changes = {"data.eval_ops": "resize(8)", "model.num_heads": 4}
  cook.run(config_of(place, **changes), None, dry_run=True)
  text = capsys.readouterr().out
  assert "WARNING: data.eval_ops gives pixels in 0..255" in text


def test_files_that_cannot_be_followed(place, capsys):
  for k in range(2):
    file = place / f"runs/{k}/preprocessor_config.json"
    file.write_text(json.dumps({**PREPARED, "do_flip_channel_order": True}))
  with pytest.raises(ValueError, match="0/preproc.*do_flip_channel_order=True"):
    cook.run(config_of(place), None, dry_run=True)
  # What is given takes their place.
  ops = {"data.eval_ops": "resize(8)|value_range(-2, 3)"}
  cook.run(config_of(place, **ops), None, dry_run=True)
  text = capsys.readouterr().out
  assert "data.eval_ops is used instead." in text


# --- Images -------------------------------------------------------------------


def test_test_sets_of_images_that_made_choices(place):
  with pytest.raises(ValueError, match="tests.a: .* has 12 images .* choice"):
    cook.run(config_of(place, tests="a=val"), None, dry_run=True)
  path = f"folder:{place}/photos"
  with pytest.raises(ValueError, match="tests.a: .* 12 images of photos/val"):
    changes = {"data.name": f"{path}/val", "data.minival": "all"}
    cook.run(config_of(place, **changes, tests=f"a={path}/val"), None,
             dry_run=True)  # fmt: skip
  # Where minival is cut from train, the rest trained the models.
  changes = {"data.minival": "", "data.train": "val"}
  changes["data.minival_per_class"] = 1
  with pytest.raises(ValueError, match="tests.a: .* 5 images .* trained"):
    cook.run(config_of(place, **changes, tests="a=val[:5]"), None, dry_run=True)
  # A split of the same name in another folder is another set.
  write_images(place / "more" / "val", NAMES, 5)
  tests = f"a=folder:{place}/more/val"
  cook.run(config_of(place, tests=tests), None, dry_run=True)


def test_test_sets_of_images_that_trained_our_ingredients(place):
  record = {"task": "finetune", "data": {"name": f"folder:{place}/photos"}}
  record["data"] |= {"train": "test[:3]", "eval_ops": "value_range(-2, 3)"}
  (place / "config.json").write_text(json.dumps(record))
  with pytest.raises(ValueError, match="tests.test: 0 was trained on 3 images"):
    cook.run(config_of(place), None, dry_run=True)
  # Of several runs, one trained on them.
  shutil.copytree(place / "runs", place / "other/runs")
  (place / "config.json").rename(place / "other/config.json")
  patterns = f"{place}/runs/*/model.safetensors,{place}/other/runs/*/model*"
  with pytest.raises(ValueError, match="tests.test: other.* was trained on 3"):
    cook.run(config_of(place, ingredients=patterns), None, dry_run=True)


def test_files_that_are_not_read_and_images_that_cannot_be(place, capsys):
  (place / "photos/val/stray.png").write_bytes(b"")
  first = data.open_source(f"folder:{place}/photos", "test").describe(0)
  with open(first, "wb") as file:
    file.write(b"no image")
  cook.run(config_of(place), None, dry_run=True)
  text = capsys.readouterr().out
  assert "minival: photos/val, 12 images; 1 file of " in text
  assert "photos/val not read as images: stray.png" in text


# --- Classes ------------------------------------------------------------------


def source_of(path, names):
  write_images(path, names, count=1)
  return data.open_source(f"folder:{path}", "all")


def test_timm_sorts_folders_by_number(tmp_path):
  config = config_lib.load(CONFIG)
  source = source_of(tmp_path / "x", ("1", "2", "10"))
  assert source.class_names == ("1", "10", "2")

  def order(names, family="timm"):
    changed = config_lib.updated(config, {"data.classes": names})
    return classes.classes_of(changed, detected(None, family), source)

  with pytest.raises(ValueError, match="'2' before '10'.*=natural"):
    order("")
  assert order("", "hf_vit") == ("1", "10", "2")
  assert order("text") == ("1", "10", "2")
  assert order("natural") == ("1", "2", "10")
  (tmp_path / "names.txt").write_text("10\n1\n2\n")
  assert order(str(tmp_path / "names.txt")) == ("10", "1", "2")
  labels = classes.labelled(source, order("natural"), 3, "x")
  read = {
    labels.describe(k).split("/")[-2]: labels[k]["label"] for k in range(3)
  }
  assert read == {"1": 0, "2": 1, "10": 2}
  assert [labels.label(k) for k in range(3)] == [
    labels[k]["label"] for k in range(3)
  ]


def test_as_many_classes_are_not_the_same_classes(tmp_path):
  source = source_of(tmp_path / "x", ("bee", "cow", "dog"))
  with pytest.raises(ValueError, match="street.*dog.*ant"):
    classes.labelled(source, NAMES, 3, "tests, street")
  # Names of another kind cannot be compared.
  assert classes.labelled(source, ("x", "y", "z"), 3, "a") is source
  with pytest.raises(ValueError, match="3 classes"):
    classes.labelled(source, ("x", "y"), 2, "a")


def test_names_that_cannot_be_compared_are_told(place, capsys):
  for k in range(2):
    record = place / f"runs/{k}/config.json"
    labels = {"id2label": {"0": "Kuh", "1": "Ameise", "2": "Biene"}}
    record.write_text(json.dumps({**HF, **labels}))
  cook.run(config_of(place, tests="test=test"), None, dry_run=True)
  assert (
    "WARNING: the models' classes are called Kuh, Ameise, ... and those of "
    "minival ant, bee, ...: assumed to be in the same order"
  ) in capsys.readouterr().out


def test_hardly_better_than_chance_is_a_warning(place, caplog):
  config = config_of(place, tests="")
  with caplog.at_level("WARNING"):
    cook.run(config, place / "soups")
  assert "hardly better than chance" in caplog.text


def write_adapter(path, seed, classes=3, **config):
  """Writes a LoRA of the queries with a head of its own."""
  rng = np.random.default_rng(seed)
  query = "vit.encoder.layer.0.attention.attention.query"
  shapes = {
    f"{query}.lora_A.weight": (2, MODEL.width),
    f"{query}.lora_B.weight": (MODEL.width, 2),
    "classifier.weight": (classes, MODEL.width),
    "classifier.bias": (classes,),
  }
  leaves = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
  sj.save_params(path / "adapter_model.safetensors", leaves)
  config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
  config["modules_to_save"] = ["classifier"]
  (path / "adapter_config.json").write_text(json.dumps(config))


def test_a_new_head_has_no_classes_of_the_base(place):
  write_adapter(place / "lora", 0)
  model = sj.open_adapter(place / "lora", place / "runs/0")
  detected = pretrained.detect(model)
  assert detected.options["num_classes"] == 3 and detected.classes is None
  changes = json.dumps({**HF, "id2label": {0: "a", 1: "b", 2: "c"}})
  (place / "lora/config.json").write_text(changes)
  model = sj.open_adapter(place / "lora", place / "runs/0")
  assert pretrained.detect(model).classes == ("a", "b", "c")


def test_adapters_are_cooked_on_their_base(place):
  for k in range(2):
    write_adapter(place / f"loras/{k}/adapter", k)
  settings = {"ingredients": f"{place}/loras/*/adapter"}
  with pytest.raises(ValueError, match="0/adapter is an adapter.*config.base"):
    cook.run(config_of(place, **settings), place / "soups")
  settings["base"] = f"{place}/runs/0"
  cook.run(config_of(place, **settings), place / "soups")
  folder = place / "soups/export/uniform"
  assert (folder / "config.json").exists()
  models = sj.find_ingredients(settings["ingredients"], base=settings["base"])
  expected = sj.uniform_soup(models)
  for leaf, value in sj.load_params(folder).items():
    np.testing.assert_allclose(value, expected[leaf], atol=2e-6)
  # A base that changes is noticed at the next start.
  shutil.rmtree(place / "runs/0")
  write_model(place / "runs/0", 5)
  with pytest.raises(ValueError, match="the base of 0 changed"):
    cook.run(config_of(place, **settings), place / "soups")


def test_one_of_several_models_in_every_file(place):
  for k in range(2):
    path = place / f"runs/{k}/model.safetensors"
    leaves = pretrained.export(params_of(k), MODEL, "hf_vit")
    names = {"online.": 0, "target.": 1}
    both = {
      n + key: v + d for n, d in names.items() for key, v in leaves.items()
    }
    path.unlink()
    sj.save_params(path, both)
  with pytest.raises(ValueError, match="several models.*init.prefix"):
    inputs.open_inputs(config_of(place))
  with pytest.raises(ValueError, match="prefix='net'.*'online.', 'target."):
    inputs.open_inputs(config_of(place, prefix="net"))
  opened = inputs.open_inputs(config_of(place, prefix="online."))
  for k, ingredient in enumerate(opened.ingredients):
    jax.tree.map(np.testing.assert_array_equal, ingredient.load(), params_of(k))


def test_unknown_rotary_positions_are_asked_for(tmp_path):
  model = family_models.vit(
    **family_models.DINO, **family_models.ROTATED, registers=2
  )
  images = np.zeros((1, 8, 8, 3), np.float32)
  params = family_models.params_of(model, images)
  path = tmp_path / "model.safetensors"
  pretrained.save_exported(path, params, model, "timm")
  config = cook_config.default_config()
  config.model.num_heads = 2
  source = sj.open_ingredient(path)
  with pytest.raises(ValueError, match="config.model.rope, one of 'eva02'"):
    infer.resolve(config, [source])
  config.model.rope = "dinov3"
  config.data.update(image_size=8, eval_ops="value_range(-1, 1)")
  full, _, _, _ = infer.resolve(config, [source])
  assert full.model.registers == 2 and full.model.posemb == "none"
  assert full.model.qkv_bias == "qv" and full.model.layer_scale > 0
