# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The shared start of a sweep: pretrained weights and a probed head."""

import contextlib
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import config as config_lib
from soupjax import data, files, sharding
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints import provenance as provenance_lib
from soupjax.models import pretrained
from soupjax.soups.core import crc32
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import config as settings
from soupjax.train import probe

PyTree = Any


def shared_start(
  config, model, train: data.Source, mesh, workdir: pathlib.Path
) -> str:
  """Makes the start, unless another member has made it.

  Args:
    config: with `init` and `probe`.
    model: with a head of the right size.
    train: images to fit the head on.
    mesh: to compute features on.
    workdir: gets `initial/`, and its hash in `initial/init.json`.

  Returns:
    The hash of the weights, which every ingredient records.
  """
  done = workdir / "initial"
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:  # The others wait in `agreed`.
      stack.enter_context(workdir_lib.waiting(workdir / ".initial.lock"))
    if not workdir_lib.agreed(done.exists()):
      params = load(config, model)
      if config_lib.steps(config.probe.total, batch_size=1, num_examples=1):
        params = {**params, "head": _probed(config, model, params, train, mesh)}
      host = jax.tree.map(np.asarray, params)
      value = init_hash(Ingredient.from_params("initial", host))
      workdir_lib.save_model(done, host, init={"init_hash": value})
    return files.read_json(done / "init.json")["init_hash"]


def load(config, model) -> PyTree:
  """Reads pretrained weights, or draws random ones."""
  size = config.data.image_size
  image = np.zeros((1, size, size, 3), np.float32)
  # A seed of its own: members differ in config.seed, not in their start.
  init = jax.jit(model.init)(jax.random.key(config.init.seed), image)["params"]
  if not config.init.path:
    logging.warning(
      "init.path is empty: all members start from the same random weights. "
      "Soups need a pretrained model."
    )
    return init
  return pretrained.load_pretrained(
    config.init.path,
    model,
    head=config.init.head,
    image_size=size,
    init=init,
  )


def init_hash(start: Ingredient) -> str:
  """Hashes weights: names, shapes, dtypes and contents of all leaves."""
  sums = {
    leaf: crc32.crc32(np.ascontiguousarray(start.read(leaf)))
    for leaf in start.specs
  }
  return provenance_lib.content_hash(start.specs, sums)


def initial(workdir: pathlib.Path, place: Any) -> PyTree:
  """Reads the start onto the devices; `place` as in `load_params`."""
  return open_lib.load_params(workdir / "initial", sharding=place)


def _probed(config, model, params, train, mesh) -> PyTree:
  """Fits the head on frozen features, each computed once (arXiv 2202.10054)."""
  if jax.process_count() > 1:  # Every process fits the same head by itself.
    mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
  if 0 < config.probe.max_examples < len(train):
    # Evenly spread, since some sets are sorted by class.
    at = np.arange(config.probe.max_examples) * len(train)
    train = data.subset(train, at // config.probe.max_examples, train.name)
  batches = data.eval_batches(
    train,
    batch_size=settings.eval_batch_size(config, mesh.shape["data"]),
    preprocess=settings.ops(config, "eval_ops"),
  )

  @jax.jit
  def features_of(params, images):
    return model.apply({"params": params}, images)[1]

  params = jax.device_put(params, sharding.replicated(mesh))
  features, labels = [], []
  for batch in batches:
    mask = batch["mask"]
    images = jax.device_put(batch["images"], sharding.along(mesh, "data"))
    features.append(np.asarray(features_of(params, images))[mask])
    labels.append(batch["labels"][mask])
  return probe.linear_probe(
    np.concatenate(features),
    np.concatenate(labels),
    num_classes=model.num_classes,
    l2=config.probe.l2,
    steps=config_lib.steps(config.probe.total, batch_size=1, num_examples=1),
  )
