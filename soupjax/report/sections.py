# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Texts and tables of the page, as HTML computed from the numbers.

All texts from files go through `html.escape`.
"""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from soupjax.report import tables
from soupjax.report.results import SHIFTS, Results, in_words

_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"

LEARNED_CAPTION = (
  "Coefficients that gradient descent on minival gave to each ingredient "
  "(columns), for the whole model or for each layer (rows); each row sums to "
  "1. The mark 1/K on the colour bar is the uniform soup, where they start."
)
WISE_FT_CAPTION = (
  "Accuracy of (1 \N{MINUS SIGN} \N{GREEK SMALL LETTER ALPHA}) initial + "
  "\N{GREEK SMALL LETTER ALPHA} best ingredient, weight by weight. The panels "
  "have different scales. Grey: 95 % Clopper-Pearson intervals; the mean over "
  "shifts has none, as shifts share images. No \N{GREEK SMALL LETTER ALPHA} "
  "was chosen by this figure."
)


def plane_caption(results: Results) -> str:
  """Describes the plane of test against shifts."""
  return (
    "Each point is one model: accuracy on test against the mean accuracy over "
    f"{html.escape(', '.join(results.shifts))}. Up and to the right is better. "
    "The line is WiSE-FT, from the initial model to the best ingredient. "
    "Ensembles run all their members on every image; everything else costs "
    "one model."
  )


def greedy_caption(greedy: Mapping[str, Any]) -> str:
  """Describes the rule by which candidates were accepted."""
  rule = {
    "ge": "at least as high as",
    "gt": "higher than",
  }.get(greedy.get("accept"), "high enough against")
  negated = greedy["history"] and greedy["history"][0].get("score", 0) < 0
  caption = (
    "Held-out score of the soup with each candidate added"
    + (" (the metric with a minus sign: higher is better)" if negated else "")
    + ". A candidate stays "
    f"in if that score is {rule} that of the soup so far (the line). "
    f"{len(greedy['selected'])} of {len(greedy['history'])} were kept."
  )
  if any(d.get("score") is None for d in greedy["history"]):
    caption += (
      " Arrows: rejected before all images were evaluated; the bar is the best "
      "score that was still possible."
    )
  return caption


def summary(
  results: Results,
  sizes: Mapping[str, int],
  greedy: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
  """The paragraphs at the top: gains and losses in numbers."""
  every = tables.rows(results, sizes)
  best = next(r for r in every if r.kind == "best")
  count = len(results.models("ingredient"))
  models = "One model was" if count == 1 else f"{count} models were"
  known = results.models("pretrained")
  start = " from one initial model" if known else ""
  metrics = results.choices.metrics
  by = "" if metrics == ("prec@1",) else f" by {in_words(metrics[0])}"
  by = html.escape(by)
  choice = "It" if count == 1 else f"The best of them{by} on minival"
  soups = [r for r in every if r.kind in ("soup", "interpolation")]
  against = " Against it, at the same inference cost:" if soups else ""
  out = [
    f"<p>{models} fine-tuned{start}. {choice}, "
    f"<b>{html.escape(results.best)}</b>, has {_levels(best, results)}."
    f"{against}</p>"
  ]
  kept = {
    name: f" ({len(trace['selected'])} models)"
    for name, trace in (greedy or {}).items()
  }
  items = [
    f"<li>{html.escape(row.label)}{kept.get(row.models[0], '')}: "
    f"{_against(row, best, results)}.</li>"
    for row in soups
  ]
  out += ["<ul>", *items, "</ul>"] if items else []
  items = [
    f"<li>{html.escape(row.label)} "
    f"({tables.cost_text(row, results, _TIMES)} the cost): "
    f"{_against(row, best, results)}.</li>"
    for row in every
    if row.kind == "ensemble"
  ]
  if items:
    text = "Ensembles, which run all their members on every image:"
    out += [f"<p>{text}</p>", "<ul>", *items, "</ul>"]
  out.append(_verdict(every, best, results))
  return "\n".join(p for p in out if p)


def _shifts(results: Results) -> str:
  if len(results.shifts) == 1:
    return f"the shift {html.escape(results.shifts[0])}"
  return f"the mean of {len(results.shifts)} shifts"


def _levels(row: tables.Row, results: Results) -> str:
  parts = [
    f"{value:.1f} % on {place}"
    for split, place in (("test", "test"), (SHIFTS, _shifts(results)))
    if (value := row.accuracy(results, split)) is not None
  ]
  return " and ".join(parts) or "no accuracy on test or shifts"


def _difference(row, best, results, split) -> float | None:
  value, bar = row.accuracy(results, split), best.accuracy(results, split)
  return None if value is None or bar is None else value - bar


def _against(row, best, results) -> str:
  """Differences in words, such as "0.4 points lower on test"."""
  parts = []
  for split, place in (("test", "test"), (SHIFTS, _shifts(results))):
    gain = _difference(row, best, results, split)
    if gain is not None:
      points = tables.signed(gain, _MINUS)
      worse = " (worse)" if points.startswith(_MINUS) else ""
      unit = "" if parts else " points"
      parts.append(f"{points}{unit} on {place}{worse}")
  return ", ".join(parts) or "not evaluated on test or shifts"


def _verdict(every, best, results) -> str:
  """Says whether any soup won, and how little one run proves."""
  out = []
  for split, place in (("test", "on test"), (SHIFTS, "under shift")):
    gains = [
      _difference(row, best, results, split)
      for row in every
      if row.kind == "soup"
    ]
    gains = [g for g in gains if g is not None]
    if gains and max(gains) <= 0:
      out.append(f"No soup beats the best ingredient {place}.")
  if interval := _interval(results, results.best, "test"):
    n = results.images(results.best, "test")
    out.append(
      f"With {n} test images, one image is {100 / n:.2g} points and the 95 % "
      "interval of the best ingredient is "
      f"{interval[0]:.1f} to {interval[1]:.1f} %: differences on test that "
      "are small against that may be chance."
    )
  out.append(f"<b>{html.escape(tables.one_run_note(results))}</b>")
  return f"<p>{' '.join(out)}</p>"


def _interval(results, model, split) -> tuple[float, float] | None:
  """95 % interval in percent; None for a mean over shifts."""
  value, n = results.accuracy(model, split), results.images(model, split)
  if value is None or n is None:
    return None
  low, high = tables.clopper_pearson(round(value / 100 * n), n)
  return 100 * low, 100 * high


def results_section(results: Results, sizes: Mapping[str, int]) -> str:
  """The table of all splits, and how to read it."""
  splits = [s for s in ("minival", "test") if s in results.splits]
  splits += results.shifts
  columns = [*splits, SHIFTS] if results.shifts else splits
  every = tables.rows(results, sizes)
  tops = {s: _top(every, results, s) for s in columns}
  head = "".join(_column_head(results, s) for s in columns)
  body = []
  for row in every:
    cost = tables.cost_text(row, results, _TIMES)
    cells = "".join(_cell(row, results, s, tops[s]) for s in columns)
    body.append(
      f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>'
      f"<td>{cost}</td>{cells}</tr>"
    )
  table = _table(f'<th scope="col">cost</th>{head}', body)
  return f"{table}\n<p><small>{_table_note(results)}</small></p>"


def _column_head(results, split) -> str:
  if split == SHIFTS:
    return '<th scope="col" class="mean">mean of<br>shifts</th>'
  counts = {
    results.images(m, split) for m in results.kinds if results.images(m, split)
  }
  # Not one number if models saw different images: then none is printed.
  n = f"<br><small>n = {counts.pop()}</small>" if len(counts) == 1 else ""
  return f'<th scope="col">{html.escape(split)}{n}</th>'


def _top(every, results, split) -> float | None:
  """The best value that one model at the cost of one model has."""
  single = ("pretrained", "best", "soup", "interpolation")
  values = [r.accuracy(results, split) for r in every if r.kind in single]
  return max((v for v in values if v is not None), default=None)


def _cell(row, results, split, top) -> str:
  kind = ' class="mean"' if split == SHIFTS else ""
  value = row.accuracy(results, split)
  if value is None:
    return f"<td{kind}>\N{EN DASH}</td>"
  text = f"{value:.1f}"
  if row.kind not in ("mean", "ensemble") and value == top:
    text = f"<b>{text}</b>"
  if row.kind == "mean":
    spread = row.spread(results, split)
    note = "" if spread is None else f"sd {spread:.1f}"
  elif interval := _interval(results, row.models[0], split):
    note = "\N{EN DASH}".join(f"{end:.1f}" for end in interval)
  else:
    note = ""
  return f"<td{kind}>{text}{f'<small>{note}</small>' if note else ''}</td>"


def _table_note(results) -> str:
  count = len(results.models("ingredient"))
  return (
    "Percent correct; below it the 95 % Clopper-Pearson interval of that one "
    "model on those images (for the mean ingredient: the standard deviation "
    f"over the {count} ingredients). Means over shifts have no interval, as "
    "shifts may be made of the same images; neither do the intervals say how "
    "much another run would differ. Models share images, so two intervals "
    "that overlap do not show that two models are equal. Bold: the best value "
    "in a column at the cost of one model. Cost: models run per image. "
    "Nothing was chosen on test or on a shift. Minival is what the best "
    "individual and the soups were chosen or trained on, so its column is "
    "optimistic."
  )


def ingredients_section(
  results: Results,
  greedy: Mapping[str, Mapping[str, Any]],
  hyperparameters: Mapping[str, Mapping[str, Any]],
) -> str:
  """All ingredients, best on minival first, with their hyperparameters."""
  splits = [s for s in ("minival", "test") if s in results.splits]
  splits += [SHIFTS] if results.shifts else []
  keys = list(dict.fromkeys(k for v in hyperparameters.values() for k in v))
  selected = {
    f"in {tables.label(name, 'soup', results).lower()}": set(trace["selected"])
    for name, trace in greedy.items()
  }

  def rank(model):
    value = results.accuracy(model, "minival")
    return model != results.best, value is None, -(value or 0)

  loss = {
    model: results.cells.get((model, "minival", "loss"), (None,))[0]
    for model in results.models("ingredient")
  }
  body = []
  for model in sorted(results.models("ingredient"), key=rank):
    values = [results.accuracy(model, s) for s in splits]
    cells = ["yes" if model in names else "" for names in selected.values()]
    cells += ["\N{EN DASH}" if v is None else f"{v:.1f}" for v in values]
    cells.append("\N{EN DASH}" if loss[model] is None else f"{loss[model]:.3f}")
    own = hyperparameters.get(model, {})
    cells += [_plain(own[k]) if k in own else "" for k in keys]
    kind = "best" if model == results.best else "ingredient"
    body.append(
      f'<tr class="{kind}"><th scope="row">{html.escape(model)}</th>'
      + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
      + "</tr>"
    )
  titles = {"minival": "minival", "test": "test", SHIFTS: "mean of shifts"}
  heads = [*selected, *(titles[s] for s in splits), "minival loss", *keys]
  head = "".join(
    # Long names of hyperparameters may break at their underscores.
    f'<th scope="col">{html.escape(str(h)).replace("_", "_<wbr>")}</th>'
    for h in heads
  )
  return _table(head, body)


def _plain(value: Any) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(head: str, body: Sequence[str]) -> str:
  return (
    '<div class="wide"><table>\n<thead><tr><th scope="col">model</th>'
    f"{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table>"
    "</div>"
  )
