# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The table of a comparison of models as plain text: every set, every model."""

import textwrap

from soupjax.report import tables
from soupjax.report.results import SHIFTS, Results

_WIDTH, _NAME, _CELL = 100, 25, 25
_FIRST = {"minival": 0, "test": 1}  # Other sets follow in their order.


def comparison_table(results: Results) -> str:
  """Formats the accuracies of all models on all sets, in percent.

  Args:
    results: with `Choices.reference`.

  Returns:
    Blocks of a few sets, of at most 100 columns, with one line a model: its
    accuracy and its difference to the reference with the 95 % interval. Ends
    without a newline.
  """
  splits = sorted(results.splits, key=lambda s: _FIRST.get(s, len(_FIRST)))
  if len(results.shifts) > 1:
    splits.append(SHIFTS)
  rows, lines = tables.rows(results), []
  per_block = (_WIDTH - _NAME) // _CELL
  for start in range(0, len(splits), per_block):
    block = splits[start : start + per_block]
    heads = [_head(results, split) for split in block]
    lines.append(_line("", heads))
    lines.append("-" * (_NAME + _CELL * len(block)))
    for row in rows:
      lines.append(_line(row.label, [_cell(row, results, s) for s in block]))
    lines.append(lines[-len(rows) - 1])
  notes = (
    f"Percent correct, and points above {results.best} with the 95 % interval "
    "over images (paired bootstrap). ~: the interval contains zero, so no "
    "difference is shown. p, losses and calibration are in report.html"
  )
  if len(results.shifts) > 1:
    notes += f". mean: over {', '.join(results.shifts)}"
  lines += textwrap.wrap(f"{notes}.", _WIDTH)
  for text in (results.choices.about_outputs, results.about_mce):
    lines += textwrap.wrap(text, _WIDTH)
  return "\n".join(lines)


def _line(name: str, cells: list[str]) -> str:
  name = "".join(c if c.isprintable() else "?" for c in name)
  if len(name) > _NAME - 1:
    name = f"{name[: _NAME - 4]}..."
  text = f"{name:<{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)
  return text.rstrip()


def _head(results: Results, split: str) -> str:
  if split == SHIFTS:
    return "mean"
  n = results.images(results.best, split)
  return split[: _CELL - 2] if n is None else f"{split[:14]} ({n:,})"


def _cell(row: tables.Row, results: Results, split: str) -> str:
  value = row.accuracy(results, split)
  if value is None:
    return "-"
  if row.kind == "best":
    return f"{value:.1f}"
  return f"{value:.1f} {tables.gain_text(row, results, split)}"
