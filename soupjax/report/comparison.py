# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables that compare models on test sets and probes."""

from collections.abc import Mapping, Sequence
import html
import math
import textwrap

from soupjax.report import tables
from soupjax.report.results import SHIFTS, Results

_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_WIDTH, _NAME, _CELL = 100, 25, 25
_SHORTEST_NAME = 16
_FIRST = {"minival": 0, "test": 1}  # Other sets follow in their own order.


def comparison_table(results: Results) -> str:
  """Formats the accuracies of all models on all sets, in percent.

  Args:
    results: of a comparison, with `Choices.reference` set.

  Returns:
    Blocks of a few sets, at most 100 characters wide, with a line per model:
    its accuracy and its difference from the reference with the 95 % interval.
    Ends without a newline.
  """
  splits = sorted(results.splits, key=lambda s: _FIRST.get(s, len(_FIRST)))
  if len(results.shifts) > 1:
    splits.append(SHIFTS)
  rows, lines = tables.rows(results), []
  cells = {
    split: [_cell(row, results, split) for row in rows] for split in splits
  }
  longest = max(
    (len(c) for column in cells.values() for c in column), default=0
  )
  size = max(_CELL, longest + 1)
  per_block = (_WIDTH - _SHORTEST_NAME) // size
  name = min(_NAME, _WIDTH - per_block * size)
  for start in range(0, len(splits), per_block):
    block = splits[start : start + per_block]
    heads = [_head(results, split) for split in block]
    lines.append(_line("", heads, name, size))
    lines.append("-" * (name + size * len(block)))
    for row, *texts in zip(rows, *(cells[split] for split in block)):
      lines.append(_line(row.label, texts, name, size))
    lines.append(lines[-len(rows) - 1])
  for mean in probe_means(results):
    members = results.choices.means[mean]
    lines += textwrap.wrap(f"{mean}: {', '.join(members)}", _WIDTH)
    lines.append(_line("", ["mean logit", "mean rank"]))
    lines += [_line(row.label, _summary(row, results, mean)) for row in rows]
    lines.append("-" * (_NAME + 2 * _CELL))
  notes = (
    f"Percent correct, and points above {results.best} with the 95 % interval "
    "over images (paired bootstrap). ~: the interval contains zero, so there "
    "is no clear difference. p-values, losses and calibration are in "
    "report.html"
  )
  if len(results.shifts) > 1:
    notes += f". mean: over {', '.join(results.shifts)}"
  lines += textwrap.wrap(f"{notes}.", _WIDTH)
  for text in (results.choices.about_outputs, results.about_mce):
    lines += textwrap.wrap(text, _WIDTH)
  return "\n".join(lines)


def probe_means(results: Results) -> list[str]:
  """Returns names of probes with a mean logit and mean rank over datasets."""
  named = {split for _, split, metric in results.cells if metric == "mean_rank"}
  return [mean for mean in results.choices.means if mean in named]


def probes_section(results: Results) -> str:
  """Returns HTML tables of probes on several datasets; "" without any."""
  parts = []
  for mean in probe_means(results):
    members = results.choices.means[mean]
    columns = [*members, mean]
    titles = [m.removesuffix(f"_{mean}") for m in members]
    titles += ["mean", "mean logit", "mean rank"]
    body = []
    for row in tables.rows(results):
      cells = [_html_cell(row, results, split) for split in columns]
      cells += [t.replace("-", _MINUS) for t in _summary(row, results, mean)]
      body.append(
        f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
      )
    table = tables.as_html(["model", *map(html.escape, titles)], body)
    parts.append(f"<h3>{html.escape(mean)}</h3>\n{table}")
  if not parts:
    return ""
  note = (
    "Percent correct of probes on frozen features, and points above the "
    "reference with the 95 % interval of the paired bootstrap over images. "
    "Mean logit: mean over datasets of the logit of the accuracy. Mean rank: "
    "mean over datasets of the rank of the model; 1 is the best."
  )
  return "\n".join([*parts, f"<p><small>{note}</small></p>"])


def metrics_section(
  results: Results, sizes: Mapping[str, int] | None = None
) -> str:
  """Returns HTML tables of metrics besides accuracy and loss; "" without any.

  Args:
    results: each of its `choices.metrics` gets a table.
    sizes: ensemble -> number of members, where known.
  """
  splits = [s for s in _FIRST if s in results.splits]
  splits += [SHIFTS] * (len(results.shifts) > 1)
  splits += [*results.shifts, *results.others]

  def text(model, split, metric):
    parts = results.shifts if split == SHIFTS else [split]
    parts = results.choices.means.get(split, parts)
    cells = [results.cells.get((model, s, metric)) for s in parts]
    if None in cells:
      return _DASH
    return f"{math.fsum(cell[0] for cell in cells) / len(cells):.4f}"

  parts = []
  for metric in results.choices.metrics:
    body = []
    for row in tables.rows(results, sizes):
      if row.kind != "mean" and metric not in ("prec@1", "loss"):
        texts = [text(row.models[0], split, metric) for split in splits]
        if set(texts) != {_DASH}:
          body.append(
            f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}'
            f"</th>{''.join(f'<td>{cell}</td>' for cell in texts)}</tr>"
          )
    if body:
      heads = ["mean of shifts" if s == SHIFTS else s for s in splits]
      table = tables.as_html(["model", *map(html.escape, heads)], body)
      parts.append(f"<h3>{html.escape(metric)}</h3>\n{table}")
  return "\n".join(parts)


def _summary(row: tables.Row, results: Results, mean: str) -> Sequence[str]:
  """Returns the mean logit and the mean rank of a row, as text."""
  cells = [
    results.cells.get((row.models[0], mean, metric))
    for metric in ("mean_logit", "mean_rank")
  ]
  return ["-" if cell is None else f"{cell[0]:.2f}" for cell in cells]


def _line(
  name: str, cells: Sequence[str], width: int = _NAME, size: int = _CELL
) -> str:
  name = "".join(c if c.isprintable() else "?" for c in name)
  if len(name) > width - 1:
    name = f"{name[: width - 4]}..."
  text = f"{name:<{width}}" + "".join(f"{cell:>{size}}" for cell in cells)
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


def _html_cell(row: tables.Row, results: Results, split: str) -> str:
  value, gain = _cell(row, results, split).partition(" ")[::2]
  return f"{value}<small>{gain.replace('-', _MINUS)}</small>" if gain else value
