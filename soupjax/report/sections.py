# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Text and tables of the report page, as HTML computed from the numbers.

All text read from files goes through `html.escape`.
"""

from collections.abc import Mapping, Sequence
import html
import math
from typing import Any

from soupjax.report import results as results_lib
from soupjax.report import tables
from soupjax.report.results import SHIFTS, Results

_ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"

LEARNED_CAPTION = (
  "Coefficient of each ingredient (columns), learned by gradient descent on "
  "minival, for the whole model or for each layer (rows); each row sums to 1. "
  "1/K on the colour bar marks the uniform soup, where training starts."
)
SHIFTS_CAPTION = (
  "The same models on each shift separately. Colours are shifts; markers are "
  "as in the figure above. Hide groups of points that cover others."
)
WINDOW_CAPTION = (
  "Score on minival of the mean of the last checkpoints, against how many are "
  "averaged; the dashed line marks the number of the soup."
)
WISE_FT_CAPTION = (
  f"Accuracy of the weights (1 {_MINUS} {_ALPHA}) initial + {_ALPHA} best "
  "ingredient. The panels have different scales. Grey: 95 % Clopper-Pearson "
  "intervals; the mean over shifts has none, since shifts may share images. "
  f"{_ALPHA} was not chosen on these sets."
)


def plane_caption(results: Results) -> str:
  """Returns the caption of the scatter plot of shifts against test."""
  mean = "accuracy on " if len(results.shifts) == 1 else "mean accuracy over "
  text = (
    f"Each point is one model: {mean}{html.escape(', '.join(results.shifts))} "
    "against accuracy on test. Up and to the right is better."
  )
  if results.choices.reference:
    return text
  return (
    f"{text} The line is WiSE-FT, from the initial model to the best "
    "ingredient. Ensembles run all their members on every image; all others "
    "run a single model."
  )


def greedy_caption(greedy: Mapping[str, Any]) -> str:
  """Returns the caption of a greedy soup's figure, with its acceptance rule."""
  rules = {"ge": "at least as high as", "gt": "higher than"}
  rule = rules.get(greedy.get("accept"), "high enough compared with")
  history = greedy["history"]
  caption = "Held-out score of the soup with each candidate added"
  if history and history[0].get("score", 0) < 0:
    caption += " (the negative of the metric, so higher is better)"
  caption += (
    f". A candidate is kept if this score is {rule} that of the soup so far "
    f"(the line). {len(greedy['selected'])} of {len(history)} were kept."
  )
  if any(d.get("score") is None for d in history):
    caption += (
      " Arrows: rejected before all images were evaluated; the bar is the best "
      "score that was still attainable."
    )
  return caption


# --- The summary --------------------------------------------------------------


def summary(
  results: Results,
  sizes: Mapping[str, int],
  greedy: Mapping[str, Mapping[str, Any]],
) -> str:
  """Returns the opening paragraphs, which state gains and losses."""
  rows = tables.rows(results, sizes)
  if results.choices.reference:
    return _compared(rows, results)
  soups = [r for r in rows if r.kind in ("soup", "interpolation")]
  ensembles = [r for r in rows if r.kind == "ensemble"]
  count, choices = len(results.models("ingredient")), results.choices
  models = "One model was" if count == 1 else f"{count} models were"
  start = " from one initial model" if results.models("pretrained") else ""
  by = html.escape(choices.by(choices.metrics[0]))
  choice = "It" if count == 1 else f"The best of them{by} on minival"
  levels = " and ".join(
    f"{value:.1f} % on {words}"
    for split, words in _places(results)
    if (value := results.accuracy(results.best, split)) is not None
  )
  paragraphs = [
    f"<p>{models} fine-tuned{start}. {choice}, "
    f"<b>{html.escape(results.best)}</b>, has "
    f"{levels or 'no accuracy on test or shifts'}."
    f"{' Against it, at the same inference cost:' if soups else ''}</p>"
  ]
  if soups:
    notes = {k: f" ({len(v['selected'])} models)" for k, v in greedy.items()}
    paragraphs += _gains(soups, results, notes)
  if ensembles:
    text = "Ensembles, which run all their members on every image:"
    costs = {
      row.models[0]: f" ({tables.cost_text(row, results, _TIMES)} the cost)"
      for row in ensembles
    }
    paragraphs += [f"<p>{text}</p>", *_gains(ensembles, results, costs)]
  return "\n".join([*paragraphs, _verdict(soups, results)])


