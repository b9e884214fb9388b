# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The searches of `sj.search` on tasks made from digits."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import data, files, report
from soupjax.checkpoints.task_vector import TaskVector
from soupjax.data.variants import VARIANTS
from soupjax.evaluators import Classification
from soupjax.soups import search as sj_search
from soupjax.soups.average import uniform_soup
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.learned.soup import LearnedSoup
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.adamerging import adamerging
from soupjax.tasks.digit_tasks import DigitTasks
from soupjax.tasks.pretrain import probed

PyTree = Any
# Model -> dataset -> accuracy.
Judged = dict[str, dict[str, float]]


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Runs the searches that a config names, or what is left of them.

  Args:
    config: as in configs/search.py.
    path: the directory of the run. Every search leaves `search/NAME.json` (all
      candidates, and the accuracy of what was chosen), a picture in `figures/`,
      and rows in `results.jsonl`.
    dry_run: prints the config and stops; touches no file.

  Returns:
    The path of `results.jsonl`; None after a dry run.

  Raises:
    ValueError: if the directory holds another run, or the config is bad.
  """
  check_config(config)
  if dry_run:
    print(json.dumps(config_lib.to_dict(config), indent=2))
    return None
  splits = data.load_digits(
    seed=config.seed,
    num_train=config.data.num_train,
    num_minival=config.data.num_minival,
  )
  workdir = workdir_lib.open_workdir(path, config)
  with workdir_lib.locked(workdir):
    tasks = DigitTasks(config, splits, workdir)
    rows = []
    for name in config.searches:
      record = workdir / "search" / f"{name}.json"
      if not record.exists():
        record.parent.mkdir(exist_ok=True)
        searches, judged = SEARCHES[name](tasks)
        _draw(workdir, searches)
        files.write_json(
          record, {"searches": _plain(searches), "judged": judged}
        )
      judged = files.read_json(record)["judged"]
      rows += [
        {
          "search": name,
          "model": model,
          "dataset": dataset,
          "metric": "prec@1",
          "value": value,
        }
        for model, values in judged.items()
        for dataset, value in values.items()
      ]
      print(f"\n{name}, accuracy on test\n{report.search_table(judged)}")
    results = workdir / "results.jsonl"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files.write_text(results, lines)
  return results


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks what would otherwise fail after minutes of work.

  Raises:
    ValueError: naming the key.
  """
  unknown = set(config.searches) - set(SEARCHES)
  if unknown or not config.searches:
    raise ValueError(
      f"searches must be some of {sorted(SEARCHES)}, got "
      f"{tuple(config.searches)}."
    )
  for key in ("pretrain.tasks", "search.auxiliary"):
    parent, _, leaf = key.partition(".")
    if not config[parent][leaf] or set(config[parent][leaf]) - set(VARIANTS):
      raise ValueError(
        f"{key} must be some of {sorted(VARIANTS)}, got "
        f"{tuple(config[parent][leaf])}."
      )
  if not 1 <= config.data.num_pool_train < config.data.num_train:
    raise ValueError(
      f"data.num_pool_train must be between 1 and num_train - 1 = "
      f"{config.data.num_train - 1}, got {config.data.num_pool_train}."
    )
  if config.search.average not in ("greedy", "uniform"):
    raise ValueError(
      "search.average must be 'greedy' or 'uniform', got "
      f"{config.search.average!r}."
    )
  if config.search.budget < config.search.points or config.search.points < 2:
    raise ValueError(
      f"search.points={config.search.points} must be at least 2, and no more "
      f"than search.budget={config.search.budget}."
    )


# --- The searches. Each sees minival alone; test is judged after its end. ----


def wise_ft(lab: DigitTasks):
  """From pretrained to fine-tuned on upright; alpha from minival."""
  splits, finetuned = lab.splits, lab.finetuned("upright", ["upright"])
  evaluations = {d.name.removeprefix("digits/"): d for d in splits.evaluations}
  judges = {
    name: lab.evaluator(d, ["upright"]) for name, d in evaluations.items()
  }
  minival = judges.pop("minival")
  found = sj_search.wise_ft_curve(
    lab.encoder,
    finetuned,
    lambda encoder: {"minival": minival(encoder)["upright"]},
    _grid(lab),
  )

  def evaluate(encoder):
    return {name: judge(encoder)["upright"] for name, judge in judges.items()}

  # The choice is made: now the whole curve on the others, for the picture.
  blend = sj_search.Blend(lab.encoder, [finetuned])
  history = [
    dataclasses.replace(
      c, scores={**c.scores, **evaluate(blend(c.coefficients))}
    )
    for c in found.history
  ]
  found = dataclasses.replace(found, history=tuple(history))
  models = {
    "pretrained": lab.encoder,
    "fine-tuned": finetuned.load(),
    "alpha 0.5": blend([0.5]),
    "alpha from minival": found.params,
  }
  judged = {}
  for name, model in models.items():
    scores = evaluate(model)
    test = scores.pop("test")
    judged[name] = {
      "test": test,
      "8 shifts": float(np.mean([*scores.values()])),
    }
  return {"wise_ft": found}, judged


