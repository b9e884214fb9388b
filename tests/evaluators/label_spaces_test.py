# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Masks, maps and several labels, on sets worked by hand."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from soupjax.evaluators import Evaluator, label_spaces
from soupjax.evaluators.label_spaces import LabelSpace

LOGITS = np.array(
  [[1.0, 9, 5, 2, 0], [0, 9, 1, 3, 2], [4, 9, 3, 2, 8], [2, 9, 0, 1, 0]],
  np.float32,
)


def evaluated(space, logits, labels):
  evaluator = Evaluator.from_arrays(
    lambda params, x: x, logits, np.array(labels), outputs=space, name="set"
  )
  return evaluator.per_example(None)


# Outputs 0 and 2 are one class, 3 and 4 another; output 1, always the
# highest, does not count. The maxima are (5, 2), (1, 3), (4, 8), (2, 1).
MAP = LabelSpace(groups=((0, 2), (3, 4)))


def test_a_map_joins_outputs_by_their_highest_logit():
  values = evaluated(MAP, LOGITS, [0, 0, 3, 3])
  assert values["prec@1"].tolist() == [1, 0, 1, 0]
  differences = np.array([5 - 2, 1 - 3, 8 - 4, 1 - 2])
  np.testing.assert_allclose(
    values["loss"], np.log1p(np.exp(-differences)), rtol=1e-5
  )


# Of the labels 1 and 3 either is right.
ANSWERS = LabelSpace(answers=((0,), (1, 3), (2, 3, 4)))


def test_any_of_several_labels_is_right():
  values = evaluated(ANSWERS, LOGITS, [1, 0, 2, 1])
  assert values["prec@1"].tolist() == [1, 0, 0, 1]
  best = LOGITS[[0, 1, 2, 3], [1, 0, 4, 1]]
  log_sum = np.log(np.exp(LOGITS.astype(float)).sum(1))
  np.testing.assert_allclose(
    values["loss"], log_sum - best, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(
  "space, labels",
  [
    (MAP, [0, 0, 3, 3]),
    (ANSWERS, [1, 0, 2, 1]),
    (LabelSpace(groups=((4, 0), (2,)), answers=((4,), (2, 4))), [0, 1, 1, 0]),
    (LabelSpace.of_outputs((3, 0)), [0, 3, 3, 0]),
  ],
)
def test_the_host_agrees_with_the_device(space, labels):
  values = evaluated(space, LOGITS, labels)
  logits, right = space.reduced(LOGITS.astype(float), np.array(labels))
  loss = -np.asarray(jax.nn.log_softmax(logits))[range(4), right]
  np.testing.assert_allclose(values["loss"], loss, rtol=1e-5, atol=1e-6)
  correct = logits.argmax(-1) == right
  assert values["prec@1"].tolist() == correct.tolist()


def test_a_mask_has_the_bits_of_low_logits():
  masked, _ = LabelSpace.of_outputs((1, 4)).scored(LOGITS, None)
  low = np.finfo(np.float32).min / 2
  np.testing.assert_array_equal(masked[:, [0, 2, 3]], low)
  np.testing.assert_array_equal(masked[:, [1, 4]], LOGITS[:, [1, 4]])


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"groups": ((0, 1), (1,))}, "Output 1 .*twice"),
    ({"groups": ((0,), ())}, "groups"),
    ({"answers": ()}, "answers"),
    ({"groups": ((0,), (2, 1)), "answers": ((0, 1),)}, "Output 1"),
  ],
)
def test_spaces_that_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    LabelSpace(**fields)


@pytest.mark.parametrize(
  "space, labels, message",
  [
    ([0, 3, 7], [0, 0, 3, 3], "Output 7 .* has 5 outputs"),
    (LabelSpace(answers=((0,), (9,))), [0, 0, 1, 1], "Output 9 .* 5 outputs"),
    ([-1, 0, 3], [0, 0, 3, 3], "Output -1 .* from 0"),
    ([0, 3.5], [0, 0, 3, 3], "Output 3.5 .* from 0"),
    (LabelSpace(answers=((0,), (3,))), [0, 0, 1, 2], "label"),
  ],
)
def test_outputs_that_a_model_does_not_have(space, labels, message):
  with pytest.raises(ValueError, match=message):
    evaluated(space, LOGITS, labels)


def test_labels_outside_of_the_space():
  with pytest.raises(ValueError, match="set has a label"):
    evaluated(MAP, LOGITS, [0, 1, 3, 3])
  with pytest.raises(ValueError, match="Label 1 .*2 classes"):
    MAP.reduced(LOGITS, np.array([0, 1, 3, 3]))


