# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The reason "ensemble": soups of two models and their logit ensembles."""

import dataclasses

import numpy as np

from soupjax.analysis import ensembles as ensembles_lib
from soupjax.analysis import pairs as pairs_lib
from soupjax.evaluators import statistics
from soupjax.report import reasons as figures
from soupjax.soups.search.interpolate import Blend
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.reasons.base import Diagnosed, Reason


def _problems(problems) -> None:
  problems.expect_counts("ensemble.pairs")
  problems.expect(
    "ensemble.share", "between 0 and 1, such as 0.5", lambda a: 0 < a < 1
  )


def _check(opened: CookInputs) -> None:
  if not opened.config.max_pairs:
    raise ValueError(
      "The reason 'ensemble' is computed for pairs, but max_pairs=0: set it to "
      "at least 1."
    )


def _compute(diagnosed: Diagnosed, resume):
  opened = diagnosed.opened
  config, place = opened.config.ensemble, opened.place
  minival = diagnosed.evaluations.minival(opened.metrics[0])
  terms = minival.mapped(ensembles_lib.terms)

  def evaluate(pair):
    first, second = diagnosed.models(pair)
    soup = Blend(first, [second], sharding=place)([config.share])
    temperature = statistics.temperature(*minival.logits(soup))
    values = terms(
      first.load(sharding=place), second.load(sharding=place),
      share=np.float32(config.share), beta=np.float32(1 / temperature),
    )  # fmt: skip
    relation = ensembles_lib.relation(values, config.share)
    return {
      "pair": pair,
      "temperature": temperature,
      **dataclasses.asdict(relation),
    }

  chosen = diagnosed.diagnosis["midpoints"][: config.pairs]
  evaluate_or_read = resume(evaluate, len(chosen))
  return {"pairs": [evaluate_or_read(entry["pair"]) for entry in chosen]}


def _describe(record) -> list[str]:
  pairs = record["pairs"]
  true, predicted = (
    np.array([pair[key] for pair in pairs]) for key in ("true", "predicted")
  )
  lines = [
    f"For {int((true < 0).sum())} of {len(pairs)} pairs, the soup has a lower "
    "loss than the ensemble; equation (1) predicts the sign of the difference "
    f"for {int((np.sign(true) == np.sign(predicted)).sum())}. The mean "
    f"difference is {true.mean():+.3g} nats, its prediction "
    f"{predicted.mean():+.3g}."
  ]
  rank = pairs_lib.rank_correlation(predicted, true)
  if np.isfinite(rank):
    lines.append(f"Rank correlation of prediction and difference: {rank:+.2f}.")
  return lines


ENSEMBLE = Reason(
  heading="Soups of two models and their ensembles",
  caption="Left: loss of the soup minus loss of the ensemble on minival, both "
  "with the temperature that calibrates the soup, against the prediction from "
  "flatness and confidence (arXiv 2203.05482, equation 1). Points on the line "
  "are predicted exactly. Right: error of the soup against error of the "
  "ensemble (Figure 4). The soup is better below the line.",
  settings={
    "pairs": 10,  # Number of pairs; each costs about 12 forward passes.
    "share": 0.5,  # Share of the second model.
  },
  problems=_problems,
  check=_check,
  compute=_compute,
  draw=figures.ensemble_figure,
  describe=_describe,
)
