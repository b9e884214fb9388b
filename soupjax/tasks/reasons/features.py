# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The reason "features": similarity of layers, and separation of classes."""

import functools

import numpy as np

from soupjax.analysis import features as features_lib
from soupjax.progress import Progress
from soupjax.report import reasons as figures
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.reasons.base import INITIAL, Diagnosed, Reason


def _problems(problems) -> None:
  problems.expect_counts("features.images", least=4)


def _check(opened: CookInputs) -> None:
  if "minival" in opened.heads:
    raise ValueError(
      "The reason 'features' needs models with a head, but these are whole "
      "CLIPs: leave it out."
    )


def _compute(diagnosed: Diagnosed, resume):
  del resume  # Features are not saved: each model takes only one pass.
  opened = diagnosed.opened
  start = [INITIAL] if opened.initial else []
  names = [*start, *(i.name for i in diagnosed.ingredients)]
  layers: list[str] = []

  def values(forward, params, images, labels):
    del forward
    named = features_lib.layer_features(opened.model, params, images)
    layers[:] = [name for name, _ in named]
    outputs = {str(k): x for k, (_, x) in enumerate(named)}
    return {**outputs, "labels": labels}

  minival = diagnosed.evaluations.minival(opened.metrics[0])
  run, per_model = minival.mapped(values), []
  progress = Progress("features", len(names), unit="models")
  for name in names:
    (model,) = diagnosed.models([name])
    outputs = run(model.load(sharding=opened.place))
    labels = outputs.pop("labels")
    # Minival may be sorted by class, but CKA needs a random order.
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[: opened.config.features.images]
    per_model.append({k: x[order] for k, x in outputs.items()})
    progress.step(images=len(labels))
  labels = labels[order]
  similar, separation = {}, {}
  for k, layer in enumerate(layers):
    features = [outputs[str(k)] for outputs in per_model]
    similar[layer] = _json(features_lib.cka(features))
    separated = functools.partial(_separation, labels=labels)
    separation[layer] = [separated(x) for x in features]
  return {
    "names": names, "layers": layers, "cka": similar, "separation": separation
  }  # fmt: skip


def _separation(features, labels) -> float | None:
  try:
    return features_lib.class_separation(features, labels)
  except ValueError:  # Constant features, such as those of a zero head.
    return None


def _json(matrix: np.ndarray) -> list[list[float | None]]:
  return [[float(x) if np.isfinite(x) else None for x in row] for row in matrix]


def _describe(record) -> list[str]:
  first = int(INITIAL in record["names"])
  lines = []
  means = {
    layer: figures.mean_of_pairs(record["cka"][layer], first)
    for layer in record["layers"]
  }
  means = {layer: mean for layer, mean in means.items() if np.isfinite(mean)}
  if means:
    layer = min(means, key=means.__getitem__)
    lines.append(
      f"Ingredients differ most at {layer}: the mean CKA over pairs is "
      f"{means[layer]:.3f}."
    )
  last = record["layers"][-1]
  known = [v for v in record["separation"][last][first:] if v is not None]
  if known:
    text = f"Class separation at {last}: {min(known):.3f} to {max(known):.3f}"
    start = record["separation"][last][0] if first else None
    lines.append(
      text + (f", initial {start:.3f}." if start is not None else ".")
    )
  return lines or ["No layer has features that differ between images."]


FEATURES = Reason(
  heading="Features of the layers",
  caption="Left: similarity of the features of each layer on minival (unbiased "
  "minibatch CKA, arXiv 2010.15327, of outputs averaged over tokens); bands "
  "are the range over models. Right: class separation, 1 minus the ratio of "
  "the mean cosine distance within classes to that between all images (arXiv "
  "2010.16402).",
  settings={
    "images": 1024,  # Maximum number of images of minival.
  },
  problems=_problems,
  check=_check,
  compute=_compute,
  draw=figures.features_figure,
  describe=_describe,
)