def _compared(rows: Sequence[tables.Row], results: Results) -> str:
  """Returns the opening paragraphs of a comparison."""
  others = [row for row in rows if row.kind != "best"]
  text = (
    f"<p>{len(rows)} models were evaluated; none was chosen or averaged. The "
    f"reference is <b>{html.escape(results.best)}</b>."
  )
  if not others or not any(s in results.splits for s in ("test", SHIFTS)):
    return f"{text}</p>"
  return "\n".join([f"{text} Against it:</p>", *_gains(others, results, {})])


def _places(results: Results) -> list[tuple[str, str]]:
  """Returns test and the mean over shifts, each with its name in a sentence."""
  shifts = f"the mean of {len(results.shifts)} shifts"
  if len(results.shifts) == 1:
    shifts = f"the shift {html.escape(results.shifts[0])}"
  return [("test", "test"), (SHIFTS, shifts)]


def _gains(rows, results: Results, notes: Mapping[str, str]) -> list[str]:
  """Lists gains over the best ingredient, such as "+0.4 points on test"."""
  items = []
  for row in rows:
    parts = []
    for split, words in _places(results):
      gain = row.gain(results, split)
      if gain is not None:
        points = tables.signed(gain, _MINUS)
        found = row.gain_interval(results, split)
        note = " (worse)" if points.startswith(_MINUS) else ""
        if found:
          note = f" (95 % interval {_ends(found)}"
          note += ")" if found.is_shown else ": no clear difference)"
        parts.append(f"{points}{'' if parts else ' points'} on {words}{note}")
    items.append(
      f"<li>{html.escape(row.label)}{notes.get(row.models[0], '')}: "
      f"{', '.join(parts) or 'not evaluated on test or shifts'}.</li>"
    )
  return ["<ul>", *items, "</ul>"]


def _ends(gain: results_lib.Gain) -> str:
  ends = f"{gain.low:.1f} to {gain.high:.1f}"
  return ends.replace("-", _MINUS)


def _verdict(rows, results: Results) -> str:
  """States whether any soup won, and warns about chance and single runs."""
  sentences = []
  for split, words in (("test", "on test"), (SHIFTS, "under shift")):
    gains = [row.gain(results, split) for row in rows if row.kind == "soup"]
    gains = [g for g in gains if g is not None]
    if gains and max(gains) <= 0:
      sentences.append(f"No soup beats the best ingredient {words}.")
    intervals = [r.gain_interval(results, split) for r in rows]
    if gains and all(intervals) and not any(g.low > 0 for g in intervals):
      sentences.append(f"No interval of a soup's gain {words} lies above zero.")
  if interval := tables.interval(results, results.best, "test"):
    n = results.images(results.best, "test")
    sentences.append(
      f"With {n:,} test images, one image is {100 / n:.2g} points and the "
      "95 % interval of the best ingredient is "
      f"{interval[0]:.1f} to {interval[1]:.1f} %: differences on test that are "
      "much smaller than this interval may be due to chance."
    )
  sentences.append(f"<b>{html.escape(tables.one_run_note(results))}</b>")
  return f"<p>{' '.join(sentences)}</p>"


# --- The tables ---------------------------------------------------------------


