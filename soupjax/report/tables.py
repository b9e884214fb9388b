# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of results, and the table as plain text."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import statistics
import textwrap

from soupjax.report.results import SHIFTS, Gain, Results, in_words

LABELS = {
  "pretrained": "Initial model",
  "uniform": "Uniform soup",
  "greedy": "Greedy soup",
  "learned_model": "Learned soup, per model",
  "learned_layer": "Learned soup, per layer",
  "window": "Last checkpoints of a run",
  "ensemble": "Ensemble of all",
  "greedy_ensemble": "Greedy ensemble",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One row of the table.

  Attributes:
    label: name of the row in the table.
    models: the model, or all ingredients for their mean.
    kind: "mean", "best" or one of `results.KINDS`.
    cost: inference cost, in models run per image; None if unknown.
  """

  label: str
  models: tuple[str, ...]
  kind: str
  cost: int | None = 1

  def _values(self, results: Results, split: str) -> list[float]:
    values = (results.accuracy(m, split) for m in self.models)
    return [v for v in values if v is not None]

  def accuracy(self, results: Results, split: str) -> float | None:
    """Accuracy in percent, averaged over the models that have one, or None."""
    values = self._values(results, split)
    return math.fsum(values) / len(values) if values else None

  def spread(self, results: Results, split: str) -> float | None:
    """Standard deviation over the models, in points; None for fewer than 2."""
    values = self._values(results, split)
    return statistics.stdev(values) if len(values) > 1 else None

  def gain(self, results: Results, split: str) -> float | None:
    """Points above `results.best`, or None if either accuracy is missing."""
    best = results.accuracy(results.best, split)
    value = self.accuracy(results, split)
    return None if value is None or best is None else value - best

  def gain_interval(self, results: Results, split: str) -> Gain | None:
    """The recorded difference from `results.best`; None for the mean row."""
    if self.kind == "mean":
      return None
    return results.gains.get((self.models[0], split))


def label(model: str, kind: str, results: Results) -> str:
  """Returns the label of an initial model, soup, ensemble or other model."""
  choices = results.choices
  if model == "pretrained" and choices.initial_head:
    return f"Initial: {choices.initial_head}"
  if kind == "model":
    return model
  if model == "wise_ft":
    if _accuracy_chose(results) and results.best_wise_ft is not None:
      return f"WiSE-FT, alpha {results.best_wise_ft:g} (by minival)"
    return f"WiSE-FT, alpha by {in_words(choices.metrics[0])}"
  if model == "window" and choices.window:
    return choices.window
  by_accuracy = set(choices.greedy.values()) == {"prec@1"}
  if model in choices.greedy and not by_accuracy:
    return f"Greedy soup by {in_words(choices.greedy[model])}"
  return LABELS.get(model, f"{model} ({kind})")


def _accuracy_chose(results: Results) -> bool:
  """Whether accuracy chose the alpha of the soup "wise_ft"."""
  chosen = results.kinds.get("wise_ft") == "soup"
  return chosen and results.choices.metrics[0] == "prec@1"


def is_labelled(model: str, results: Results) -> bool:
  """Whether `label` describes a model in words, not by its name."""
  if results.kinds.get(model) == "model":
    return False
  names = (*LABELS, *results.choices.greedy, "wise_ft")
  return model in names


def rows(results: Results, sizes: Mapping[str, int] | None = None) -> list[Row]:
  """Returns the rows of the table, from the initial model to the ensembles.

  Args:
    results: the results.
    sizes: ensemble -> number of members, where known. By default, only that of
      "ensemble", which has all ingredients, is known.
  """
  if results.choices.reference:
    return _compared(results)
  mean, choices = mean_row(results), results.choices
  sizes = {"ensemble": len(mean.models), **(sizes or {})}

  def of_kind(kind):
    # Models with a label come first, in the order of the labels.
    names = ["pretrained", "uniform", *choices.greedy, *LABELS]
    names = dict.fromkeys([*names, *results.models(kind)])
    return [
      Row(
        label=label(model, kind, results),
        models=(model,),
        kind=kind,
        cost=sizes.get(model) if kind == "ensemble" else 1,
      )
      for model in names
      if results.kinds.get(model) == kind
    ]

  metrics = {results.best: choices.metrics[0]}
  for metric in choices.metrics[1:]:
    if choices.best.get(metric) in results.kinds:
      metrics.setdefault(choices.best[metric], metric)
  best = [
    Row(
      label=f"Best ingredient{choices.by(metric)} ({model})",
      models=(model,),
      kind="best" if model == results.best else "ingredient",
    )
    for model, metric in metrics.items()
  ]
  chosen = results.best_wise_ft
  middle = [
    Row(
      label=f"WiSE-FT, alpha {alpha:g}"
      + (" (by minival)" if alpha == chosen else ""),
      models=(model,),
      kind="interpolation",
    )
    for alpha, model in results.wise_ft.items()
    if (alpha == 0.5 or alpha == chosen)
    and not (alpha == chosen and _accuracy_chose(results))
  ]
  soups = of_kind("soup")
  return [
    *of_kind("pretrained"), mean, *best, *soups, *middle, *of_kind("ensemble")
  ]  # fmt: skip


def _compared(results: Results) -> list[Row]:
  """Returns the rows of a comparison, in the order of the file."""
  rows = []
  for model, kind in results.kinds.items():
    text = label(model, kind, results)
    if model == results.best:
      text, kind = f"{text} (reference)", "best"
    rows.append(Row(label=text, models=(model,), kind=kind))
  return rows


def mean_row(results: Results) -> Row:
  """Returns the row of the mean over all ingredients."""
  ingredients = tuple(results.models("ingredient"))
  return Row(label="Mean ingredient", models=ingredients, kind="mean")


def one_run_note(results: Results) -> str:
  """Returns a warning against relying on a single run."""
  text = (
    "This is one run, and one run proves little: another seed can reverse the "
    "order of two close models."
  )
  if results.dataset.partition(":")[0] == "digits_row":
    return (
      f"{text} The table over 20 seeds, with paired differences and intervals, "
      "is in benchmarks/README.md."
    )
  return f"{text} Repeat it with other seeds before you rely on a difference."


def cost_text(row: Row, results: Results, times: str = "x") -> str:
  """Returns the inference cost, such as "16x", or its upper bound."""
  if row.cost is None:
    return f"up to {len(results.models('ingredient'))}{times}"
  return f"{row.cost}{times}"


def interval(
  results: Results, model: str, split: str
) -> tuple[float, float] | None:
  """Returns the 95 % interval of an accuracy, in percent; None for means."""
  value, n = results.accuracy(model, split), results.images(model, split)
  is_mean = split == SHIFTS or split in results.choices.means
  if value is None or n is None or is_mean:
    return None
  low, high = clopper_pearson(round(value / 100 * n), n)
  return 100 * low, 100 * high


def clopper_pearson(
  correct: int, n: int, level: float = 0.95
) -> tuple[float, float]:
  """Returns the exact binomial confidence interval of a fraction.

  Args:
    correct: number of successes.
    n: number of trials, at least 1.
    level: coverage, above 0 and below 1.

  Returns:
    The two ends, as fractions.

  Raises:
    ValueError: if `correct` is not in 0..n, or n or level is out of range.

  Examples:
    >>> low, high = clopper_pearson(97, 100)
    >>> round(low, 3), round(high, 3)
    (0.915, 0.994)
  """
  if n < 1 or not 0 <= correct <= n or not 0 < level < 1:
    raise ValueError(
      "need 0 <= correct <= n, n >= 1 and 0 < level < 1, got "
      f"correct={correct}, n={n}, level={level}."
    )
  from scipy.stats import beta  # Slow to import.

  tail, wrong = (1 - level) / 2, n - correct
  low = beta.ppf(tail, correct, wrong + 1) if correct else 0.0
  high = beta.ppf(1 - tail, correct + 1, wrong) if wrong else 1.0
  return float(low), float(high)


def gain_text(row: Row, results: Results, split: str, minus: str = "-") -> str:
  """Formats a gain over the best ingredient: "~+0.5 [-0.1, 1.1]".

  "~" marks an interval that contains zero; "-" stands for an unknown gain.
  """
  gain, found = row.gain(results, split), row.gain_interval(results, split)
  if gain is None:
    return "-"
  text = signed(gain, minus)
  if found is None:
    return text
  ends = f"{found.low:.1f}, {found.high:.1f}".replace("-", minus)
  return f"{'' if found.is_shown else '~'}{text} [{ends}]"


def as_html(columns: Sequence[str], rows: Sequence[str]) -> str:
  """Returns an HTML table that the page's script can sort.

  Args:
    columns: titles, as HTML.
    rows: `tr` elements, as HTML.
  """
  head = "".join(f'<th scope="col">{title}</th>' for title in columns)
  return (
    f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
    + "\n".join(rows)
    + "\n</tbody></table></div>"
  )


def signed(points: float, minus: str = "-") -> str:
  """Formats a difference with its sign and one decimal; zero has no sign.

  Examples:
    >>> signed(1.24), signed(-0.5), signed(-0.04)
    ('+1.2', '-0.5', '0.0')
  """
  text = f"{points:+.1f}"
  return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", minus)


def results_table(
  results: Results, sizes: Mapping[str, int] | None = None
) -> str:
  """Formats the results as plain text of at most 100 columns, in percent.

  Args:
    results: the results.
    sizes: ensemble -> number of members, where known.

  Returns:
    One line per row of `rows`: inference cost; accuracy on minival, on test and
    as the mean over shifts; and the differences from the best ingredient on
    test and shifts, in points, with 95 % intervals where recorded. There is no
    newline at the end.
  """
  shifts = f"{len(results.shifts)} shifts"
  titles = ("cost", "minival", "test", shifts, "d(test)", "d(shifts)")
  widths = (8, 8, 6, 10, 21, 21) if results.gains else (10,) * 6
  width = 100 - sum(widths) if results.gains else 36

  def line(name, cells):
    return f"{name:<{width}}" + "".join(
      f"{cell:>{w}}" for cell, w in zip(cells, widths)
    )

  lines = [line("", titles)]
  lines.append("-" * len(lines[0]))
  for row in rows(results, sizes):
    values = [row.accuracy(results, s) for s in ("minival", "test", SHIFTS)]
    cells = [
      cost_text(row, results),
      *("-" if v is None else f"{v:.1f}" for v in values),
      *(gain_text(row, results, s) for s in ("test", SHIFTS)),
    ]
    name = "".join(c if c.isprintable() else "?" for c in row.label)
    name = name if len(name) <= width else name[: width - 3] + "..."
    lines.append(line(name, cells))
  choices = results.choices
  notes = (
    "Percent correct. d: points above the best ingredient"
    f"{choices.by(choices.metrics[0])}{', ' * bool(results.gains)}"
  )
  if results.gains:
    notes += (
      f"{results.best}, with the 95 % interval over images (paired bootstrap). "
      "~: the interval contains zero, so there is no clear difference"
    )
  notes += ". All choices were made on minival. cost: models run per image."
  lines += [
    lines[1],
    *textwrap.wrap(notes, 100),
    *textwrap.wrap(choices.about_outputs, 100),
    *textwrap.wrap(results.about_mce, 100),
    *textwrap.wrap(one_run_note(results), 100),
  ]
  return "\n".join(line.rstrip() for line in lines)