def addition(lab: DigitTasks):
  """One model for three tasks: the scale of the sum of their task vectors."""
  names = ["rotated", "mirrored", "parity"]
  own = {name: lab.finetuned(name, [name]) for name in names}
  held_out = lab.evaluator(lab.splits.minival, names)
  finetuned_scores = {name: held_out(own[name].load())[name] for name in names}
  start = Ingredient.from_params("pretrained", lab.encoder)
  found = sj_search.task_scale(
    lab.encoder,
    [TaskVector(start, model) for model in own.values()],
    held_out,
    _grid(lab),
    finetuned_scores=finetuned_scores,
  )
  models = {
    "pretrained": lab.encoder,
    **{f"fine-tuned on {name}": m.load() for name, m in own.items()},
    "uniform soup": uniform_soup(list(own.values())),
    "scale from minival": found.params,
  }
  judged = _judge(lab, models, names)
  on_test = {name: judged[f"fine-tuned on {name}"][name] for name in names}
  for scores in judged.values():
    scores["normalised"] = sj_search.normalized_accuracy(scores, on_test)
  return {"addition": found}, judged


def negation(lab: DigitTasks):
  """Forgetting inverted digits, upright ones being the control."""
  names, c = ["inverted", "upright"], lab.config.search
  inverted = lab.finetuned("inverted", ["inverted"])
  found = sj_search.task_scale(
    lab.encoder,
    [inverted],
    lab.evaluator(lab.splits.minival, names),
    np.linspace(0, c.negation_max, c.points),
    negate=True,
    control="upright",
    keep=c.keep,
  )
  models = {
    "pretrained": lab.encoder,
    "fine-tuned on inverted": inverted.load(),
    "negated": found.params,
  }
  return {"negation": found}, _judge(lab, models, names)


def analogy(lab: DigitTasks):
  """Upright is to inverted as rotated is to rotated and inverted."""
  names = ["upright", "inverted", "rotated"]
  a, b, c = (lab.finetuned(name, [name]) for name in names)
  target = "rotated_inverted"
  found = sj_search.analogy(
    a, b, c, lab.evaluator(lab.splits.minival, [target]), _grid(lab)
  )
  models = {
    "pretrained": lab.encoder,
    "C (rotated)": c.load(),
    "C + (B - A)": sj_search.Blend(c, [b, a])([1.0, -1.0]),
    "scale from minival": found.params,
    "D (trained on it)": lab.finetuned(target, [target]).load(),
  }
  return {"analogy": found}, _judge(lab, models, [target])


def paint(lab: DigitTasks):
  """Patches rotated and mirrored digits in; supports what was known before."""
  patching = ["rotated", "mirrored"]
  supported = ["upright", "inverted", "parity"]
  evaluate = lab.evaluator(lab.splits.minival, [*patching, *supported])
  grid, start = _grid(lab), lab.encoder
  own = {name: lab.finetuned(name, [name]) for name in patching}
  settings = {"patching": patching, "supported": supported}
  found = {
    f"paint_{name}": sj_search.paint(
      start, model, evaluate, grid, patching=[name], supported=supported
    )
    for name, model in own.items()
  }
  joint = lab.finetuned("joint", patching)
  found["paint_joint"] = sj_search.paint(
    start, joint, evaluate, grid, **settings
  )
  sequence = sj_search.paint_sequential(
    start,
    lambda params, task: lab.finetuned(
      f"sequential_{task}", [task], start=params
    ),
    evaluate,
    grid,
    **settings,
  )
  for task, one in zip(patching, sequence.rounds):
    found[f"paint_sequential_{task}"] = one
  found["paint_parallel"] = sj_search.paint_parallel(
    start,
    list(own.values()),
    evaluate,
    grid,
    budget=lab.config.search.budget,
    **settings,
  )
  equal = max(
    (c for c in found["paint_parallel"].history if len({*c.coefficients}) == 1),
    key=lambda c: c.value,
  )
  models = {
    "pretrained": start,
    **{f"fine-tuned on {name}": m.load() for name, m in own.items()},
    "fine-tuned on both": joint.load(),
    **{f"single, {name}": found[f"paint_{name}"].params for name in patching},
    "joint": found["paint_joint"].params,
    "sequential": sequence.params,
    "parallel, equal": sj_search.Blend(start, list(own.values()))(
      equal.coefficients
    ),
    "parallel": found["paint_parallel"].params,
  }
  judged = _judge(lab, models, [*patching, *supported])
  for scores in judged.values():
    means = [
      np.mean([scores[t] for t in tasks]) for tasks in (patching, supported)
    ]
    scores["combined"] = float(np.mean(means))
  return found, judged