def results_section(results: Results, sizes: Mapping[str, int]) -> str:
  """Returns the table of all splits, with a note on how to read it."""
  columns = [s for s in ("minival", "test") if s in results.splits]
  # The mean over shifts comes first: after many shifts, it would be overlooked.
  columns += [SHIFTS, *results.shifts] if results.shifts else []
  columns += results.others
  rows = tables.rows(results, sizes)
  single = [
    row for row in rows if row.kind not in ("mean", "ingredient", "ensemble")
  ]

  def top(split):
    values = (row.accuracy(results, split) for row in single)
    return max((v for v in values if v is not None), default=None)

  best = {split: top(split) for split in columns}
  head = [_column_head(results, split) for split in columns]
  body = []
  for row in rows:
    cells = "".join(_cell(row, results, s, best[s]) for s in columns)
    body.append(
      f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>'
      f"<td>{tables.cost_text(row, results, _TIMES)}</td>{cells}</tr>"
    )
  table = tables.as_html(["model", "cost", *head], body)
  protocols = html.escape(
    f"{results.choices.about_outputs} {results.about_mce}"
  )
  notes = f"{_table_note(results)} {protocols}"
  return f"{table}\n<p><small>{notes.strip()}</small></p>"


def _column_head(results, split) -> str:
  if split == SHIFTS:
    return "mean of<br>shifts"
  counts = {results.images(model, split) for model in results.kinds} - {None}
  # If models were evaluated on different numbers of images, none is printed.
  n = f"<br><small>n = {counts.pop()}</small>" if len(counts) == 1 else ""
  return f"{html.escape(split)}{n}"


def _cell(row, results, split, best) -> str:
  kind = ' class="mean"' if split == SHIFTS else ""
  value = row.accuracy(results, split)
  if value is None:
    return f"<td{kind}>{_DASH}</td>"
  text, note = f"{value:.1f}", ""
  if row.kind not in ("mean", "ensemble") and value == best:
    text = f"<b>{text}</b>"
  if row.kind == "mean":
    spread = row.spread(results, split)
    note = "" if spread is None else f"sd {spread:.1f}"
  elif interval := tables.interval(results, row.models[0], split):
    note = _DASH.join(f"{end:.1f}" for end in interval)
  if found := row.gain_interval(results, split):
    note += "<br>" * bool(note)
    note += tables.gain_text(row, results, split, _MINUS)
    note += "" if found.p is None else f", p {found.p:.2g}"
  return f"<td{kind}>{text}{f'<small>{note}</small>' if note else ''}</td>"


def _table_note(results) -> str:
  count, reference = (
    len(results.models("ingredient")),
    results.choices.reference,
  )
  other = "reference" if reference else "best ingredient"
  spread = (
    " (for the mean ingredient: the standard deviation over the "
    f"{count} ingredients)"
  )
  text = (
    "Percent correct; below it, the 95 % Clopper-Pearson interval of that "
    f"model on those images{spread * (not reference)}. Means over shifts have "
    "none, since shifts may be made from the same images. No interval here "
    "covers the variation between runs. All models see the same images, so "
    "overlapping intervals do not show that two models are equal. Last line "
    f"of a cell: points above the {other}, with the 95 % interval of the "
    "paired bootstrap over images and the p-value of McNemar's exact test; ~ "
    "marks an interval that contains zero. Bold: the best value in a column "
    "among rows with the cost of one model. Cost: models run per image."
  )
  if reference:
    return text
  return (
    f"{text} Nothing was chosen on test or on a shift. The best ingredient and "
    "the soups were chosen or trained on minival, so that column is optimistic."
  )


