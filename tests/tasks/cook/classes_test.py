# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Names of classes, outputs of models, and metrics over some of them."""

import dataclasses

import helpers
import numpy as np
import pytest

from soupjax import config as config_lib
from soupjax import data
from soupjax.data.dataset import Dataset
from soupjax.evaluators import Evaluator, label_spaces
from soupjax.models import pretrained
from soupjax.tasks.cook import classes
from soupjax.tasks.cook import config as cook_config


def source_of(labels, names, num_classes=None, name="set"):
  images = np.zeros((len(labels), 2, 2, 3), np.uint8)
  return data.from_dataset(
    Dataset(name, images, np.array(labels)),
    num_classes or len(names),
    class_names=names,
  )


def labels_of(source):
  return [source[k]["label"] for k in range(len(source))]


# --- Names --------------------------------------------------------------------


def test_two_outputs_of_one_name_are_never_one_class():
  # ImageNet has two cranes and two maillots.
  outputs = ("crane", "dog", "crane", "cat")
  with pytest.raises(ValueError, match="'crane'.*outputs 0, 2.*data.classes"):
    classes.labelled(source_of([0, 1], ("crane", "dog")), outputs, 4, "test")
  # A set that lacks them is fine, and so is one with the same list.
  pets = classes.labelled(source_of([0, 1], ("cat", "dog")), outputs, 4, "test")
  assert labels_of(pets) == [3, 1]
  same = source_of([0, 1, 2], outputs)
  assert classes.labelled(same, outputs, 4, "test") is same
  # By wordnet number, or in the same order, they are told apart.
  wnids = ("n01", "n02", "n03", "n04")
  same = source_of([0, 1, 2], wnids)
  assert classes.labelled(same, outputs, 4, "test") is same


def test_two_folders_of_one_class():
  outputs = ("great dane", "pug")
  folders = ("Great_Dane", "great-dane", "pug")
  with pytest.raises(ValueError, match="'Great_Dane' and 'great-dane'.* 0"):
    classes.labelled(source_of([0, 1], folders), outputs, 2, "test")


def test_names_that_are_spelled_differently_are_the_same():
  outputs = ("pug", "Great Dane", "caf\u00e9", "Pug")
  source = source_of([0, 1, 2, 3], ("cafe\u0301", "great_dane", "pug", "Pug"))
  assert labels_of(classes.labelled(source, outputs, 4, "test")) == [2, 1, 0, 3]
  # Neither equals one of these two.
  with pytest.raises(ValueError, match="'PUG'.*outputs 0, 3"):
    classes.labelled(source_of([0], ("PUG",)), outputs, 4, "test")


def test_an_order_that_contradicts_the_models(tmp_path):
  config = cook_config.default_config()
  source = source_of([0, 1, 2], ("Bee", "ant", "cow"))
  detected = pretrained.Detected(
    family="hf_vit", classes=("cow", "ant", "bee"), config={}
  )
  given = tmp_path / "classes.txt"
  given.write_text("bee\nant\ncow\n")
  for order in ("text", "natural", str(given)):
    config.data.classes = order
    with pytest.raises(ValueError, match="output 0, but .* output [12]"):
      classes.classes_of(config, detected, source)
  # The same order in other words; and names that cannot be compared.
  given.write_text("Cow\nANT\nBee\n")
  assert classes.classes_of(config, detected, source) == ("Cow", "ANT", "Bee")
  config.data.classes = "natural"
  for names in (None, ("x", "y", "z")):
    unknown = dataclasses.replace(detected, classes=names)
    assert classes.classes_of(config, unknown, source) == ("ant", "Bee", "cow")


# --- Metrics over some of the classes -----------------------------------------

NAMES = ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize(
  "dataset, option, expected",
  [
    ("imagenet_a", "", (1, 3)),
    ("imagenet_r:3.0.0", "", (1, 3)),
    ("imagenet_v2", "", None),
    ("imagenet_a", "all", None),
    ("folder:x", "present", (1, 3)),
    ("folder:x", ("dog", "bee", "ant"), (0, 1, 3)),
  ],
)
def test_which_outputs_count(dataset, option, expected):
  source = source_of([3, 1, 3], NAMES)
  chosen = classes.evaluated(source, dataset, option, 4, NAMES, "tests.a")
  assert chosen == expected


def test_a_set_with_some_of_the_classes():
  source = classes.labelled(source_of([1], ("cow", "ant")), NAMES, 4, "a")

  def chosen(option):
    return classes.evaluated(source, "folder:x", option, 2, NAMES, "a")

  # Also those of its classes that do not occur.
  assert chosen("") == (0, 2) and chosen("present") == (0,)
  assert chosen("all") is None
  (line,) = classes.about_outputs(source, (0, 2), "street")
  assert line.startswith("street: metrics are over 2 of 4 outputs")


