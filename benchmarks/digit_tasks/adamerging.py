# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""AdaMerging of tasks made from digits: coefficients without labels."""

from typing import Any

import numpy as np

from soupjax.data.variants import variant
from soupjax.soups import search as sj_search
from soupjax.soups.average import uniform_soup
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.learned.entropy import entropy_loss
from soupjax.soups.learned.soup import LearnedSoup, learned_soup
from soupjax.tasks.digit_tasks import DigitTasks


def adamerging(
  lab: DigitTasks,
) -> tuple[dict[str, LearnedSoup], dict[str, dict[str, float]]]:
  """One model for three tasks: coefficients of least entropy on minival.

  As in arXiv 2310.02575, but on images that are held out, not on those of the
  test. Beside it what the same models give without learning.

  Args:
    lab: the tasks.

  Returns:
    The learned soups by granularity, and model -> task -> accuracy on test.
  """
  names = ["rotated", "mirrored", "parity"]
  own = [lab.finetuned(name, [name]) for name in names]
  start = Ingredient.from_params("pretrained", lab.encoder)
  heads = {name: lab.head_of(name) for name in names}
  models = {n: lab.model(len(heads[n]["bias"])) for n in names}
  images = {n: variant(lab.splits.minival, n).images for n in names}

  def predict(encoder, images):
    return {
      name: models[name].apply(
        {"params": {**encoder, "head": heads[name]}}, images[name]
      )[0]
      for name in names
    }

  soups = {
    granularity: learned_soup(
      own,
      entropy_loss(predict, images),
      base=start,
      granularity=granularity,
      steps=lab.config.search.adamerging_steps,
    )
    for granularity in ("model", "layer")
  }
  scaled = sj_search.task_scale(
    lab.encoder,
    own,
    lab.evaluator(lab.splits.minival, names),
    np.linspace(0, 1, lab.config.search.points),
  )
  candidates: dict[str, Any] = {
    "pretrained": lab.encoder,
    "uniform soup": uniform_soup(own),
    "task arithmetic, 0.3": sj_search.Blend(lab.encoder, own)([0.3] * 3),
    "scale from minival, with labels": scaled.params,
    "AdaMerging, task-wise": soups["model"].params,
    "AdaMerging, layer-wise": soups["layer"].params,
  }
  test = lab.evaluator(lab.splits.test, names)
  judged = {name: test(params) for name, params in candidates.items()}
  for scores in judged.values():
    scores["mean"] = float(np.mean(list(scores.values())))
  return {f"adamerging_{k}": soup for k, soup in soups.items()}, judged