def calibration_section(results: Results, sizes: Mapping[str, int]) -> str:
  """Returns the table of calibration errors and losses; "" if there are none.

  The columns are minival, test and the mean over shifts.
  """
  metrics = {
    "ece": "ECE, %",
    "ece_t": "ECE, %, with T",
    "loss": "loss",
    "loss_t": "loss with T",
  }
  places = [s for s in ("minival", "test") if s in results.splits]
  places += [SHIFTS] if results.shifts else []

  def value(model, split, metric):
    splits = results.shifts if split == SHIFTS else [split]
    cells = [results.cells.get((model, s, metric)) for s in splits]
    if None in cells:
      return None
    return math.fsum(c[0] for c in cells) / len(cells)

  body = []
  for row in tables.rows(results, sizes):
    if row.kind == "mean":
      continue
    model, cells = row.models[0], []
    for split in places:
      for metric in metrics:
        found = value(model, split, metric)
        if found is None:
          cells.append(_DASH)
        elif metric.startswith("ece"):
          cells.append(f"{100 * found:.1f}")
        else:
          cells.append(f"{found:.3f}")
    if all(cell == _DASH for cell in cells[::4]):
      continue
    body.append(
      f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>'
      + "".join(f"<td>{cell}</td>" for cell in cells)
      + "</tr>"
    )
  if not body:
    return ""
  head = [
    f"{'mean of shifts' if split == SHIFTS else split}<br>{title}"
    for split in places
    for title in metrics.values()
  ]
  note = (
    "ECE: expected calibration error, with 15 bins of equally many images. "
    "With T: after dividing the logits by a temperature, a single number per "
    "model that minimises the loss on minival."
  )
  if not results.choices.reference:
    note += (
      " Averaging weights does not improve calibration as ensembling does "
      "(arXiv 2203.05482, appendix B)."
    )
  table = tables.as_html(["model", *head], body)
  return f"{table}\n<p><small>{note}</small></p>"


def ingredients_section(
  results: Results,
  greedy: Mapping[str, Mapping[str, Any]],
  hyperparameters: Mapping[str, Mapping[str, Any]],
) -> str:
  """Returns the table of ingredients, best on minival first."""
  titles = {s: s for s in ("minival", "test") if s in results.splits}
  titles |= {SHIFTS: "mean of shifts"} if results.shifts else {}
  models = results.models("ingredient")
  keys = list(dict.fromkeys(k for v in hyperparameters.values() for k in v))
  # Columns with a single value would distract from the others.
  fixed = {}
  for key in keys if len(models) > 1 else ():
    known = [hyperparameters.get(m, {}) for m in models]
    values = [v[key] for v in known if key in v]
    if len(values) == len(models) and all(v == values[0] for v in values):
      fixed[key] = values[0]
  keys = [key for key in keys if key not in fixed]
  selected = {
    f"in {tables.label(name, 'soup', results).lower()}": set(trace["selected"])
    for name, trace in greedy.items()
  }

  def rank(model):
    value = results.accuracy(model, "minival")
    return model != results.best, value is None, -(value or 0)

  def number(value, decimals):
    return _DASH if value is None else f"{value:.{decimals}f}"

  def plain(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)

  body = []
  for model in sorted(models, key=rank):
    loss, _ = results.cells.get((model, "minival", "loss"), (None, 0))
    values = hyperparameters.get(model, {})
    cells = [
      *("yes" if model in names else "" for names in selected.values()),
      *(number(results.accuracy(model, split), 1) for split in titles),
      number(loss, 3),
      *(plain(values[k]) if k in values else "" for k in keys),
    ]
    kind = "best" if model == results.best else "ingredient"
    body.append(
      f'<tr class="{kind}"><th scope="row">{html.escape(model)}</th>'
      + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
      + "</tr>"
    )
  columns = ["model", *selected, *titles.values(), "minival loss", *keys]
  # Long names of hyperparameters may break at their underscores.
  head = [html.escape(str(h)).replace("_", "_<wbr>") for h in columns]
  table = tables.as_html(head, body)
  if not fixed:
    return table
  same = ", ".join(f"{key} {plain(value)}" for key, value in fixed.items())
  note = html.escape(f"The same for all ingredients: {same}.")
  return f"{table}\n<p><small>{note}</small></p>"
