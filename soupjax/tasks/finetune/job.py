# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Data, model and start, which the members of a sweep share.

The start is made once, for instance from pretrained weights and a head fitted
by linear probing.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import config as config_lib
from soupjax import data, files, sharding
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints import provenance as provenance_lib
from soupjax.data.folders import displaced
from soupjax.evaluators import Evaluator
from soupjax.models import clip, pretrained
from soupjax.soups.core import crc32
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import heads, zeroshot
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import (
  adapter_files,
  objective,
  pixels,
  step,
  towers,
)
from soupjax.tasks.finetune import config as settings
from soupjax.train import recipes

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
  """One run: its name, resolved config and directory."""

  name: str
  config: Any
  directory: pathlib.Path

  @property
  def done(self) -> bool:
    """Whether all of its ingredients have been saved."""
    return (self.directory / "done.json").exists()


@dataclasses.dataclass(eq=False)
class Job:
  """Everything that the members of a sweep share, including compiled functions.

  Attributes:
    config: the sweep's config, without a member's overrides.
    mesh: with the axes of `config.sharding.mesh`, or "member" and "data" if
      several members are trained at once.
    model: the model, with a head for the data's classes.
    train: the images to train on.
    minival: evaluates parameters on held-out images.
    params: the shared start, on the mesh.
    init_hashes: "init_hash" of the shared start, and "encoder_init_hash" of the
      start without its head.
    off: hyperparameters of batch ops that are 0 in all members.
    l2_sp: whether any member is pulled to the start.
    compiled: (static config, number of members) -> compiled functions.
    held: operations -> decoded train set; None if it is not kept in memory.
    base: base model of the adapters; None if the whole model is trained.
    prompts: tokens of the prompts of all classes, on the host; None if the
      recipe does not use texts.
    shared: arrays that recipes read, on the mesh; see `train.recipes.Recipe`.
  """

  config: Any
  mesh: jax.sharding.Mesh
  model: Any
  train: data.Source
  minival: Evaluator
  params: PyTree
  init_hashes: dict[str, str]
  off: tuple[str, ...]
  l2_sp: bool
  compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)
  held: dict[str, Any] = dataclasses.field(default_factory=dict)
  base: adapter_files.Base | None = None
  prompts: np.ndarray | None = None
  shared: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

  def metrics(self, params: PyTree) -> dict[str, float]:
    """Evaluates a model on minival; a CLIP gets a head from its text tower.

    Args:
      params: parameters of the model, without adapters.

    Returns:
      Metric -> value.

    Raises:
      ValueError: if the loss of an image is not finite.
    """
    if self.prompts is not None:
      params = towers.with_head(self.model, params, self.prompts)
    return self.minival.metrics(params)