def test_mce_is_1_for_alexnet_and_counts_all_75_sets():
  accuracies = {
    (name, s): 1 - error
    for name, error in label_spaces.ALEXNET.items()
    for s in range(1, 6)
  }
  assert label_spaces.mce(accuracies) == pytest.approx(1)
  # Half of AlexNet's errors under fog, at severities that differ.
  fog = label_spaces.ALEXNET["fog"]
  for s, factor in zip(range(1, 6), (0.1, 0.3, 0.5, 0.7, 0.9)):
    accuracies["fog", s] = 1 - factor * fog
  assert label_spaces.mce(accuracies) == pytest.approx((14 + 0.5) / 15)
  del accuracies["fog", 3]
  with pytest.raises(ValueError, match="74.*'fog', 3"):
    label_spaces.mce(accuracies)


def test_masks_and_labels_of_timm():
  if importlib.util.find_spec("timm") is None:
    pytest.skip("needs timm")
  masks = {name: label_spaces.read_mask(name) for name in label_spaces.MASKS}
  for synsets, indices in masks.values():
    assert len(set(synsets)) == len(set(indices)) == 200
    assert 0 <= min(indices) and max(indices) < 1000
    # Numbers are in the order of WordNet ids.
    assert [s for _, s in sorted(zip(indices, synsets))] == sorted(synsets)
  # arXiv 2006.16241 and 1907.07174 chose classes with 86 in common.
  a, r = (set(indices) for _, indices in masks.values())
  assert len(a & r) == 86
  real = label_spaces.read_real()
  assert len(real) == 50_000 and sum(map(bool, real)) == 46_837


def test_without_timm(monkeypatch):
  monkeypatch.setattr(label_spaces.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(ValueError, match="imagenet_a_synsets.txt.*install timm"):
    label_spaces.read_mask("imagenet_a")


def write_objectnet(folder):
  """Two classes of five in the map, one of them of two labels."""
  folder.mkdir()
  files = {
    "folder_to_objectnet_label.json": {"clock": "Alarm clock", "pan": "Pan"},
    "objectnet_to_imagenet_1k.json": {
      "Alarm clock": "analog clock; digital clock", "Pan": "frying pan, frypan",
    },
    # Lines of the last file are in another order than the classes.
    "pytorch_to_imagenet_2012_id.json": {"0": 2, "1": 0, "2": 1},
  }  # fmt: skip
  for name, value in files.items():
    (folder / name).write_text(json.dumps(value))
  (folder / "imagenet_to_label_2012_v2").write_text(
    "digital clock\nfrying pan, frypan\nanalog clock\n"
  )
  return folder


def test_the_files_of_objectnet_are_joined(tmp_path):
  folder = write_objectnet(tmp_path / "mappings")
  assert label_spaces.read_map(folder) == {"clock": [0, 1], "pan": [2]}
  (folder / "pytorch_to_imagenet_2012_id.json").write_text('{"0": 2, "1": 0}')
  with pytest.raises(ValueError, match="'Pan'.*without a number"):
    label_spaces.read_map(folder)
  (folder / "imagenet_to_label_2012_v2").unlink()
  with pytest.raises(ValueError, match="has no imagenet_to_label_2012_v2"):
    label_spaces.read_map(folder)


def test_maps_in_one_file(tmp_path):
  file = tmp_path / "map.json"
  file.write_text('{"cat": ["tabby", 3], "dog": 0}')
  assert label_spaces.read_map(file) == {"cat": ["tabby", 3], "dog": [0]}


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "not JSON"),
    ("[1]", "a key for each class"),
    ('{"cat": []}', "'cat'"),
    ('{"cat": [1.5]}', "'cat'.*1.5"),
    ('{"cat": true}', "'cat'.*True"),
  ],
)
def test_maps_that_cannot_be_read(tmp_path, text, message):
  file = tmp_path / "map.json"
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    label_spaces.read_map(file)
  with pytest.raises(ValueError, match="nowhere does not exist"):
    label_spaces.read_map(tmp_path / "nowhere")


def test_keys_that_occur_twice(tmp_path):
  file = tmp_path / "file.json"
  file.write_text('{"a": [1], "b": [2], "a": [3]}')
  for read in (label_spaces.read_map, label_spaces.read_answers):
    with pytest.raises(ValueError, match="file.json has 'a' twice"):
      read(file)


@pytest.mark.parametrize("text", ["3", '{"a": 1}', "[[1], 2]", '[["cat"]]'])
def test_answers_that_cannot_be_read(tmp_path, text):
  file = tmp_path / "answers.json"
  file.write_text(text)
  with pytest.raises(ValueError, match="answers.json"):
    label_spaces.read_answers(file)
  with pytest.raises(ValueError, match="'rael' is neither 'real'"):
    label_spaces.read_answers("rael")
