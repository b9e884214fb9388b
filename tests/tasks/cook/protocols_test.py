# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sets with maps and several labels, as folders and as TFDS."""

import json

import numpy as np
import PIL.Image
import pytest

from soupjax import data
from soupjax.tasks.cook import classes, protocols

MODEL = ("analog", "digital", "cat", "pan")


@pytest.fixture
def photos(tmp_path):
  for name, numbers in (("clock", (1, 2)), ("pan", (3,)), ("shoe", (4, 5, 6))):
    (tmp_path / "set/all" / name).mkdir(parents=True)
    for k in numbers:
      pixels = np.full((4, 4, 3), 40 * k, np.uint8)
      file = tmp_path / f"set/all/{name}/{name}_{k:03}.png"
      PIL.Image.fromarray(pixels).save(file)
  return data.open_source(f"folder:{tmp_path}/set", "all")


def by_file(source):
  return {
    source.describe(k).rpartition("/")[2]: source.label(k)
    for k in range(len(source))
  }


def write(tmp_path, value):
  file = tmp_path / "file.json"
  file.write_text(json.dumps(value))
  return str(file)


def test_a_map_keeps_the_images_of_its_classes(photos, tmp_path):
  path = write(tmp_path, {"clock": ["digital", "analog"], "pan": 3})
  source, space = protocols.mapped(photos, path, MODEL, 4, "tests.o")
  assert space.groups == ((0, 1), (3,))
  expected = {"clock_001.png": 0, "clock_002.png": 0, "pan_003.png": 3}
  assert by_file(source) == expected
  assert "3 of 6 images" in source.notes[-1]
  assert source[0]["image"][:4] == b"\x89PNG"
  text = protocols.described({"o": space}, {"o": "crop_border(2)"})["o"]
  assert text.startswith("3 outputs joined to 2 classes")
  assert "crop_border(2)" in text


@pytest.mark.parametrize(
  "table, names, message",
  [
    ({"clocks": 0}, MODEL, "tests.o.*'clocks'.*'clock'"),
    ({"clock": "analogue"}, MODEL, "'analogue'.*'analog'"),
    ({"clock": "analog"}, None, "'analog'.*no names"),
    ({"clock": 4}, MODEL, "output 4.*0 to 3"),
    ({"clock": [0, 1], "pan": 1}, MODEL, "Output 1 .*twice"),
    ({"pan": "crane"}, ("cat", "crane", "crane"), "'crane'.*outputs 1, 2.*num"),
  ],
)
def test_maps_that_do_not_fit(photos, tmp_path, table, names, message):
  with pytest.raises(ValueError, match=message):
    protocols.mapped(photos, write(tmp_path, table), names, 4, "tests.o")


def test_a_map_needs_names(tmp_path):
  digits = data.open_source("digits", "test")
  with pytest.raises(ValueError, match="tests.o.*digits.*no names"):
    protocols.mapped(digits, "map.json", None, 10, "tests.o")
  with pytest.raises(ValueError, match="labels=.*has nothing for example 0"):
    path = write(tmp_path, {"a.png": [1]})
    protocols.answered(digits, path, 10, "tests.o")


def test_images_with_several_labels_and_with_none(photos, tmp_path):
  # By file name.
  names = sorted(by_file(photos))
  table = dict.fromkeys(names, []) | {names[0]: [3, 1, 3], names[2]: [2]}
  source, space = protocols.answered(photos, write(tmp_path, table), 4, "real")
  assert {k: space.answers[v] for k, v in by_file(source).items()} == {
    names[0]: (1, 3), names[2]: (2,),
  }  # fmt: skip
  assert "4 of 6 images" in source.notes[-1]
  # By the number at its end.
  path = write(tmp_path, [[0], [], [0], [0], [], [2, 3]])
  source, space = protocols.answered(photos, path, 4, "real")
  assert {k: space.answers[v] for k, v in by_file(source).items()} == {
    "clock_001.png": (0,), "pan_003.png": (0,), "shoe_004.png": (0,),
    "shoe_006.png": (2, 3),
  }  # fmt: skip


@pytest.mark.parametrize(
  "answers, message",
  [
    ([[0], [4], *[[1]] * 4], "tests.real.*_002.png.*4.*0 to 3"),
    ([[0], [-1], *[[1]] * 4], "-1"),
    ([[0]], "nothing for .*00[2-6].png"),
    ([[]] * 6, "no image"),
  ],
)
def test_answers_that_do_not_fit(photos, tmp_path, answers, message):
  path = write(tmp_path, answers)
  with pytest.raises(ValueError, match=message):
    protocols.answered(photos, path, 4, "tests.real")


@pytest.mark.parametrize("other", ["pan_001.png", "clock_001.png"])
def test_one_answer_for_two_images_is_an_error(photos, tmp_path, other):
  # By the number at the end, or by the name of the file in another folder.
  folder = tmp_path / "set/all/pan"
  (folder / "pan_003.png").rename(folder / other)
  source = data.open_source(f"folder:{tmp_path}/set", "all")
  names = [f"{c}_{k:03}.png" for c in ("clock", "shoe") for k in range(7)]
  answers = dict.fromkeys(names, [1]) if "clock" in other else [[0]] * 6
  with pytest.raises(ValueError, match="tests.real.*both.*_001.png"):
    protocols.answered(source, write(tmp_path, answers), 4, "tests.real")


class _Several(data.Source):
  """As TFDS has ReaL."""

  several = True

  def __init__(self):
    super().__init__("real", 3, 2, ("dog", "ant"))

  def _read(self, index):
    return np.zeros((2, 2, 3), np.uint8), ((0, 1), (), (0,))[index]

  def right_labels(self, index):
    return self._read(index)[1]


def test_labels_of_the_set_itself_are_mapped_to_outputs():
  source = classes.labelled(_Several(), ("ant", "bee", "dog"), 3, "tests.r")
  assert source.several
  chosen, space = protocols.answered(source, "", 3, "tests.r")
  assert [space.answers[chosen.label(k)] for k in range(2)] == [(0, 2), (2,)]
  assert chosen[1]["image"].shape == (2, 2, 3)


def test_several_labels_are_for_tests_alone():
  with pytest.raises(ValueError, match="real has several right labels"):
    _Several().label(0)
