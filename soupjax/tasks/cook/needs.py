# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plan of a run: its inputs and work, memory, disk and time."""

from collections.abc import Iterable, Sequence
import dataclasses
import math
import os
import pathlib

import jax
import numpy as np

from soupjax import buckets, evaluators, files
from soupjax.models.linear_inputs import linear_inputs
from soupjax.soups.core.ingredient import sharding_of
from soupjax.tasks import estimate
from soupjax.tasks.cook import evaluate, protocols, window
from soupjax.tasks.cook.inputs import CookInputs, Inputs

# If one image changes accuracy by more than this, the plan warns of ties.
_COARSE = 1e-3
# Measured memory in copies of a model: sums, candidates, soups, gradients, and
# freed memory that the allocator keeps.
_COPIES = {"greedy": 9.0, "learned": 10.5, "evaluation": 1.2}
_COPIES |= {"search": 5.0, "statistics": 6.0}
_GRAMS = 4.0  # Measured memory in copies of all Gram matrices.
# Measured bytes of the figures and the report page.
_REPORT = 60_000_000
# Measured bytes for compiling forward passes.
_FORWARD = 40_000_000
# The same, with programs and buffers that compute candidates.
_CANDIDATES = 80_000_000


def cooking(
  inputs: CookInputs, workdir: str | os.PathLike | None
) -> estimate.Estimate:
  """Estimates memory and disk of cooking.

  Args:
    inputs: the opened inputs.
    workdir: the directory of the run; None if unknown.
  """
  weights = inputs.ingredients[0].num_bytes
  interpolates = inputs.initial and inputs.config.cook.wise_ft_points
  soups = 1 + len(inputs.greedy) + len(inputs.learned) + bool(interpolates)
  soups += bool(inputs.along)
  logits = inputs.logits_bytes if inputs.ensembles else 0
  limit = inputs.config.cook.learned.memory_gb
  pool = len(inputs.ingredients) * weights if inputs.learned else 0
  if limit >= 0:
    pool = min(pool, max(limit * 1e9, 2 * weights))
  disk = {
    "soups": soups * weights,
    "soups for other libraries": soups * _exported(inputs, weights),
    "logits": logits,
    "candidates": weights * inputs.config.evaluate_jobs
    if inputs.is_judged
    else 0,
  }
  copies = _COPIES["learned" if inputs.learned else "greedy"]
  return _estimate(inputs, workdir, pool, copies, logits, disk)


def _exported(inputs: CookInputs, weights: int) -> int:
  """Returns the bytes of a soup as written to `export/`; 0 if it is not."""
  if inputs.clip_start:
    return inputs.clip_start.file.num_bytes
  return weights if inputs.family or inputs.is_judged else 0


def diagnosis(
  inputs: CookInputs, workdir: str | os.PathLike | None
) -> estimate.Estimate:
  """Estimates memory and disk of a diagnosis; see `cooking`."""
  return _estimate(inputs, workdir, 0, _COPIES["greedy"], 0, {})


def evaluation(
  inputs: CookInputs, workdir: str | os.PathLike | None
) -> estimate.Estimate:
  """Estimates memory and disk of the task "evaluate"; see `cooking`."""
  models = len(inputs.ingredients) + (inputs.initial is not None)
  logits = inputs.logits_bytes / len(inputs.ingredients)
  disk = {"logits": models * logits * inputs.config.save_logits}
  copies = _COPIES["evaluation"]
  return _estimate(inputs, workdir, 0, copies, logits, disk, compiling=_FORWARD)


def searching(
  inputs: Inputs, workdir: str | os.PathLike | None
) -> estimate.Estimate:
  """Estimates memory and disk of a search; see `cooking`."""
  weights = inputs.ingredients[0].num_bytes
  models = len(inputs.ingredients) + (inputs.initial is not None)
  learns = "memory_gb" in inputs.config.search
  pool = models * weights * (inputs.config.in_memory or learns)
  limit = inputs.config.search.get("memory_gb", -1)
  if limit >= 0:
    pool = min(pool, max(limit * 1e9, 2 * weights))
  disk = {
    "the chosen model": weights,
    "for other libraries": weights if inputs.family else 0,
  }
  copies = _COPIES["learned" if learns else "search"]
  more = {} if learns else {"compiling": _CANDIDATES}
  return _estimate(inputs, workdir, pool, copies, 0, disk, **more)


