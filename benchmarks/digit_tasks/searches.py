# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The searches of `sj.search` on tasks made from digits.

Each returns what it tried, and model -> dataset -> accuracy on test. Choices
are made on minival; test is evaluated after the end of a search.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
from tasks import SCALE, DigitTasks, num_classes, variant

import soupjax as sj
from soupjax import data

PyTree = Any
# Model -> dataset -> accuracy.
Accuracies = dict[str, dict[str, float]]


def wise_ft(lab: DigitTasks):
  """From pretrained to fine-tuned on upright; alpha from minival."""
  splits, finetuned = lab.splits, lab.finetuned("upright", ["upright"])
  minival = lab.evaluator(splits.minival, ["upright"])
  search = sj.search.wise_ft_curve(
    lab.encoder,
    finetuned,
    lambda encoder: {"minival": minival(encoder)["upright"]},
    _grid(lab),
  )
  evaluators = {
    d.name.removeprefix("digits/"): lab.evaluator(d, ["upright"])
    for d in (splits.test, *splits.shifts)
  }

  def evaluate(encoder):
    return {name: e(encoder)["upright"] for name, e in evaluators.items()}

  # The choice is made: now the whole curve on the others, for the picture.
  blend = sj.search.Blend(lab.encoder, [finetuned])
  history = [
    dataclasses.replace(
      c, scores={**c.scores, **evaluate(blend(c.coefficients))}
    )
    for c in search.history
  ]
  search = dataclasses.replace(search, history=tuple(history))
  models = {
    "pretrained": lab.encoder,
    "fine-tuned": finetuned.load(),
    "alpha 0.5": blend([0.5]),
    "alpha from minival": search.params,
  }
  accuracies = {name: _summary(evaluate(m)) for name, m in models.items()}
  return {"wise_ft": search}, accuracies


def addition(lab: DigitTasks):
  """One model for three tasks: the scale of the sum of their task vectors."""
  names = ["rotated", "mirrored", "parity"]
  own = {name: lab.finetuned(name, [name]) for name in names}
  held_out = lab.evaluator(lab.splits.minival, names)
  finetuned_scores = {name: held_out(own[name].load())[name] for name in names}
  start = sj.Ingredient.from_params("pretrained", lab.encoder)
  search = sj.search.task_scale(
    lab.encoder,
    [sj.TaskVector(start, model) for model in own.values()],
    held_out,
    _grid(lab),
    finetuned_scores=finetuned_scores,
  )
  models = {
    "pretrained": lab.encoder,
    **{f"fine-tuned on {name}": m.load() for name, m in own.items()},
    "uniform soup": sj.uniform_soup(list(own.values())),
    "scale from minival": search.params,
  }
  accuracies = _on_test(lab, models, names)
  on_test = {name: accuracies[f"fine-tuned on {name}"][name] for name in names}
  for scores in accuracies.values():
    scores["normalised"] = sj.search.normalized_accuracy(scores, on_test)
  return {"addition": search}, accuracies


def negation(lab: DigitTasks):
  """Forgetting inverted digits, upright ones being the control."""
  names = ["inverted", "upright"]
  inverted = lab.finetuned("inverted", ["inverted"])
  search = sj.search.task_scale(
    lab.encoder,
    [inverted],
    lab.evaluator(lab.splits.minival, names),
    np.linspace(0, 2, lab.settings.points),
    negate=True,
    control="upright",
    keep=0.95,
  )
  models = {
    "pretrained": lab.encoder,
    "fine-tuned on inverted": inverted.load(),
    "negated": search.params,
  }
  return {"negation": search}, _on_test(lab, models, names)


def analogy(lab: DigitTasks):
  """Upright is to inverted as rotated is to rotated and inverted."""
  names = ["upright", "inverted", "rotated"]
  a, b, c = (lab.finetuned(name, [name]) for name in names)
  target = "rotated_inverted"
  search = sj.search.analogy(
    a, b, c, lab.evaluator(lab.splits.minival, [target]), _grid(lab)
  )
  models = {
    "pretrained": lab.encoder,
    "C (rotated)": c.load(),
    "C + (B - A)": sj.search.Blend(c, [b, a])([1.0, -1.0]),
    "scale from minival": search.params,
    "D (trained on it)": lab.finetuned(target, [target]).load(),
  }
  return {"analogy": search}, _on_test(lab, models, [target])


def paint(lab: DigitTasks):
  """Patches rotated and mirrored digits in; supports what was known before."""
  patching = ["rotated", "mirrored"]
  supported = ["upright", "inverted", "parity"]
  evaluate = lab.evaluator(lab.splits.minival, [*patching, *supported])
  grid, start = _grid(lab), lab.encoder
  own = {name: lab.finetuned(name, [name]) for name in patching}
  settings = {"patching": patching, "supported": supported}
  search = {
    f"paint_{name}": sj.search.paint(
      start, model, evaluate, grid, patching=[name], supported=supported
    )
    for name, model in own.items()
  }
  joint = lab.finetuned("joint", patching)
  search["paint_joint"] = sj.search.paint(
    start, joint, evaluate, grid, **settings
  )
  sequence = sj.search.paint_sequential(
    start,
    lambda params, task: lab.finetuned(
      f"sequential_{task}", [task], start=params
    ),
    evaluate,
    grid,
    **settings,
  )
  for task, one in zip(patching, sequence.rounds):
    search[f"paint_sequential_{task}"] = one
  search["paint_parallel"] = sj.search.paint_parallel(
    start,
    list(own.values()),
    evaluate,
    grid,
    budget=lab.settings.budget,
    **settings,
  )
  equal = max(
    (
      c for c in search["paint_parallel"].history if len({*c.coefficients}) == 1
    ),
    key=lambda c: c.value,
  )
  models = {
    "pretrained": start,
    **{f"fine-tuned on {name}": m.load() for name, m in own.items()},
    "fine-tuned on both": joint.load(),
    **{f"single, {name}": search[f"paint_{name}"].params for name in patching},
    "joint": search["paint_joint"].params,
    "sequential": sequence.params,
    "parallel, equal": sj.search.Blend(start, list(own.values()))(
      equal.coefficients
    ),
    "parallel": search["paint_parallel"].params,
  }
  accuracies = _on_test(lab, models, [*patching, *supported])
  for scores in accuracies.values():
    means = [
      np.mean([scores[t] for t in tasks]) for tasks in (patching, supported)
    ]
    scores["combined"] = float(np.mean(means))
  return search, accuracies


