# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import re

import helpers
import pytest

from soupjax import report
from soupjax.report import comparison, figures, sections, tables
from soupjax.report.results import Choices


@pytest.fixture
def results():
  lines = helpers.records_of("greedy", "model", 0.97, 0.95, 0.8)
  other = helpers.records_of("x\n" * 20, "model", 0.98, 0.94, 0.7)
  for line in other:
    if line["metric"] == "prec@1" and "test" in line["dataset"]:
      line |= {"difference": -0.01, "low": -0.02, "high": 0.001, "p": 0.08}
  means = {"shifts": helpers.SHIFTS}
  choices = Choices(means=means, reference="greedy", best={}, greedy={})
  return report.Results.from_records([*lines, *other][::-1], choices)


def test_every_set_has_a_column_with_differences(results):
  lines = report.comparison_table(results).splitlines()
  assert max(map(len, lines)) <= 100
  heads = [line.split() for line in lines if "(200)" in line]
  assert heads[0] == ["minival", "(200)", "test", "(200)", "writers", "(200)"]
  assert heads[1] == ["noise", "(200)", "rotate", "(200)", "mean"]
  rows = [line for line in lines if line.startswith(("greedy", "x?x"))]
  assert len(rows) == 4
  assert rows[0].split()[1:] == [
    *("98.0", "+1.0", "94.0", "~-1.0", "[-2.0,", "0.1]", "72.0", "-10.0")
  ]
  assert rows[1].split() == ["greedy", "(reference)", "97.0", "95.0", "82.0"]
  assert rows[2].split()[-2:] == ["71.0", "-10.0"]  # The mean.


def test_every_model_has_its_corruption_error():
  lines = [
    line
    for name in ("a", "b", "pretrained")
    for line in helpers.records_of(
      name, "pretrained" if name == "pretrained" else "model", 0.9, 0.9, 0.8
    )
  ]
  for k, name in enumerate(("a", "b")):
    value = 0.5 + k / 10
    lines.append(helpers.record(name, "model", "c", value, 600, "mce"))
  choices = Choices(reference="a", best={}, greedy={}, means={"c": ("test",)})
  results = report.Results.from_records(lines, choices)
  assert results.about_mce == "mCE on c (AlexNet: 100): a 50.0, b 60.0."


def test_further_metrics_have_tables_of_their_own(results):
  assert comparison.metrics_section(results, {}) == ""
  lines = helpers.records_of("a", "model", 0.9, 0.9, 0.8)
  lines += helpers.records_of("b", "model", 0.9, 0.9, 0.8)
  for k, split in enumerate(("test", *helpers.SHIFTS)):
    value = 0.5 + k / 10
    lines.append(helpers.record("b", "model", split, value, metric="my<f1>"))
  choices = Choices(
    metrics=("prec@1", "my<f1>"), reference="a", best={}, greedy={},
    means={"shifts": helpers.SHIFTS},
  )  # fmt: skip
  text = comparison.metrics_section(
    report.Results.from_records(lines, choices), {}
  )
  (row,) = re.findall(r'scope="row">(.*?)</tr>', text)
  assert re.findall(r"<td>(.*?)</td>", row) == [
    *("\N{EN DASH}", "0.5000", "0.7000", "0.6000", "0.7000", "0.8000")
  ]
  assert row.startswith("b<") and "<h3>my&lt;f1&gt;</h3>" in text


def test_wide_columns_stay_apart():
  def of(model, accuracy):
    lines = helpers.records_of(model, "model", accuracy, accuracy, accuracy)
    for line in lines:
      if line["metric"] == "prec@1":
        line |= {"difference": -0.153, "low": -0.187, "high": -0.119, "p": 0.0}
    return lines

  choices = Choices(reference="a", best={}, greedy={})
  results = report.Results.from_records([*of("a", 0.9), *of("b", 0.7)], choices)
  lines = report.comparison_table(results).splitlines()
  assert max(map(len, lines)) <= 100
  row = next(line for line in lines if line.startswith("b "))
  assert re.findall(r"\d\d\.\d (\S+)", row) == ["-20.0"] * 3
  assert row.count("  ") >= 3 and "]7" not in row


def test_the_page_speaks_of_a_reference(results):
  text = sections.summary(results, {}, {})
  text += sections.results_section(results, {})
  text += sections.plane_caption(results)
  assert "The reference is <b>greedy</b>" in text
  assert "no clear difference" in text and "p 0.08" in text
  assert "ingredient" not in text and "soup" not in text
  assert tables.label("greedy", "model", results) == "greedy"
  figure = figures.accuracy_plane(results)
  legend = [text.get_text() for text in figure.legends[0].get_texts()]
  assert legend == ["reference", "model"]
