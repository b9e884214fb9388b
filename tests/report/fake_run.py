# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A made-up finished run, for tests of the report."""

import json
import pathlib

SHIFTS = ("rotate", "noise", "writers")


def record(model, kind, split, value, n=200, metric="prec@1"):
  return {
    "model": model,
    "kind": kind,
    "dataset": f"digits/{split}",
    "metric": metric,
    "value": value,
    "n": n,
  }


def records_of(model, kind, minival, test, shift, shifts=SHIFTS, loss=0.1):
  accuracies = {"minival": minival, "test": test}
  accuracies |= {s: shift + 0.01 * i for i, s in enumerate(shifts)}
  return [record(model, kind, s, a) for s, a in accuracies.items()] + [
    record(model, kind, s, loss, metric="loss") for s in accuracies
  ]


def records(size=4, shifts=SHIFTS):
  """Records of all kinds; the best ingredient is ingredient_01."""
  out = records_of("pretrained", "pretrained", 0.93, 0.92, 0.80, shifts)
  for i in range(size):
    minival = 0.97 if i == min(1, size - 1) else 0.95
    name = f"ingredient_{i:02d}"
    out += records_of(name, "ingredient", minival, 0.95, 0.75, shifts)
  for name, test, shift in (
    ("uniform", 0.94, 0.79),
    ("greedy", 0.96, 0.80),
    ("learned_model", 0.955, 0.785),
    ("learned_layer", 0.965, 0.775),
  ):
    out += records_of(name, "soup", 0.975, test, shift, shifts)
  for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
    name = f"wise_ft_{alpha:.2f}"
    out += records_of(name, "interpolation", 0.95, 0.94, 0.78, shifts)
  for name in ("ensemble", "greedy_ensemble"):
    out += records_of(name, "ensemble", 0.98, 0.97, 0.82, shifts)
  return out


def write_results(workdir, lines):
  path = pathlib.Path(workdir) / "results.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def _write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def greedy_trace(names, scores=None):
  scores = scores or [0.97 + 0.005 * (-1) ** i for i in range(len(names))]
  history, bar, selected = [], None, []
  for name, score in zip(names, scores):
    accepted = bar is None or score >= bar
    selected += [name] if accepted else []
    history.append(
      {
        "name": name,
        "score": score,
        "bar": bar,
        "accepted": accepted,
        "reason": "",
        "size": len(selected),
      }
    )
    bar = score if accepted else bar
  return {
    "accept": "ge",
    "min_delta": 0.0,
    "selected": selected,
    "history": history,
  }


def learned_trace(names, groups=("model",)):
  row = [(i + 1) / sum(range(len(names) + 1)) for i in range(len(names))]
  return {
    "names": names,
    "alphas": {g: row for g in groups},
    "beta": 0.1,
    "history": [{"step": 0, "loss": 1.0, "beta": 0.0}],
  }


def write_run(workdir, size=4, shifts=SHIFTS):
  """Writes a whole workdir."""
  workdir = pathlib.Path(workdir)
  write_results(workdir, records(size, shifts))
  names = [f"ingredient_{i:02d}" for i in range(size)]
  soups = workdir / "soups"
  _write(soups / "greedy/greedy.json", greedy_trace(names))
  _write(soups / "learned_model/learned.json", learned_trace(names))
  _write(
    soups / "learned_layer/learned.json",
    learned_trace(names, ("embedding", "blocks/0", "blocks/1", "head")),
  )
  for i, name in enumerate(names):
    _write(
      workdir / "ingredients" / name / "hyperparameters.json",
      {"learning_rate": 0.001 * (i + 1), "augment": "none"},
    )
  _write(workdir / "config.json", {"seed": 0, "sweep": {"size": size}})
  return workdir
