# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from soupjax.soups.rules import coefficients


def test_a_number_for_all():
  assert coefficients.resolve("a", 0.5, ["x", "y"]) == {"x": 0.5, "y": 0.5}


def test_the_first_expression_counts():
  result = coefficients.resolve(
    "a", {"head": 1, "h": 2, "": 3}, ["head", "h", "x"]
  )
  assert result == {"head": 1, "h": 2, "x": 3}


def test_depth():
  leaves = [
    "Transformer/encoderblock_0/MlpBlock_0/kernel",
    "Transformer/encoderblock_2/MlpBlock_0/kernel",
    "Transformer/encoderblock_10/MlpBlock_0/kernel",
    "Transformer/encoder_norm/scale",
    "Transformer/posembed_input/pos_embedding",
    "MAPHead_0/probe",
    "embedding/kernel",
    "head/kernel",
  ]
  result = coefficients.resolve("a", [0.0, 1.0, 4.0], leaves)
  assert list(result.values()) == [0, 1, 4, 4, 0, 4, 0, 4]
  names = ["blocks.0.w", "blocks.1.w", "cls_token"]
  result = coefficients.resolve("a", [2.0, 3.0], names)
  assert list(result.values()) == [2, 3, 2]
  assert set(coefficients.resolve("a", [7.0], names).values()) == {7}


@pytest.mark.parametrize(
  "value,text",
  [
    ({}, "empty"),
    ({"x": "y"}, r"a\['x'\]"),
    ([[1.0]], "^a "),
    ([], "^a "),
    (None, "^a "),
    (float("nan"), "^a "),
    ([1.0, float("inf")], "^a "),
    ({"z": 1.0}, "'z'"),
    ([1.0, 2.0], "numbered layer"),
    (True, "^a "),
    ("1", "^a "),
    ([0.1, True], "^a "),
    (["0.1", "0.2"], "^a "),
    ({"x": True, "": 1}, r"\['x'\]"),
    ({"x": [0.1, True], "": 0.5}, r"\['x'\]"),
  ],
)
def test_bad_coefficients(value, text):
  with pytest.raises(ValueError, match=text):
    coefficients.resolve("a", value, ["x", "y"])
