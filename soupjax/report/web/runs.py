# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Several runs on one page: means over runs, and every run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import html
import math
import os
import textwrap
from typing import Any

from soupjax import files
from soupjax.report import tables
from soupjax.report.results import SHIFTS, Gain, Results

TITLE = "Comparison of runs"
_BY_MINIVAL = "WiSE-FT, alpha by minival"
_MIDDLE = "WiSE-FT, alpha 0.5"
_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One model on one set, over the runs that have it.

  Attributes:
    values: run -> accuracy in percent.
    gain: mean difference from the best ingredient or the reference, in points;
      its ends are NaN with fewer than two runs or equal differences. None if no
      run has a difference.
  """

  values: Mapping[str, float]
  gain: Gain | None

  @property
  def mean(self) -> float:
    """Mean accuracy in percent."""
    return math.fsum(self.values.values()) / len(self.values)

  def text(self, minus: str = "-") -> str:
    """Formats the gain, such as "~+0.5 [-0.1, 1.1]"; "" without one."""
    if self.gain is None:
      return ""
    text = tables.signed(self.gain.value, minus)
    if math.isnan(self.gain.low):
      return text
    ends = f"{self.gain.low:.1f}, {self.gain.high:.1f}".replace("-", minus)
    return f"{'' if self.gain.is_shown else '~'}{text} [{ends}]"


def compare_runs(
  runs: Mapping[str, Results], interval: Callable[[Sequence[float]], Gain]
) -> dict[str, dict[str, Cell]]:
  """Collects the accuracies of models and their gains over runs.

  Args:
    runs: name -> results, all of one dataset.
    interval: returns the mean of at least two differences with its interval.

  Returns:
    Label of a row -> set -> its cell, over the runs that have both.
  """
  rows: dict[str, dict[str, dict[str, tuple[float, float | None]]]] = {}
  for run, results in runs.items():
    for label, row in _labelled(results):
      for split in _splits({run: results}):
        value = row.accuracy(results, split)
        if value is not None:
          gain = None if row.kind == "best" else row.gain(results, split)
          cells = rows.setdefault(label, {}).setdefault(split, {})
          cells[run] = value, gain

  def cell(found):
    gains = [gain for _, gain in found.values() if gain is not None]
    mean = None
    if len(gains) >= 2:
      mean = interval(gains)
    elif gains:
      mean = Gain(gains[0], math.nan, math.nan, None)
    return Cell({run: value for run, (value, _) in found.items()}, mean)

  return {
    label: {split: cell(found) for split, found in splits.items()}
    for label, splits in rows.items()
  }


def _labelled(results: Results) -> Iterator[tuple[str, tables.Row]]:
  """Yields table rows, each with a label that does not depend on the run."""
  by_accuracy = results.choices.metrics[0] == "prec@1"
  for row in tables.rows(results):
    if row.kind == "best":
      compared = results.choices.reference
      yield (row.label if compared else "Best ingredient"), row
    elif row.models == ("wise_ft",) and row.kind == "soup" and by_accuracy:
      yield _BY_MINIVAL, row
      if results.best_wise_ft == 0.5:  # This alpha has no row of its own.
        yield _MIDDLE, row
    elif row.models == ("window",) and row.kind == "soup":
      yield tables.LABELS["window"], row
    elif row.kind == "interpolation":
      for alpha, label in (
        (results.best_wise_ft, _BY_MINIVAL),
        (0.5, _MIDDLE),
      ):
        if results.wise_ft.get(alpha) == row.models[0]:
          yield label, row
    elif row.kind != "ingredient":
      yield row.label, row


def _splits(runs: Mapping[str, Results]) -> list[str]:
  """Returns the columns: minival, test, the mean of shifts, shifts, others."""
  columns: dict[str, None] = {}
  for results in runs.values():
    known = [s for s in ("minival", "test") if s in results.splits]
    shifts = [SHIFTS, *results.shifts] if results.shifts else []
    columns |= dict.fromkeys([*known, *shifts, *results.others])
  order = {"minival": 0, "test": 1, SHIFTS: 2}
  return sorted(columns, key=lambda split: order.get(split, 3))


def about(runs: Mapping[str, Results], differing: Sequence[str]) -> str:
  """Describes the table of runs on one dataset, and what its intervals cover.

  Args:
    runs: name -> results, all with the same reference.
    differing: keys of the configs in which the runs differ.
  """
  above = next(iter(runs.values())).choices.reference
  above = above or "the best ingredient of the same run"
  notes = [
    f"Percent correct, mean over runs. Differences (d) are points above {above}"
    ", mean over runs"
  ]
  if len(runs) < 2:
    notes[0] += ". This is one run: an interval over seeds needs two."
  else:
    notes[0] += (
      ", with the 95 % interval and p-value of Student's t over runs. ~: the "
      "interval contains zero, so there is no clear difference. The interval "
      "covers other runs on the same images, not other images; there is none "
      "for a model in only one run, or with the same difference in all runs."
    )
    notes.append(
      f"The configs differ in {', '.join(differing)}."
      if differing
      else "The configs do not differ, or are not known."
    )
  for split in _splits(runs):
    counts = {
      results.images(model, split)
      for results in runs.values()
      for model in results.kinds
    } - {None}
    if len(counts) > 1:
      notes.append(
        f"{split} has {' or '.join(map(str, sorted(counts)))} images: not all "
        "accuracies are on the same ones."
      )
  return " ".join(notes)


def table(cells: Mapping[str, Mapping[str, Cell]], note: str) -> str:
  """Formats test and the mean over shifts as plain text."""
  head = ("runs", "test", "d(test)", "shifts", "d(shifts)")
  widths = (6, 8, 21, 8, 21)
  lines = [f"{'':<36}" + "".join(f"{h:>{w}}" for h, w in zip(head, widths))]
  for label, splits in cells.items():
    shown = [str(max(len(c.values) for c in splits.values()))]
    for split in ("test", SHIFTS):
      cell = splits.get(split)
      shown += [f"{cell.mean:.1f}", cell.text()] if cell else ["-", ""]
    name = "".join(c if c.isprintable() else "?" for c in label)
    text = "".join(f"{c:>{w}}" for c, w in zip(shown, widths))
    lines.append(f"{name[:35]:<36}{text}".rstrip())
  return "\n".join([*lines, *textwrap.wrap(note, 100)])


def write_comparison(
  path: str | os.PathLike,
  datasets: Mapping[str, tuple[Mapping[str, Results], Mapping, str]],
) -> Any:
  """Writes a page that compares runs.

  Args:
    path: path of the page.
    datasets: name -> runs, cells of `compare_runs`, and the text of `about`.

  Returns:
    Path of the page.
  """
  from soupjax.report.web import document  # Imports matplotlib.

  body = [f"<h1>{TITLE}</h1>"]
  for dataset, (runs, cells, note) in datasets.items():
    columns = _splits(runs)
    head = [
      "mean of shifts" if c == SHIFTS else html.escape(c) for c in columns
    ]
    names = html.escape(", ".join(runs))
    body += [
      f"<h2>{html.escape(dataset)}</h2>",
      f"<p>{len(runs)} run{'s' * (len(runs) != 1)}: {names}.</p>",
      tables.as_html(
        ["model", "runs", *head],
        [_mean_row(label, splits, columns) for label, splits in cells.items()],
      ),
      f"<p><small>{html.escape(note)}</small></p>",
      "<h3>Every run</h3>",
      tables.as_html(
        ["model", "run", *head],
        [
          _run_row(label, run, splits, columns)
          for label, splits in cells.items()
          for run in runs
          if any(run in cell.values for cell in splits.values())
        ],
      ),
    ]
  path = files.path_of(path)
  files.make_directory(path.parent)
  files.write_text(path, document.document(TITLE, body))
  return path


def _mean_row(label, splits, columns) -> str:
  texts = [str(max(len(cell.values) for cell in splits.values()))]
  for split in columns:
    cell = splits.get(split)
    if cell is None:
      texts.append(_DASH)
      continue
    note = cell.text(_MINUS)
    if cell.gain and cell.gain.p is not None:
      note += f", p {cell.gain.p:.2g}"
    note = f"<small>{note}</small>" if note else ""
    texts.append(f"{cell.mean:.1f}{note}")
  return _row(label, texts)


def _run_row(label, run, splits, columns) -> str:
  values = [
    splits[split].values.get(run) if split in splits else None
    for split in columns
  ]
  texts = [_DASH if v is None else f"{v:.1f}" for v in values]
  return _row(label, [html.escape(run), *texts])


def _row(label, texts) -> str:
  cells = "".join(f"<td>{text}</td>" for text in texts)
  return f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>'