def test_classes_that_do_not_occur_are_told():
  source = source_of([3, 1] * 8, NAMES)
  (line,) = classes.about_outputs(source, None, "a")
  assert "only 2 of 4 classes occur" in line and "classes=present" in line
  # Too few images to tell.
  assert not classes.about_outputs(source_of([3, 1], NAMES), None, "a")


def test_folders_that_are_numbers_of_outputs():
  names = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, ...
  called = tuple(f"n{k:02}" for k in range(12))
  for known in (called, None):
    source = classes.labelled(source_of([2, 4], names), known, 12, "tests.v2")
    assert [source.label(k) for k in range(2)] == [10, 2]
  assert not classes.incomparable(
    classes.labelled(source_of([2], names), called, 12, "v2"), called, "v2"
  )


def of_1000(labels):
  names = [f"n{k:08}" for k in range(1000)]
  return source_of(labels, names), names


@pytest.mark.parametrize("option", ["imagenet_a", ""])
def test_a_mask_by_name(monkeypatch, option):
  indices = list(range(5, 1000, 5))[:199] + [999]
  monkeypatch.setattr(
    classes.label_spaces,
    "read_mask",
    lambda _: ([f"n{k:08}" for k in indices], indices),
  )
  # A part of the set, in which few classes occur.
  source, names = of_1000([5, 10, 999])
  for known in (names, None):
    chosen = classes.evaluated(
      source, "imagenet_a", option, 1000, known, "tests.a"
    )
    assert list(chosen) == indices
  with pytest.raises(ValueError, match="tests.a: example 1 .*'n00000007'"):
    classes.evaluated(
      of_1000([5, 7])[0], "imagenet_a", option, 1000, names, "tests.a"
    )
  with pytest.raises(ValueError, match="tests.a: classes=imagenet_a.* 4 outp"):
    classes.evaluated(
      source_of([1], NAMES), "x", "imagenet_a", 4, NAMES, "tests.a"
    )


def test_a_mask_that_cannot_be_read(monkeypatch):
  def read(_):
    raise ValueError("timm is not installed")

  monkeypatch.setattr(classes.label_spaces, "read_mask", read)
  source, names = of_1000([5, 10])
  with pytest.raises(ValueError, match="tests.a: timm"):
    classes.evaluated(source, "imagenet_r", "", 1000, names, "tests.a")


def test_names_of_classes_from_a_file(tmp_path):
  source = source_of([3, 1], NAMES)
  file = tmp_path / "names.txt"
  file.write_text("dog\nbee\n\n")
  assert classes.evaluated(source, "x", str(file), 4, NAMES, "a") == (1, 3)


@pytest.mark.parametrize(
  "option, names, message",
  [
    (("dog", "beee"), NAMES, "tests.a: 'beee'.*'bee'"),
    ("presnt", NAMES, "'presnt'"),
    (("dog", "cow"), NAMES, "example 1 of set.*'bee'"),
    (("dog", "bee"), ("bee", "bee", "cow", "dog"), "'bee'.*several"),
    (("dog", "bee"), None, "no names"),
  ],
)
def test_names_of_classes_that_cannot_be(option, names, message):
  source = source_of([3, 1], names, 4)
  with pytest.raises(ValueError, match=message):
    classes.evaluated(source, "x", option, 4, names, "tests.a")


def test_forms_in_the_config():
  c = cook_config.default_config()
  c.data.name = "folder:photos"
  c.tests = config_lib.NamedTexts(
    config_lib.parse_named(
      "a=imagenet_a/test:classes=present,b=test,c=folder:/x/y:classes=cat+dog,"
      'f=test|corrupt("fog", 3),g=test:classes=all|resize(32)|corrupt("fog", 3)'
      ',k=test:ops=resize(8)|corrupt("fog", 3)'
    )
  )
  c.tests.d = {"split": "folder:/x/all", "classes": ("cat", "dog")}
  c.tests.e = {"split": "val"}
  test_set, animals = cook_config.TestSet, ("cat", "dog")
  fog = 'corrupt("fog", 3)'
  assert cook_config.tests(c) == {
    "a": test_set("imagenet_a", "test", "present"),
    "b": test_set("folder:photos", "test"),
    "c": test_set("folder:/x", "y", animals),
    "d": test_set("folder:/x", "all", animals),
    "e": test_set("folder:photos", "val"),
    "f": test_set("folder:photos", "test", "", fog),
    "g": test_set("folder:photos", "test", "all", f"resize(32)|{fog}"),
    "k": test_set("folder:photos", "test", "", f"resize(8)|{fog}"),
  }
  c.tests.i = "folder:/o/all:map=m.json|crop_border(2)"
  c.tests.j = "folder:/o/all:labels=real"
  sets = cook_config.tests(c)
  assert (sets["i"].map, sets["i"].ops) == ("m.json", "crop_border(2)")
  assert sets["j"].labels == "real"
  c.tests.j = "folder:/o/all:labels=real:map=m.json"
  with pytest.raises(ValueError, match="tests.j.*exclude"):
    cook_config.tests(c)
  del c.tests.j
  c.tests.h = {"splits": "val"}
  with pytest.raises(ValueError, match="tests.h.*'splits'"):
    cook_config.tests(c)
  del c.tests.h
  c.tests.e.split = "test"
  with pytest.raises(ValueError, match="tests.b and tests.e are the same set"):
    cook_config.tests(c)