def pools(lab: DigitTasks):
  """DiWA and ratatouille on few upright digits, with as many runs each."""
  few, other = _cut(lab.splits.train, lab.settings.num_pool_train)
  probe = lab.probed(few)
  starts = {"pretrained": probe}
  for task in lab.settings.auxiliary:  # Of other images than the target.
    encoder = lab.finetuned(f"auxiliary_{task}", [task], dataset=other).load()
    starts[task] = {**encoder, "head": probe["head"]}
  rates = dict(zip(starts, np.geomspace(0.5, 2.0, len(starts))))

  def finetune(kind):
    def from_start(params, name):
      model = lab.finetuned(
        f"{kind}_{name}",
        ["upright"],
        start=params,
        dataset=few,
        rate=rates[name],
        train_head=True,
      )
      return dataclasses.replace(model, name=name)

    return from_start

  minival = lab.evaluator_of(lab.splits.minival)
  runs = [finetune("diwa")(probe, name) for name in starts]
  search = {
    "DiWA": sj.search.diwa(runs, minival, average="greedy"),
    "ratatouille": sj.search.ratatouille(
      [sj.Ingredient.from_params(name, p) for name, p in starts.items()],
      finetune("ratatouille"),
      minival,
      average="greedy",
    ),
  }
  models = {"linear probe": probe}
  for name, pool in search.items():
    models[f"{name}: best run"] = pool.runs[0].load()
    models[f"{name}: uniform"] = sj.uniform_soup(pool.runs)
    models[f"{name}: greedy"] = pool.params
  evaluators = {
    d.name.removeprefix("digits/"): lab.evaluator_of(d)
    for d in (lab.splits.test, *lab.splits.shifts)
  }
  return search, {
    name: _summary({k: e(params) for k, e in evaluators.items()})
    for name, params in models.items()
  }


def adamerging(lab: DigitTasks):
  """One model for three tasks: coefficients of least entropy on minival.

  As in arXiv 2310.02575, but on images that are held out, not on those of the
  test. Beside it are results of the same models without learning.
  """
  names = ["rotated", "mirrored", "parity"]
  own = [lab.finetuned(name, [name]) for name in names]
  start = sj.Ingredient.from_params("pretrained", lab.encoder)
  heads = {name: lab.head_of(name) for name in names}
  models = {name: lab.model(num_classes(name)) for name in names}
  images = {
    name: _images(data.from_dataset(variant(lab.splits.minival, name), 10))
    for name in names
  }

  def predict(encoder, images):
    return {
      name: models[name].apply(
        {"params": {**encoder, "head": heads[name]}}, images[name]
      )[0]
      for name in names
    }

  soups = {
    granularity: sj.learned_soup(
      own,
      sj.entropy_loss(predict, images),
      base=start,
      granularity=granularity,
      steps=lab.settings.adamerging_steps,
    )
    for granularity in ("model", "layer")
  }
  scaled = sj.search.task_scale(
    lab.encoder, own, lab.evaluator(lab.splits.minival, names), _grid(lab)
  )
  accuracies = _on_test(
    lab,
    {
      "pretrained": lab.encoder,
      "uniform soup": sj.uniform_soup(own),
      "task arithmetic, 0.3": sj.search.Blend(lab.encoder, own)([0.3] * 3),
      "scale from minival, with labels": scaled.params,
      "AdaMerging, task-wise": soups["model"].params,
      "AdaMerging, layer-wise": soups["layer"].params,
    },
    names,
  )
  for scores in accuracies.values():
    scores["mean"] = float(np.mean(list(scores.values())))
  return {f"adamerging_{k}": soup for k, soup in soups.items()}, accuracies


SEARCHES: Mapping[
  str, Callable[[DigitTasks], tuple[dict[str, Any], Accuracies]]
]
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
  return np.linspace(0, 1, lab.settings.points)


def _cut(dataset: data.Dataset, count: int) -> list[data.Dataset]:
  """Splits a set into its first images and the others."""
  return [
    dataclasses.replace(
      dataset, images=dataset.images[part], labels=dataset.labels[part]
    )
    for part in (slice(count), slice(count, None))
  ]


def _images(source: data.Source) -> np.ndarray:
  """Returns all images as models see them."""
  preprocess = data.Preprocess(SCALE)
  return np.stack([preprocess(source[i]["image"]) for i in range(len(source))])


def _summary(scores: Mapping[str, float]) -> dict[str, float]:
  """Returns the accuracy on test, and the mean over its shifts."""
  shifts = [score for name, score in scores.items() if name != "test"]
  return {"test": scores["test"], "8 shifts": float(np.mean(shifts))}


def _on_test(
  lab: DigitTasks, models: Mapping[str, PyTree], tasks: Sequence[str]
) -> Accuracies:
  """Returns the accuracy of models on the test images of tasks."""
  test = lab.evaluator(lab.splits.test, tasks)
  return {name: test(model) for name, model in models.items()}
