# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons of checkpoints of a sweep, without soups."""

import json

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.evaluators import statistics
from soupjax.tasks.cook import inputs
from soupjax.tasks.evaluate import run as evaluate

CONFIG = str(helpers.ROOT / "configs" / "evaluate.py")
TESTS = 'test=test,fog=test|corrupt("fog", 3)'


def config_of(sweep, **changes):
  changes = {"tests": TESTS, "reference": "member_001", **changes}
  return config_lib.load(CONFIG, f"sweep={sweep}", **changes)


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


@pytest.fixture(scope="module")
def compared(sweep, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("evaluate") / "compared"
  evaluate.run(config_of(sweep, save_logits=True), workdir)
  return workdir


def test_every_model_is_compared_with_the_reference(compared, capsys, sweep):
  rows = helpers.result_rows(compared)
  assert {row["model"]: row["kind"] for row in rows} == {
    "pretrained": "pretrained",
    **{f"member_00{k}": "model" for k in range(3)},
  }
  values = helpers.result_values(compared)
  for row in rows:
    if row["metric"] != "prec@1":
      continue
    assert ("difference" in row) == (row["model"] != "member_001")
    if "difference" in row and row["dataset"] != "digits/shifts":
      gain = row["value"] - values["member_001", row["dataset"]]
      assert row["difference"] == pytest.approx(gain, abs=1e-12)
      assert row["low"] <= row["difference"] <= row["high"]
  for ingredient in sj.find_ingredients(sweep / "member_*/ingredients/last"):
    expected = ingredient.metrics["minival/prec@1"]
    assert values[ingredient.name, "digits/minival"] == expected
  page = (compared / "report.html").read_text()
  assert "member_001 (reference)" in page and "soup" not in page.lower()