@pytest.mark.parametrize(
  "text, message",
  [
    ('x=test|corrupt("fgo", 3)', "tests.x.*'fgo'.*'fog'"),
    ('x=test|corrupt("fog", 6)', "tests.x.*'fog', 6"),
    ("x=test|flip_lr", "tests.x.*'flip_lr'.*random"),
    ("x=test|value_range(0, 1)", "tests.x.*'value_range.*value range"),
    ("x=test|blurr(3)", "tests.x.*'blurr'"),
  ],
)
def test_operations_that_cannot_come_before_evaluation(text, message):
  c = cook_config.default_config()
  c.tests = config_lib.NamedTexts(config_lib.parse_named(text))
  with pytest.raises(ValueError, match=message):
    cook_config.tests(c)


def with_means(means, sets):
  c = cook_config.default_config()
  c.tests = config_lib.NamedTexts(dict.fromkeys(sets, "val"))
  c.means = config_lib.NamedTexts(config_lib.parse_named(means))
  return cook_config.means(c)


def test_means_over_named_sets():
  sets = ("a", "c_fog_1", "c_fog_2", "real", "test", "v2")
  assert with_means("", sets) == {"shifts": (*sets[:4], "v2")}
  assert with_means("c=c_*", sets) == {
    "c": ("c_fog_1", "c_fog_2"), "shifts": ("a", "real", "v2"),
  }  # fmt: skip
  assert with_means("shifts=a+v2", sets) == {"shifts": ("a", "v2")}
  assert with_means("", ("test",)) == {}
  with pytest.raises(ValueError, match="means.x: 'v3'.*'v2'"):
    with_means("x=v3+a", sets)
  with pytest.raises(ValueError, match="means.a:"):
    with_means("a=v2", sets)


def test_sets_of_the_mce_are_known_by_name():
  names = [f"c_{n}_{s}" for n in label_spaces.ALEXNET for s in range(1, 6)]
  corruptions = cook_config.corruptions_of(names)
  assert corruptions["fog", 3] == "c_fog_3" and len(corruptions) == 75
  assert cook_config.corruptions_of(names[1:]) == {}
  assert cook_config.corruptions_of([*names, "v2"]) == {}


def test_the_sets_of_imagenet(tmp_path):
  path = str(helpers.ROOT / "configs/tests/imagenet.py")
  c = config_lib.load(path, "objectnet=/o,c=true")
  sets, means = cook_config.tests(c), cook_config.means(c)
  assert len(sets) == 8 + 1 + 75
  assert means["shifts"] == ("v2", "r", "sketch", "objectnet", "a")
  assert len(cook_config.corruptions_of(means["c"])) == 75
  assert sets["objectnet"] == cook_config.TestSet(
    "folder:/o/images", "all", "", "crop_border(2)", "/o/mappings"
  )
  c = config_lib.load(path, "folder=/data,c=true")
  sets = cook_config.tests(c)
  assert sets["c_fog_3"] == cook_config.TestSet("folder:/data/c/fog/3", "all")
  assert sets["real"].labels == "real"
  assert sets["real"].dataset == sets["test"].dataset == "folder:/data/val"
  assert cook_config.means(c)["shifts"] == ("v2", "r", "sketch", "a")


def test_metrics_are_those_of_the_outputs_that_count():
  logits = np.array([[2.0, 1, 0, 3], [0, 3, 1, 2], [9, 0, 1, 5]], np.float32)
  labels = np.array([0, 3, 2])

  def evaluate(_, x):
    return x

  among = Evaluator.from_arrays(
    evaluate, logits, labels, outputs=(0, 2, 3), name="a", batch_size=2
  )
  kept = logits[:, [0, 2, 3]]
  exact = kept - np.log(np.exp(kept).sum(1, keepdims=True))
  values = among.per_example(None, logits=True)
  assert values["prec@1"].tolist() == [0, 1, 0]
  np.testing.assert_allclose(
    values["loss"], -exact[np.arange(3), [0, 2, 1]], rtol=1e-6
  )
  np.testing.assert_array_equal(values["logits"], logits)
  with pytest.raises(ValueError, match="'?a'? has a label.* 2 outputs"):
    Evaluator.from_arrays(
      evaluate, logits, labels, outputs=(0, 2), name="a"
    ).totals(None)
  with pytest.raises(ValueError, match="twice"):
    Evaluator.from_arrays(evaluate, logits, labels, outputs=(0, 0))
