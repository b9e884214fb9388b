# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The images, configs and tables of the benchmark of whole CLIPs."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.data import paired
from soupjax.models import tokens, zeroshot
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import job
from soupjax.tasks.finetune import run as finetune

FOLDER = pathlib.Path(__file__).parents[3] / "benchmarks" / "evidence"
sys.path.insert(0, str(FOLDER))
common = importlib.import_module("common")
clip_config = importlib.import_module("clip_config")
clip = importlib.import_module("clip")
sys.path.remove(str(FOLDER))

CONFIG = str(FOLDER / "clip_config.py")
SEEN = ["dog", "giraffe", "guitar", "house", "person"]
SMALL = [
  *("airplane", "automobile", "bird", "cat", "deer"),
  *("dog", "frog", "horse", "ship", "truck"),
]
EACH = 12  # Images of a class and domain.


def draw(folder, classes, count, color):
  """Writes images whose first channel is their class."""
  files = []
  for k, name in enumerate(classes):
    for i in range(count):
      pixels = np.full((24, 16, 3), (20 * k, color, i), np.uint8)
      files.append((f"{name}/{i:04d}.png", common.png(pixels)))
  common.write_files(folder, files)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  for k, domain in enumerate(clip.DOMAINS):
    draw(root / f"{domain}.tar", sorted([*SEEN, *clip.UNSEEN]), EACH, 50 * k)
  small = root / "small"
  small.mkdir()
  for split, count in (("train", 12), ("test", 5)):
    draw(small / f"{split}.tar", SMALL, count, 250)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip, "SMALL", ("train[:90]", "train[90:]", "test"))
    sets = root / "sets"
    clip.write_images(f"folder:{root}", f"folder:{small}", sets, 8, False)
  return sets


def contents(source):
  """Returns the pixel that identifies every image."""
  decode = sj.data.Preprocess("")
  pixels = [np.asarray(decode(source[i]["image"])) for i in range(len(source))]
  assert {p.shape for p in pixels} == {(8, 8, 3)}
  return [tuple(p[0, 0].tolist()) for p in pixels]


def test_no_image_is_in_two_sets(images):
  names = [f"seen/{s}" for s in ("train", "minival", "test")]
  names += ["seen/cartoon", "seen/sketch"]
  seen = set()
  for name in names:
    folder, split = name.split("/")
    own = contents(sj.data.open_source(f"folder:{images}/{folder}", split))
    assert own and not seen & set(own)
    seen |= set(own)
  captioned = set()
  for split in ("train", "minival"):
    source = sj.data.open_source(f"wds:{images}/captions", split)
    captioned |= set(contents(source))
  unseen = sj.data.open_source(f"folder:{images}/unseen", "pacs")
  assert not captioned & (seen | set(contents(unseen)))


def test_classes_are_held_out(images):
  seen = sj.data.open_source(f"folder:{images}/seen", "train")
  unseen = sj.data.open_source(f"folder:{images}/unseen", "pacs")
  others = sj.data.open_source(f"folder:{images}/others", "cifar10")
  assert list(seen.class_names) == SEEN
  assert tuple(unseen.class_names) == clip.UNSEEN
  assert list(others.class_names) == [
    name for name in SMALL if name not in (*SEEN, *clip.UNSEEN)
  ]


def test_captions_name_domain_and_class(images):
  source = sj.data.open_source(f"wds:{images}/captions", "train")
  assert len(source.class_names) == 15
  words = list(clip.DOMAINS.values())
  texts = {f"a {w} of a {n}" for w in words for n in (*SEEN, *clip.UNSEEN)}
  assert set(source.captions) == texts | {f"a photo of a {n}" for n in SMALL}
  assert texts >= {t.format("dog") for t in clip_config.TEMPLATES.split("|")}
  labelled = paired.by_caption(source)
  for index in (0, len(source) // 2, len(source) - 1):
    name = source.class_names[source.label(index)]
    assert labelled.class_names[labelled.label(index)].endswith(f" {name}")


@pytest.mark.parametrize("pretrain", [True, False])
def test_configs_of_the_tiny_model(images, pretrain):
  arg = f"images={images},seed=2" + ",pretrain" * pretrain
  config = config_lib.load(CONFIG, arg)
  settings.check(config)
  train, minival = job.open_data(config)
  assert len(minival) > 0 and train.num_classes == config.data.num_classes
  model = settings.build_model(config)
  tokenizer = tokens.open_tokenizer(
    config.zeroshot.vocabulary,
    context_length=model.text["context_length"],
    vocab_size=model.text["vocab_size"],
  )
  zeroshot.check_tokenizer(model, tokenizer)
  # No text is cut, and all are different.
  texts = tokenizer([f"a painting of a {name}" for name in train.class_names])
  assert len(np.unique(texts, axis=0)) == len(texts)
  assert (texts[:, -1] == 0).all()
  if not pretrain:
    sweep = config_lib.load_sweep(CONFIG, arg)
    found = finetune.members_of(config, images, sweep)
    rates = [member.config.hyper.learning_rate for member in found]
    assert len(set(rates)) == 8 and 1e-4 < min(rates) < max(rates) < 1e-3
    other = config_lib.load_sweep(CONFIG, f"images={images},seed=1")
    assert sweep != other


def test_a_real_clip_has_its_own_model_and_rates(images):
  arg = f"images={images},clip,size=224"
  config = config_lib.load(CONFIG, arg)
  assert config.model.variant == "init" and config.data.image_size == 224
  assert "inception_crop" in config.data.train_ops
  sweep = config_lib.load_sweep(CONFIG, arg)
  assert all(3e-6 < m["hyper.learning_rate"] < 3.2e-5 for m in sweep)


def test_sets_of_cooking_have_a_meaning(images):
  config = cook_config.default_config()
  config.data.name = f"folder:{images}/seen"
  text = clip.tests_of(images)
  config.tests = config_lib.NamedTexts(config_lib.parse_named(text))
  sets = cook_config.tests(config)
  assert set(sets) == set(clip.TESTS)
  for name, entry in sets.items():
    source = sj.data.open_source(entry.dataset, entry.split)
    assert len(source) > 0
    assert (entry.names == "own") == (name in ("unseen", "others"))
  assert cook_config.means(config) == {"shifts": ("cartoon", "sketch")}


def test_nothing_is_done_without_images(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["clip.py", "--workdir=w"])
  with pytest.raises(SystemExit):
    clip.main()
  assert "--images" in capsys.readouterr().err
