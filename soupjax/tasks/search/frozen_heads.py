# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen heads: read from files, fitted, or computed by a text tower."""

import pathlib

import jax
import numpy as np

from soupjax import files, processes, sharding
from soupjax.models import pretrained
from soupjax.tasks import heads as heads_lib
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks import zeroshot
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.finetune.step import abstract_params
from soupjax.tasks.search.inputs import SearchInputs


def make_heads(inputs: SearchInputs, folder: pathlib.Path | None) -> None:
  """Reads or makes the frozen heads of all tasks.

  Args:
    inputs: the inputs; sets the leaves of `frozen_heads`, on the mesh.
    folder: directory of `TASK.npz`, the leaves of each head, with "normalize"
      if it takes features of length 1. Existing files are reused. None (a dry
      run) writes nothing, and neither fits nor computes heads.

  Raises:
    ValueError: if a head is missing, or does not fit the encoder or the data.
  """
  if not inputs.frozen:
    return
  features = _features(inputs)
  for name, task in inputs.tasks.items():
    if not task.frozen:
      continue
    where, kind = f"tasks.{name}", task.spec.head.partition(":")[0]
    makes = kind in ("probe", "zeroshot")
    if folder is None and makes:
      if kind == "zeroshot":
        _names(inputs, task, where)
      continue
    file = None if folder is None else folder / f"{name}.npz"
    if file is not None and workdir_lib.exists(file):
      head = _nested(files.read_arrays(file))
    else:
      head = _HEADS[kind](inputs, task, where)
      heads_lib.check(head, features, task.model.num_classes, where)
      head = jax.tree.map(np.asarray, head)
      if file is not None and jax.process_index() == 0:
        arrays = {
          f"{m}/{k}": v for m, leaves in head.items() for k, v in leaves.items()
        }
        if getattr(task.model, "normalize", False):
          arrays[heads_lib.NORMALIZE] = np.array(True)
        files.write_arrays(file, arrays)
      processes.barrier(f"head of {name}")
    place = sharding.replicated(inputs.mesh)
    inputs.frozen_heads[name].leaves = jax.tree.map(
      lambda x, place=place: jax.make_array_from_callback(
        x.shape, place, lambda index, x=x: x[index]
      ),
      head,
    )


def _nested(flat) -> dict[str, dict[str, np.ndarray]]:
  head: dict[str, dict[str, np.ndarray]] = {}
  for key, value in flat.items():
    if key == heads_lib.NORMALIZE:
      continue
    module, _, name = key.partition("/")
    head.setdefault(module, {})[name] = value
  return head


def _features(inputs: SearchInputs) -> dict[str, int]:
  """Returns head module -> number of its input features."""
  task = next(iter(inputs.tasks.values()))
  shapes = abstract_params(inputs.config, task.model.clone(num_classes=1))
  return {
    module: shapes[module]["kernel"].shape[0]
    for module in heads_lib.MODULES
    if module in shapes
  }


def _of_checkpoint(inputs, task, where):
  source = task.head_source
  if not heads_lib.has_encoder(source):
    return heads_lib.of_file(source, where)
  try:
    adapted = pretrained.as_ingredient(
      source,
      task.model,
      family=inputs.config.family or None,
      image_size=inputs.config.data.image_size,
    )
  except ValueError as e:
    raise ValueError(
      f"{where}: the head of {source.path or source.name} does not fit "
      f"{task.minival.name} with {task.model.num_classes} classes: {e}"
    ) from e
  return heads_lib.leaves_of(adapted)


def _probe(inputs, task, where):
  del where
  config, encoder = inputs.config, inputs.initial.load()
  return {
    "head": heads_lib.fit(
      inputs.model,
      encoder,
      task.train,
      preprocess=cook_config.eval_ops(config, task.spec.ops),
      batch_size=config.data.batch_size,
      num_classes=task.model.num_classes,
      l2=config.probe.l2,
      steps=config.probe.steps,
      max_examples=config.probe.max_examples,
      mesh=inputs.mesh,
    )
  }


def _names(inputs, task, where) -> list[str]:
  """Returns the class names for a zero-shot head."""
  try:
    return zeroshot.names_of(
      inputs.config.zeroshot,
      task.model.num_classes,
      task.minival.name,
      task.minival.class_names,
      None,
    )
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from e


def _zeroshot(inputs, task, where):
  names, config = _names(inputs, task, where), inputs.config
  try:
    kernel, _ = zeroshot.head(
      inputs.start,
      names,
      config.zeroshot.templates,
      [config.skip] if config.skip else [],
    )
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from e
  classes = task.model.num_classes
  return {"head": {"kernel": kernel, "bias": np.zeros(classes, np.float32)}}


_HEADS = {
  "own": _of_checkpoint,
  "initial": _of_checkpoint,
  "file": _of_checkpoint,
  "probe": _probe,
  "zeroshot": _zeroshot,
}