def open_job(
  config, members: Sequence[Member], workdir: pathlib.Path, at_once: int = 1
) -> Job:
  """Opens the data, builds the model and makes or reads the shared start.

  Args:
    config: the sweep's config.
    members: all members, including those that this process does not train.
    workdir: directory of the sweep; gets `initial/`.
    at_once: number of members that are trained side by side.

  Raises:
    ValueError: if data, model, start and devices do not fit together.
  """
  mesh = step.make_mesh(config, at_once)
  labelled, minival = open_data(config)
  train = towers.by_text(config, labelled)
  for member in members:
    settings.check_lengths(member.config, len(train), member.name)
  pixels.check_shapes([m.config for m in members], train, minival)
  batches = data.eval_batches(
    minival,
    batch_size=settings.eval_batch_size(config, mesh.shape["data"]),
    preprocess=settings.ops(config, "eval_ops"),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  model = settings.build_model(config)
  recipe = objective.recipe_of(config)
  prompts, record, shared = None, {}, {}
  if recipe.pairs:
    towers.check_labels(config, train)
    prompts, record = towers.open_prompts(config, model, labelled)
    shared["prompts"] = prompts
    if train is not labelled:
      shared["prompts"] = towers.open_captions(config, model, train)
  init_hashes = _shared_start(config, model, labelled, mesh, workdir, record)
  if any("context" in objective.recipe_of(m.config).shared for m in members):
    shared["context"] = _context(workdir)
  base = None
  if settings.adapter_of(config):
    base = adapter_files.base_of(config, model, workdir)
  return Job(
    config=config,
    mesh=mesh,
    model=model,
    train=train,
    minival=Evaluator(
      towers.forward(model) if recipe.pairs else model,
      batches,
      mesh=mesh,
      cache_gb=config.data.cache_gb,
    ),
    params=open_lib.load_params(
      workdir / "initial", sharding=step.leaf_sharding(config, model, mesh)
    ),
    init_hashes=init_hashes,
    base=base,
    prompts=prompts,
    shared=jax.device_put(shared, sharding.replicated(mesh)),
    **settings.shared_options([m.config for m in members]),
  )


def open_data(config) -> tuple[data.Source, data.Source]:
  """Opens the images to train on, and the held-out images (minival).

  Raises:
    ValueError: if they do not exist, some are in both sets, or their number or
      that of their classes is not the one in the config.
  """
  c = config.data
  options = {"data_dir": c.data_dir or None}
  train = data.open_source(c.name, c.train, **options)
  if c.minival:
    minival = data.open_source(c.name, c.minival, **options)
    if shared := data.shared_examples(train, minival):
      raise ValueError(
        f"{shared} images are in both data.train={c.train!r} and data.minival="
        f"{c.minival!r}, so every choice made on minival would be biased. Use "
        "parts that do not overlap, such as 'train[:98%]' and 'train[98%:]'."
      )
  else:
    train, minival = data.split_minival(train, per_class=c.minival_per_class)
  for note in dict.fromkeys((*train.notes, *minival.notes)):
    logging.warning("%s", note)
  if train.num_classes != c.num_classes:
    raise ValueError(
      f"{train.name} has {train.num_classes} classes, not data.num_classes="
      f"{c.num_classes}."
    )
  if c.num_train and c.num_train != len(train):
    raise ValueError(
      f"{train.name} has {len(train)} images, not data.num_train={c.num_train}."
    )
  return train, minival


# --- The shared start ---------------------------------------------------------


def _shared_start(
  config, model, train: data.Source, mesh, workdir: pathlib.Path, record=None
) -> dict[str, str]:
  """Makes `initial/` in workdir unless it exists; returns its hashes.

  If there is a `record`, it is written to `initial/zeroshot.json`.
  """
  start = workdir / "initial"
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:  # The others wait in `agreed`.
      stack.enter_context(workdir_lib.waiting(workdir / ".initial.lock"))
    if not workdir_lib.has_model(start):
      _check_classes(config, train)
      params = _initial_params(config, model)
      records = {"zeroshot": record} if record else {}
      if config.init.head == "zeroshot":
        params, records = _zeroshot(config, params, train)
      if _probe_steps(config):
        params = {**params, "head": _probed(config, model, params, train, mesh)}
      host = jax.tree.map(np.asarray, params)
      hashes = {"init_hash": init_hash(Ingredient.from_params("initial", host))}
      encoder = {k: v for k, v in host.items() if k not in heads.MODULES}
      if encoder:  # Some models are only a head.
        hashes["encoder_init_hash"] = init_hash(
          Ingredient.from_params("encoder", encoder)
        )
      workdir_lib.save_model(start, host, init=hashes, **records)
    return files.read_json(start / "init.json")


def _check_classes(config, train: data.Source) -> None:
  """Rejects a start whose head has the classes in another order than the data.

  Raises:
    ValueError: if it does. The message names such a class.
  """
  c = config.init
  if not c.path or c.head in ("new", "zeroshot") or _probe_steps(config):
    return
  start = settings.detect_start(config)
  if start.options.get("num_classes") != train.num_classes:
    return
  names = train.class_names or ()
  if places := displaced(names, start.classes):
    k, at = places
    raise ValueError(
      f"{names[k]!r} is class {k} of {train.name}, but output {at} of the head "
      f"of {c.path}, according to the config.json beside it: start with a new "
      "head, --config.init.head=new, or a fitted one, "
      "--config.probe.total=200steps."
    )


def _initial_params(config, model) -> PyTree:
  """Reads pretrained weights, or draws random ones."""
  inputs = towers.inputs(config, model)
  # Members differ in config.seed, but share the seed of their start.
  key = jax.random.key(config.init.seed)
  init = jax.jit(model.init)(key, *inputs)["params"]
  if not config.init.path:
    logging.warning(
      "init.path is empty: all members start from the same random weights. "
      "Soups need a pretrained model."
    )
    return init
  if isinstance(model, clip.CLIP):
    return towers.initial(config, model, init)
  return pretrained.load_pretrained(
    config.init.path,
    model,
    head="new" if config.init.head == "zeroshot" else config.init.head,
    image_size=config.data.image_size,
    init=init,
    **settings.part_of_start(config),
  )


def _zeroshot(config, params, train) -> tuple[PyTree, dict[str, Any]]:
  """Makes the initial head from the names of the classes (arXiv 2109.01903).

  Returns:
    The parameters, and name -> JSON value of records to write beside them.

  Raises:
    ValueError: if the names or the text tower cannot be used.
  """
  c, part = config.init, settings.part_of_start(config)
  names = towers.names_of(config, train)
  templates = config.zeroshot.templates
  kernel, record = zeroshot.head(c.path, names, templates, **part)
  records: dict[str, Any] = {"zeroshot": record}
  head = params["head"]
  if kernel.shape != head["kernel"].shape:
    raise ValueError(
      f"Embeddings of texts have size {len(kernel)} in {c.path}, but the "
      f"features of the model have size {len(head['kernel'])}: set "
      f"model.proj_size={len(kernel)}, as in the checkpoint."
    )
  if "context" in recipes.of(config.recipe).shared:
    weights = zeroshot.context(c.path, names, templates, **part)
    records["context"] = weights.tolist()
  return {**params, "head": {**head, "kernel": kernel}}, records


def _context(workdir: pathlib.Path) -> np.ndarray:
  """Reads the weights of contexts, which were recorded beside the start."""
  return np.asarray(
    workdir_lib.read(workdir / "initial" / "context.json"), np.float32
  )


def init_hash(start: Ingredient) -> str:
  """Hashes names, shapes, dtypes and contents of all leaves."""
  sums = {
    leaf: crc32.crc32(np.ascontiguousarray(start.read(leaf)))
    for leaf in start.specs
  }
  return provenance_lib.content_hash(start.specs, sums)


def _probe_steps(config) -> int:
  return config_lib.steps(config.probe.total, batch_size=1, num_examples=1)


def _probed(config, model, params, train, mesh) -> PyTree:
  """Fits the head on frozen features of the train set."""
  return heads.fit(
    model,
    params,
    train,
    preprocess=settings.ops(config, "eval_ops"),
    batch_size=settings.eval_batch_size(config, 1),
    num_classes=model.num_classes,
    l2=config.probe.l2,
    steps=_probe_steps(config),
    max_examples=config.probe.max_examples,
    mesh=mesh,
    # ELEVATER (arXiv 2204.08790) starts probes from the zero-shot head.
    init=params["head"] if config.init.head == "zeroshot" else None,
  )