def statistics(
  inputs: CookInputs, workdir: str | os.PathLike | None, kinds: Sequence[str]
) -> estimate.Estimate:
  """Estimates memory and disk of the task "statistics".

  Args:
    inputs: as for `cooking`.
    workdir: as for `cooking`.
    kinds: the statistics to compute: "fisher", "grams" or both.
  """
  weights, count = inputs.ingredients[0].num_bytes, len(inputs.ingredients)
  grams = _gram_bytes(inputs) if "grams" in kinds else 0
  disk = {
    "fisher": count * weights * ("fisher" in kinds),
    "grams": count * grams,
    "models with soupjax's names": count * weights
    if inputs.family and "grams" in kinds
    else 0,
  }
  copies = _COPIES["statistics"]
  needed = _estimate(inputs, workdir, _GRAMS * grams, copies, 0, disk)
  names = {
    "ingredients": "Gram matrices",
    "sums, candidates, soups and gradients": "a model and its gradients",
  }
  device = {names.get(k, k): v for k, v in needed.device.items()}
  return dataclasses.replace(needed, device=device)


def _gram_bytes(inputs: CookInputs) -> int:
  """Returns the bytes of the Gram matrices of a model, in float32."""
  first, side = inputs.ingredients[0], inputs.config.data.image_size
  shapes = [
    jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    for spec in first.specs.values()
  ]
  rows = jax.eval_shape(
    linear_inputs(inputs.model),
    jax.tree.unflatten(first.treedef, shapes),
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
  )
  return sum(4 * x.shape[-1] ** 2 for x in rows.values())


def print_duration(inputs: Inputs, dataset: str, images: int) -> None:
  """Times one batch, and prints how long all forward passes will take.

  Prints nothing if there are several processes, if a command evaluates, or if
  the model is too large to be compiled for a CPU.

  Args:
    inputs: the opened inputs.
    dataset: the set from which the batch is taken.
    images: number of images that all models evaluate together.
  """
  first = inputs.ingredients[0]
  count = sum(spec.size for spec in first.specs.values())
  if inputs.place is None or jax.process_count() > 1:
    return
  if not estimate.can_compile(jax.devices(), count):
    return
  leaves = [
    jax.device_put(
      np.zeros(spec.shape, spec.dtype), sharding_of(inputs.place, leaf, spec)
    )
    for leaf, spec in first.specs.items()
  ]
  evaluations = evaluate.Evaluations(inputs, pathlib.Path())
  evaluator = evaluations.minival(inputs.metrics[0], dataset)
  params = jax.tree.unflatten(first.treedef, leaves)
  size = min(inputs.config.data.batch_size, len(inputs.sets[dataset]))
  speed = size / max(evaluator.seconds_per_batch(params), 1e-9)
  print(
    f"  forward passes {_time(images / speed)}: {images:,} images at "
    f"{speed:,.0f}/s, timed on one batch; steps of learned soups not counted"
  )


def _time(seconds: float) -> str:
  """Formats a duration in one unit."""
  for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
    if seconds >= 2 * unit:
      return f"{seconds / unit:.1f} {name}"
  return f"{seconds:.0f} s"


def _estimate(inputs, workdir, pool, copies, logits, disk, **more):
  return estimate.evaluating(
    program=estimate.program_bytes(),
    weights=inputs.ingredients[0].num_bytes,
    pool=pool,
    copies=copies,
    shards=_shards(inputs),
    devices_on_host=sum(d.platform == "cpu" for d in jax.local_devices()),
    images=_decoded(inputs),
    logits=logits,
    disk=disk,
    report=_REPORT if disk else 0,
    free=None
    if buckets.is_remote(workdir or "")
    else files.free_bytes(os.path.abspath(workdir or ".")),
    **more,
  )


def _shards(inputs) -> float:
  """Returns the ratio of a model's bytes to its bytes on one device."""
  if inputs.place is None:
    return 1
  whole = on_each = 0
  for leaf, spec in inputs.ingredients[0].specs.items():
    shape = inputs.place(leaf, spec).shard_shape(spec.shape)
    whole += spec.size * spec.dtype.itemsize
    on_each += math.prod(shape) * spec.dtype.itemsize
  return whole / max(on_each, 1)


def _decoded(inputs) -> float:
  """Returns the bytes of decoded images that a process keeps in memory."""
  config, total = inputs.config.data, 0.0
  for source in inputs.sets.values():
    needed = 12 * config.image_size**2 * len(source)
    total += needed if total + needed <= config.cache_gb * 1e9 else 0.0
  return total / jax.process_count()