def pools(lab: DigitTasks):
  """DiWA and ratatouille on few upright digits, with as many runs each."""
  c, train = lab.config, lab.splits.train
  few = dataclasses.replace(
    train,
    images=train.images[: c.data.num_pool_train],
    labels=train.labels[: c.data.num_pool_train],
  )
  # Auxiliary tasks get other images than the target.
  other = dataclasses.replace(
    train,
    images=train.images[c.data.num_pool_train :],
    labels=train.labels[c.data.num_pool_train :],
  )
  probe = probed(
    c, lab.model(10), {**lab.encoder, "head": lab.head}, few, lab.workdir
  )
  auxiliary = list(c.search.auxiliary)
  starts = {"pretrained": probe}
  for task in auxiliary:
    encoder = lab.finetuned(f"auxiliary_{task}", [task], dataset=other).load()
    starts[task] = {**encoder, "head": probe["head"]}
  rates = dict(zip(starts, np.geomspace(0.5, 2.0, len(starts))))

  def finetune(kind):
    def from_start(params, name):
      return lab.finetuned(
        f"{kind}_{name}",
        ["upright"],
        start=params,
        dataset=few,
        rate=rates[name],
        train_head=True,
      )

    return from_start

  judges = {
    d.name: Classification(lab.predict(10), d.images, d.labels)
    for d in lab.splits.evaluations
  }
  held_out = judges.pop(lab.splits.minival.name)
  runs = [
    dataclasses.replace(finetune("diwa")(probe, name), name=name)
    for name in starts
  ]
  found = {
    "DiWA": sj_search.diwa(runs, held_out, average=c.search.average),
    "ratatouille": sj_search.ratatouille(
      [Ingredient.from_params(name, p) for name, p in starts.items()],
      finetune("ratatouille"),
      held_out,
      average=c.search.average,
    ),
  }
  models = {"linear probe": probe}
  for name, pool in found.items():
    models[f"{name}: best run"] = pool.runs[0].load()
    models[f"{name}: uniform"] = uniform_soup(pool.runs)
    models[f"{name}: {c.search.average}"] = pool.params
  judged = {}
  for name, params in models.items():
    scores = [judge(params) for judge in judges.values()]
    judged[name] = {"test": scores[0], "8 shifts": float(np.mean(scores[1:]))}
  return found, judged


SEARCHES: Mapping[str, Callable[[DigitTasks], tuple[dict[str, Any], Judged]]]
SEARCHES = {
  "wise_ft": wise_ft,
  "addition": addition,
  "negation": negation,
  "analogy": analogy,
  "paint": paint,
  "pools": pools,
  "adamerging": adamerging,
}


def _grid(lab: DigitTasks) -> np.ndarray:
  return np.linspace(0, 1, lab.config.search.points)


def _judge(
  lab: DigitTasks, models: Mapping[str, PyTree], tasks: Sequence[str]
) -> Judged:
  """Accuracy of models on the test images of tasks."""
  test = lab.evaluator(lab.splits.test, tasks)
  return {name: test(model) for name, model in models.items()}


def _plain(searches: Mapping[str, Any]) -> dict[str, Any]:
  """What was tried and chosen, as JSON."""
  plain = {}
  for name, found in searches.items():
    if isinstance(found, LearnedSoup):
      plain[name] = {
        "names": list(found.names),
        "alphas": {group: list(a) for group, a in found.alphas.items()},
        "history": list(found.history),
      }
    elif isinstance(found, sj_search.Pool):
      plain[name] = {
        "selected": list(found.selected),
        "score": found.score,
        "runs": {run.name: run.metrics["held-out"] for run in found.runs},
        "history": [
          dataclasses.asdict(d)
          for d in (found.greedy.history if found.greedy else ())
        ],
      }
    else:
      plain[name] = [dataclasses.asdict(c) for c in found.history]
  return plain


def _draw(workdir: pathlib.Path, searches: Mapping[str, Any]) -> None:
  for name, found in searches.items():
    if isinstance(found, sj_search.Search):
      path = workdir / "figures" / f"search_{name}.png"
      path.parent.mkdir(exist_ok=True)
      report.search_figure(name, found.history).savefig(path)
