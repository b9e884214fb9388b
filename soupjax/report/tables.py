# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of results, and the table as plain text."""

from collections.abc import Mapping
import dataclasses
import math
import statistics
import textwrap

from soupjax.report.results import SHIFTS, Results, in_words

LABELS = {
  "pretrained": "Initial model",
  "uniform": "Uniform soup",
  "greedy": "Greedy soup",
  "learned_model": "Learned soup, per model",
  "learned_layer": "Learned soup, per layer",
  "ensemble": "Ensemble of all",
  "greedy_ensemble": "Greedy ensemble",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One row of the table.

  Attributes:
    label: its name in the table.
    models: the model; all ingredients for their mean.
    kind: "mean", "best" or one of `results.KINDS`.
    cost: inference cost, in models run per image; None if unknown.
  """

  label: str
  models: tuple[str, ...]
  kind: str
  cost: int | None = 1

  def accuracy(self, results: Results, split: str) -> float | None:
    """Accuracy in percent, or None; a mean is over the models that have it."""
    values = [results.accuracy(m, split) for m in self.models]
    values = [v for v in values if v is not None]
    return math.fsum(values) / len(values) if values else None

  def spread(self, results: Results, split: str) -> float | None:
    """Standard deviation over several models, in points."""
    values = [results.accuracy(m, split) for m in self.models]
    values = [v for v in values if v is not None]
    return statistics.stdev(values) if len(values) > 1 else None


def label(model: str, kind: str, results: Results) -> str:
  """Names an initial model, a soup or an ensemble in words."""
  choices = results.choices
  if model == "pretrained" and choices.initial_head:
    return f"Initial: {choices.initial_head}"
  by_accuracy = set(choices.greedy.values()) == {"prec@1"}
  if model in choices.greedy and not by_accuracy:
    return f"Greedy soup by {in_words(choices.greedy[model])}"
  return LABELS.get(model, f"{model} ({kind})")


def is_labelled(model: str, results: Results) -> bool:
  """Whether `label` has words for a model instead of its name."""
  return model in LABELS or model in results.choices.greedy


def rows(results: Results, sizes: Mapping[str, int] | None = None) -> list[Row]:
  """The rows of the table, from the pretrained model to the ensembles.

  Args:
    results: the results.
    sizes: members of an ensemble, by its name, where known. The one called
      "ensemble" has all ingredients.
  """
  ingredients = results.models("ingredient")
  sizes = {"ensemble": len(ingredients), **(sizes or {})}
  out = [
    Row(label=label(m, "pretrained", results), models=(m,), kind="pretrained")
    for m in _ordered(results.models("pretrained"), results)
  ]
  out.append(mean_row(results))
  metrics, best = results.choices.metrics, results.choices.best
  bests = {results.best: metrics[0]}
  for metric in metrics[1:]:
    if best.get(metric) in results.kinds:
      bests.setdefault(best[metric], metric)
  for model, metric in bests.items():
    by = "" if metrics == ("prec@1",) else f" by {in_words(metric)}"
    kind = "best" if model == results.best else "ingredient"
    out.append(
      Row(label=f"Best ingredient{by} ({model})", models=(model,), kind=kind)
    )
  for model in _ordered(results.models("soup"), results):
    out.append(
      Row(label=label(model, "soup", results), models=(model,), kind="soup")
    )
  if 0.5 in results.wise_ft:
    out.append(
      Row(
        label="WiSE-FT, alpha 0.5",
        models=(results.wise_ft[0.5],),
        kind="interpolation",
      )
    )
  for model in _ordered(results.models("ensemble"), results):
    out.append(
      Row(
        label=label(model, "ensemble", results),
        models=(model,),
        kind="ensemble",
        cost=sizes.get(model),
      )
    )
  return out


def mean_row(results: Results) -> Row:
  """Returns the row of the mean over all ingredients."""
  ingredients = tuple(results.models("ingredient"))
  return Row(label="Mean ingredient", models=ingredients, kind="mean")


def _ordered(models: list[str], results: Results) -> list[str]:
  """Sorts models with a label first, in the order of the labels."""
  order = ["pretrained", "uniform", *results.choices.greedy, *LABELS]
  known = [m for m in dict.fromkeys(order) if m in models]
  return known + [m for m in models if m not in known]


def one_run_note(results: Results) -> str:
  """Says that one run proves little, and where there is more evidence."""
  text = (
    "This is one run, and one run proves little: another seed can turn the "
  )
  text += "order of two close models around."
  if results.dataset.partition(":")[0] == "digits_row":
    return (
      f"{text} The table over 20 seeds, with paired differences and intervals, "
      "is in benchmarks/README.md."
    )
  return f"{text} Repeat it with other seeds before you rely on a difference."


def cost_text(row: Row, results: Results, times: str = "x") -> str:
  """Inference cost, like "16x"; a bound if it is not known."""
  if row.cost is None:
    return f"up to {len(results.models('ingredient'))}{times}"
  return f"{row.cost}{times}"


def clopper_pearson(
  correct: int, n: int, level: float = 0.95
) -> tuple[float, float]:
  """The exact binomial confidence interval of a fraction.

  Args:
    correct: successes.
    n: trials, at least 1.
    level: coverage, above 0 and below 1.

  Returns:
    The two ends, fractions.

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
  from scipy import stats  # It takes long to import.

  tail = (1 - level) / 2
  low = stats.beta.ppf(tail, correct, n - correct + 1) if correct else 0.0
  high = (
    stats.beta.ppf(1 - tail, correct + 1, n - correct) if correct < n else 1.0
  )
  return float(low), float(high)


def signed(points: float, minus: str = "-") -> str:
  """A difference with its sign and one decimal; no sign for zero.

  Examples:
    >>> signed(1.24), signed(-0.5), signed(-0.04)
    ('+1.2', '-0.5', '0.0')
  """
  text = f"{points:+.1f}"
  return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", minus)


def results_table(
  results: Results, sizes: Mapping[str, int] | None = None
) -> str:
  """The results as plain text of at most 100 columns, in percent.

  Args:
    results: the results.
    sizes: members of an ensemble, by its name, where known.

  Returns:
    One line per row of `rows`: inference cost, accuracy on minival, test and
    the mean over shifts, and the differences on test and shifts from the best
    ingredient, in points. Ends without a newline.
  """
  width = 36
  best = Row(label="", models=(results.best,), kind="best")
  splits = ("minival", "test", SHIFTS)
  shifts = f"{len(results.shifts)} shifts"
  metrics = results.choices.metrics
  single = metrics == ("prec@1",)
  titles = ("cost", "minival", "test", shifts, "d(test)", "d(shifts)")
  lines = ["".join([" " * width, *(f"{t:>10}" for t in titles)])]
  lines.append("-" * len(lines[0]))
  for row in rows(results, sizes):
    values = [row.accuracy(results, s) for s in splits]
    cells = ["-" if v is None else f"{v:.1f}" for v in values]
    for value, split in zip(values[1:], splits[1:]):
      bar = best.accuracy(results, split)
      known = value is not None and bar is not None
      cells.append(signed(value - bar) if known else "-")
    name = "".join(c if c.isprintable() else "?" for c in row.label)
    name = name if len(name) <= width else name[: width - 3] + "..."
    cells = [cost_text(row, results), *cells]
    lines.append("".join([f"{name:<{width}}", *(f"{c:>10}" for c in cells)]))
  lines.append(lines[1])
  lines.append(
    "Percent correct. d: points above the best ingredient"
    + ("" if single else f" by {in_words(metrics[0])}")
    + ". Choices were made on"
    "\nminival, none on test. cost: models run per image."
  )
  lines += textwrap.wrap(one_run_note(results), 100)
  return "\n".join(line.rstrip() for line in lines)
