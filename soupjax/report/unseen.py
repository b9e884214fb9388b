# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot accuracy on test sets with their own classes."""

from collections.abc import Iterator, Mapping
import html
import textwrap

from soupjax.report import tables
from soupjax.report.results import Gain, Results

TITLE = "Zero-shot on classes that the models do not have"
_NOTE = (
  "Percent correct. d(start): points above the initial model, with the 95 % "
  "interval over images (paired bootstrap). ~: the interval contains zero, so "
  "there is no clear difference. No mean includes these sets, and nothing was "
  "chosen on them."
)


def table(results: Results, sizes: Mapping[str, int] | None = None) -> str:
  """Formats the accuracies as plain text, one block per set; "" without any.

  Args:
    results: the results.
    sizes: ensemble -> number of members, where known.
  """
  lines = []
  for split, about in results.unseen.items():
    lines += textwrap.wrap(f"{TITLE}. {split}: {about}.", 100)
    lines.append(f"{'':<52}{'accuracy':>12}{'d(start)':>24}")
    for row, value, gain in _rows(results, sizes, split):
      name = "".join(c if c.isprintable() else "?" for c in row.label)
      lines.append(f"{name[:50]:<52}{value:>12.1f}{_text(gain):>24}".rstrip())
  return "\n".join([*lines, *textwrap.wrap(_NOTE, 100)]) if lines else ""


def section(results: Results, sizes: Mapping[str, int]) -> str:
  """Formats the same tables as HTML; "" without any set."""
  parts = []
  for split, about in results.unseen.items():
    body = [
      f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>'
      f"<td>{value:.1f}</td><td>{_text(gain)}{_p(gain)}</td></tr>"
      for row, value, gain in _rows(results, sizes, split)
    ]
    parts.append(f"<p>{html.escape(f'{split}: {about}')}.</p>")
    parts.append(tables.as_html(("model", "accuracy", "d(start)"), body))
  if not parts:
    return ""
  note = f"{_NOTE} p: McNemar's exact test."
  return "\n".join([*parts, f"<p><small>{note}</small></p>"])


def _rows(
  results: Results, sizes: Mapping[str, int] | None, split: str
) -> Iterator[tuple[tables.Row, float, Gain | None]]:
  """Yields rows, their accuracies on a set and gains over the initial model."""
  for row in tables.rows(results, sizes):
    value = row.accuracy(results, split)
    if value is not None:
      gain = None
      if row.kind != "mean":
        gain = results.above_start.get((row.models[0], split))
      yield row, value, gain


def _text(gain: Gain | None) -> str:
  if gain is None:
    return ""
  mark = "" if gain.is_shown else "~"
  ends = f"[{gain.low:.1f}, {gain.high:.1f}]"
  return f"{mark}{tables.signed(gain.value)} {ends}"


def _p(gain: Gain | None) -> str:
  return "" if gain is None or gain.p is None else f", p {gain.p:.2g}"
