# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fisher information and Gram matrices for the rules `fisher` and `regmean`."""

import os
import pathlib

import flax
import jax
import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import data, files
from soupjax.checkpoints import save
from soupjax.models import pretrained
from soupjax.models.linear_inputs import linear_inputs
from soupjax.progress import Progress
from soupjax.soups.rules import estimate
from soupjax.tasks import records
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import export, inputs, needs

KINDS = ("fisher", "grams")


def default_config() -> ml_collections.ConfigDict:
  """Returns all settings of this task."""
  c = cook_config.default_config()
  c.task = "statistics"
  c.data.minival = "train"  # The split to compute statistics on.
  c.data.batch_size = 32
  c.kinds = "fisher+grams"
  # Number of images, spread evenly over the split; 0 for all. The RegMean paper
  # uses about a thousand examples, the Fisher merging paper a few thousand.
  c.images = 1024
  return c


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike | None,
  *,
  dry_run: bool = False,
) -> None:
  """Writes Fisher information and Gram matrices; skips existing files.

  Args:
    config: as in configs/statistics.py.
    path: the directory of the run; may be None in a dry run.
      `NAME/fisher.safetensors` (`.npz` for big_vision checkpoints) has the leaf
      names of the ingredient's file, and `NAME/grams.safetensors` has soupjax's
      leaf names. If these differ, `NAME/model.safetensors` is the ingredient
      with soupjax's names.
    dry_run: opens checkpoints and data, prints the plan and stops.

  Raises:
    ValueError: if the config is invalid, checkpoints and data do not fit
      together, or there are several processes.
  """
  kinds = _check(config)
  opened = inputs.open_inputs(config)
  if opened.heads or not hasattr(opened.model, "num_classes"):
    raise ValueError(
      f"{opened.original.path} is a CLIP with both towers, but statistics need "
      "the outputs of a classifier: give checkpoints with a head."
    )
  if "grams" in kinds and getattr(opened.model, "scan", False):
    raise ValueError(
      f"{opened.original.path} has scanned layers, which regmean does not "
      "support: set --config.kinds=fisher."
    )
  source = opened.minival
  if 0 < config.images < len(source):
    indices = np.arange(config.images) * len(source) // config.images
    source = data.subset(source, indices, source.name)
  names = ", ".join(i.name for i in opened.ingredients)
  print(f"{' and '.join(kinds)} of {names}")
  print("\n".join([f"{len(source)} images of {source.name}", *opened.notes]))
  records.check_workdir(opened, path)
  if dry_run:
    print(needs.statistics(opened, path, kinds))
    return
  workdir = files.path_of(path)
  workdir_lib.open_workdir(workdir, opened.config)
  with workdir_lib.locked(workdir):
    records.check_unchanged(config, opened, workdir / "statistics.json")
    _run(opened, source, kinds, workdir)


def _check(config) -> list[str]:
  """Checks the config; returns the kinds."""
  cook_config.check(config)
  kinds = [kind.strip() for kind in config.kinds.split("+")]
  problems = config_lib.Problems(config)
  problems.expect_counts("images", least=0)
  problems.expect(
    "kinds",
    f"{' and '.join(KINDS)}, joined by +",
    lambda _: set(kinds) <= {*KINDS} and len(kinds) == len({*kinds}),
  )
  problems.expect("evaluate_command", "empty", lambda v: not v)
  problems.raise_if_any()
  if jax.process_count() > 1:
    raise ValueError("Statistics need a single process: omit --distributed.")
  return kinds


def _run(opened, source, kinds, workdir: pathlib.Path) -> None:
  total = len(opened.ingredients) * len(kinds)
  progress = Progress("statistics", total, unit="files")
  batches = data.eval_batches(
    source,
    batch_size=min(opened.config.data.batch_size, len(source)),
    preprocess=cook_config.eval_ops(opened.config),
  )
  for ingredient in opened.ingredients:
    folder = workdir / ingredient.name
    files.make_directory(folder)
    for kind in kinds:
      made = {"fisher": _fisher, "grams": _grams}[kind]
      made(opened, ingredient, batches, folder)
      progress.step(images=len(source))
  print(f"Statistics: {workdir}")


def _images(batches):
  """Yields the images of batches, without padding."""
  for batch in batches:
    yield batch["images"][batch["mask"]]


def _fisher(opened, ingredient, batches, folder) -> None:
  is_npz = opened.family in export.NPZ
  path = folder / ("fisher.npz" if is_npz else "fisher.safetensors")
  if path.exists():
    return

  def logits(params, images):
    return opened.model.apply({"params": params}, images)[0]

  params = jax.device_put(ingredient.load())
  fisher = estimate.diagonal_fisher(
    logits, params, _images(batches), seed=opened.config.seed
  )
  fisher = jax.tree.map(np.asarray, fisher)
  if opened.family is None:
    save.save_params(path, fisher)
    return
  pretrained.save_exported(
    path, fisher, opened.model, opened.family, like=opened.original
  )


def _grams(opened, ingredient, batches, folder) -> None:
  path, model = folder / "grams.safetensors", folder / "model.safetensors"
  if opened.family is not None and not model.exists():
    save.save_params(model, ingredient.load())
  if path.exists():
    return
  params = jax.device_put(ingredient.load())
  grams = estimate.activation_grams(
    linear_inputs(opened.model), params, _images(batches)
  )
  grams = {leaf: np.asarray(gram) for leaf, gram in grams.items()}
  save.save_params(path, flax.traverse_util.unflatten_dict(grams, sep="/"))