# --- Inputs and work as text --------------------------------------------------


def plan(inputs: CookInputs) -> str:
  """Describes the inputs and the work to be done, as text."""
  start = inputs.initial.path if inputs.initial else "unknown, so no WiSE-FT"
  lines = [*about_models(inputs), f"start: {start}", *about_sets(inputs)]
  if not inputs.tests:
    lines.append("no test set: give one with tests= to measure soup gains")
  names = ["uniform", *inputs.greedy, *inputs.learned]
  names += ["window"] if inputs.along else []
  names += ["wise_ft"] if _wise_ft_points(inputs) else []
  lines += window.plan_lines(inputs.along)
  lines.append(f"soups: {', '.join(names)}")
  models, candidates = evaluations(inputs)
  lines.append(
    f"evaluations: {models} models on all {inputs.num_images:,} images; at "
    f"most {candidates} candidates on the {len(inputs.minival):,} of minival"
  )
  lines += _about_metrics(inputs)
  size = inputs.config.data.image_size
  needed = 12 * size**2 * len(inputs.minival) / 1e9
  if needed > inputs.config.data.cache_gb:
    lines.append(
      f"minival takes {needed:.1f} GB decoded, more than data.cache_gb: it is "
      "decoded again for every candidate"
    )
  lines.append(
    f"ensembles: {inputs.logits_bytes / 1e6:,.1f} MB of logits"
    + ("" if inputs.ensembles else ", more than cook.ensembles_gb, so none")
  )
  return "\n".join(lines)


def evaluations(inputs: CookInputs) -> tuple[int, int]:
  """Returns the number of models, and the maximum number of candidates."""
  count, points = len(inputs.ingredients), _wise_ft_points(inputs)
  soups = 1 + len(inputs.greedy) + len(inputs.learned) + bool(points)
  models = count + bool(inputs.initial) + soups + bool(inputs.along) + points
  windows = max(map(len, inputs.along.values()), default=0)
  return models, len(inputs.greedy) * count + windows


def _wise_ft_points(inputs: CookInputs) -> int:
  return inputs.config.cook.wise_ft_points if inputs.initial else 0


def about_models(inputs: CookInputs, kind: str = "ingredients") -> list[str]:
  """Describes the checkpoints in lines for the plan."""
  ingredients = inputs.ingredients
  values = [i.metrics.get("minival/prec@1") for i in ingredients]
  lines = [
    f"{len(ingredients)} {kind} of {ingredients[0].num_bytes / 1e6:,.1f} "
    "MB" + (f", read as {inputs.family!r}" if inputs.family else "")
  ]
  lines += [
    f"  {i.name}" + ("" if value is None else f"  {value:.4f} on its minival")
    for i, value in zip(ingredients, values)
  ]
  return [*lines, *inputs.notes]


def about_sets(inputs: CookInputs) -> list[str]:
  """Describes the sets and their protocols in lines for the plan."""
  lines = [
    "; ".join(
      [
        f"{name}: {source.name}, {len(source)} images",
        *filter(None, [inputs.ops.get(name)]),
        *source.notes,
      ]
    )
    for name, source in inputs.sets.items()
  ]
  lines += [
    f"{name}: {text}"
    for name, text in protocols.described(inputs.spaces, {}).items()
  ]
  lines += [f"{name}: {text}" for name, text in inputs.unseen.items()]
  if own := inputs.heads.get("minival"):
    lines.append(
      "whole CLIPs: each is evaluated with the head of its own text tower, "
      f"{len(own.names):,} names x {len(own.templates):,} templates"
    )
  return lines


def _about_metrics(inputs: CookInputs) -> Iterable[str]:
  """Yields lines about the deciding metrics and their resolution."""
  first, count = inputs.metrics[0], len(inputs.minival)
  chosen = [f"{name} by {metric}" for name, metric in inputs.greedy.items()]
  yield f"chosen on minival: ranking by {first}, " + ", ".join(chosen)
  for metric in inputs.metrics:
    if evaluators.get_metric(metric).bound is None:
      yield f"{metric} has no bound, so it rejects no candidate early"
  if first == "prec@1" and 1 / count > _COARSE:
    yield (
      f"WARNING: with {count} images, accuracy moves in steps of "
      f"{100 / count:.2g} points: small differences cannot be told apart. "
      "--config.cook.metric=loss is recommended."
    )
