# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Memory and disk of cooking, evaluations and a diagnosis, from metadata."""

import math
import os

import jax

from soupjax import buckets, files
from soupjax.tasks import estimate
from soupjax.tasks.cook.inputs import CookInputs

# Measured copies of a model: sums, candidates, soups, gradients, and memory of
# theirs that the allocator keeps.
_COPIES = {"greedy": 9.0, "learned": 10.5, "evaluation": 1.2}
# Measured bytes of the figures and the page of results.
_REPORT = 60_000_000
# Measured bytes of compiling forward passes alone.
_FORWARD = 40_000_000


def cooking(
  inputs: CookInputs, workdir: str | os.PathLike | None
) -> estimate.Estimate:
  """Estimates memory and disk of cooking.

  Args:
    inputs: the opened inputs.
    workdir: of the run; None if it is not known yet.
  """
  weights = inputs.ingredients[0].num_bytes
  interpolates = inputs.initial and inputs.config.cook.wise_ft_points
  soups = 1 + len(inputs.greedy) + len(inputs.learned) + bool(interpolates)
  logits = inputs.logits_bytes if inputs.ensembles else 0
  limit = inputs.config.cook.learned.memory_gb
  pool = len(inputs.ingredients) * weights if inputs.learned else 0
  if limit >= 0:
    pool = min(pool, max(limit * 1e9, 2 * weights))
  disk = {
    "soups": soups * weights,
    "soups for other libraries": soups * weights
    if inputs.family or inputs.is_judged
    else 0,
    "logits": logits,
    "candidates": weights * inputs.config.evaluate_jobs
    if inputs.is_judged
    else 0,
  }
  copies = _COPIES["learned" if inputs.learned else "greedy"]
  return _estimate(inputs, workdir, pool, copies, logits, disk)


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
  """Returns the bytes of a model over those on one device."""
  if inputs.place is None:
    return 1
  whole = on_each = 0
  for leaf, spec in inputs.ingredients[0].specs.items():
    shape = inputs.place(leaf, spec).shard_shape(spec.shape)
    whole += spec.size * spec.dtype.itemsize
    on_each += math.prod(shape) * spec.dtype.itemsize
  return whole / max(on_each, 1)


def _decoded(inputs) -> float:
  """Returns bytes of the decoded sets that stay in memory."""
  config, total = inputs.config.data, 0.0
  for source in inputs.sets.values():
    needed = 12 * config.image_size**2 * len(source)
    total += needed if total + needed <= config.cache_gb * 1e9 else 0.0
  return total / jax.process_count()
