# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes one model, or all members of a sweep side by side.

Reads top to bottom: what members share, one run, its loop, its ingredients.
Settings are in `finetune_config`, the start in `finetune_start`, the compiled
parts in `finetune_step`, sweeps in `finetune_sweep`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from soupjax import data, files, sharding
from soupjax.checkpoints import train_state
from soupjax.evaluators import Streaming
from soupjax.metric_writers import MetricWriter
from soupjax.progress import Progress
from soupjax.tasks import finetune_config as settings
from soupjax.tasks import finetune_start, finetune_step
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune_step import memory_advice
from soupjax.train import finetune

PyTree = Any


@dataclasses.dataclass(eq=False)
class Job:
  """What all members of a sweep share; compiled functions among it.

  Attributes:
    config: of the sweep, before a member's overrides.
    mesh: "data", other axes of `config.sharding.mesh`; "member" in front where
      members are trained at once.
    model: with a head for the data's classes.
    train: the images to train on.
    minival: evaluates parameters on held-out images.
    params: the shared start, on the mesh.
    init_hash: of the shared start.
    erasing: whether any member erases.
    l2_sp: whether any member is pulled to the start.
    compiled: by what they depend on.
  """

  config: Any
  mesh: jax.sharding.Mesh
  model: Any
  train: data.Source
  minival: Streaming
  params: PyTree
  init_hash: str
  erasing: bool
  l2_sp: bool
  compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
  """One run: its name, resolved config and directory."""

  name: str
  config: Any
  directory: pathlib.Path

  @property
  def done(self) -> bool:
    """Whether all of its ingredients are there."""
    return (self.directory / "done.json").exists()


def prepare(
  config, members: Sequence[Member], workdir: pathlib.Path, at_once: int = 1
) -> Job:
  """Opens the data, builds the model and makes or finds the shared start.

  Args:
    config: of the sweep.
    members: all of the sweep, also those that this process does not train.
    workdir: gets `initial/`.
    at_once: members that are trained side by side.

  Raises:
    ValueError: if data, model, start and devices do not fit together.
  """
  # --- Devices ----------------------------------------------------------------
  mesh = finetune_step.make_mesh(config, at_once)
  # --- Data -------------------------------------------------------------------
  train, minival = open_data(config)
  for member in members:
    settings.check_lengths(member.config, len(train), member.name)
  batches = data.eval_batches(
    minival,
    batch_size=settings.eval_batch_size(config, mesh.shape["data"]),
    preprocess=settings.ops(config, "eval_ops"),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  # --- Model and start --------------------------------------------------------
  model = settings.build_model(config)
  init_hash = finetune_start.shared_start(config, model, train, mesh, workdir)
  shapes = abstract_params(config, model)
  rules = settings.sharding_rules(config)
  places = sharding.of_state(
    mesh, shapes, shapes, rules, fsdp_min_size=config.sharding.fsdp_min_size
  )
  by_name = dict(sharding.named(places))
  params = finetune_start.initial(workdir, lambda leaf, _: by_name[leaf])
  return Job(
    config=config,
    mesh=mesh,
    model=model,
    train=train,
    minival=Streaming(
      model,
      batches,
      functools.partial(finetune_step.put_batch, mesh, axes=("data",)),
    ),
    params=params,
    init_hash=init_hash,
    erasing=any(m.config.hyper.erasing > 0 for m in members),
    l2_sp=any(m.config.hyper.l2_sp > 0 for m in members),
  )


def open_data(config) -> tuple[data.Source, data.Source]:
  """Opens the images to train on, and those held out.

  Raises:
    ValueError: if they are not there, not of `data.num_classes` classes, or
      some are in both.
  """
  c = config.data
  options = {"data_dir": c.data_dir or None}
  train = data.open_source(c.name, c.train, **options)
  if c.minival:
    minival = data.open_source(c.name, c.minival, **options)
    if shared := data.shared_examples(train, minival):
      raise ValueError(
        f"{shared} images are in data.train={c.train!r} and in data.minival="
        f"{c.minival!r}: what is chosen on images that were trained on is "
        "chosen wrongly. Take parts that do not overlap, as 'train[:98%]' and "
        "'train[98%:]'."
      )
  else:
    train, minival = data.split_minival(train, per_class=c.minival_per_class)
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


def abstract_params(config, model) -> PyTree:
  """Shapes and dtypes of a model's parameters; computes nothing."""
  size = config.data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


# --- One run, or several at once ----------------------------------------------


def train(job: Job, members: Sequence[Member]) -> dict[str, str]:
  """Trains members from the shared start, several of them at once.

  Goes on from the newest train state that is whole. Ends with ingredients on
  disk, or with the train state from before the loss became NaN.

  Args:
    job: from `prepare`.
    members: of one static config; see `finetune_config.static`.

  Returns:
    Name -> why it failed.
  """
  together = len(members) > 1
  config, num_train = members[0].config, len(job.train)
  totals = [settings.total_steps(m.config, num_train) for m in members]
  log, checkpoint = (
    max(settings.steps(config, key, num_train), 1)
    for key in ("log", "checkpoint")
  )

  # --- Hyperparameters, keys, data --------------------------------------------
  compiled = _compiled(job, config, len(members))
  hyper, keys = compiled.ready(
    _join([settings.hyper(m.config, num_train) for m in members]),
    _join([np.uint32(m.config.seed) for m in members]),
  )
  start = job.params if job.l2_sp else None
  axes = ("member", "data") if together else ("data",)
  loaders = [_loader(job, m.config) for m in members]

  # --- State: the newest that is whole, else the start ------------------------
  directory = _state_directory(members)
  saver = train_state.StateSaver(directory)
  found = train_state.restore(directory, compiled.shapes, compiled.places)
  if found is None:
    first, state = 0, compiled.begin(job.params)
  else:
    state, record = found
    first = record["step"]
    for loader, at in zip(loaders, record["data"]):
      loader.set_state(at)

  # --- Loop -------------------------------------------------------------------
  failed: dict[str, str] = {}
  writers = [MetricWriter(m.directory, m.name, done=first) for m in members]
  progress = Progress(members[0].name, max(totals), start=first)
  metrics = None
  pending = None  # Metrics of the last log step: read when the next one is due.
  for i in range(first, max(totals) + 1):
    # What is due after i steps. A state is saved last: what is before it need
    # not be done again.
    for k, (member, total) in enumerate(zip(members, totals)):
      if _is_due(member.config, i, total, num_train):
        _check_finite(members, totals, i, metrics, failed)
        if member.name not in failed:
          mine = finetune_step.select(state, k) if together else state
          _save_ingredients(job, member, mine, i, i == total, failed)
    if i and i % checkpoint == 0 and first < i < max(totals):
      _check_finite(members, totals, i, metrics, failed)
      if pending is not None:
        _write(writers, totals, *pending)
        pending = None
      at = [loader.get_state() for loader in loaders]
      if not failed:
        saver.save(i, state, {"step": i, "data": at})
    if i == max(totals) or len(failed) == len(members):
      break
    # One more step; nothing here waits for the devices.
    batch = _join([next(loader) for loader in loaders])
    batch = finetune_step.put_batch(job.mesh, batch, axes)
    with jax.transfer_guard("disallow"), memory_advice(config):
      state, metrics = compiled.step(
        state, batch["images"], batch["labels"], keys, hyper, start
      )
    if (i + 1) % log == 0:
      if pending is not None:
        _check_finite(members, totals, *pending, failed)
        _write(writers, totals, *pending)
      pending = (i + 1, metrics)
    progress.step(images=config.data.batch_size * len(members))
  if pending is not None:
    _write(writers, totals, *pending)

  # --- End --------------------------------------------------------------------
  for closing in (*writers, *loaders):
    closing.close()
  saver.wait()
  for member in members:
    if member.name not in failed and jax.process_index() == 0:
      _finish(member)
  if not failed:
    saver.remove()
  return failed


def _join(found):
  """Stacks what is of several members; leaves what is of one as it is."""
  if len(found) == 1:
    return found[0]
  return jax.tree.map(lambda *x: np.stack(x), *found)


def _loader(job, config):
  return data.train_loader(
    job.train,
    batch_size=config.data.batch_size,
    seed=config.seed,
    preprocess=settings.ops(config, "train_ops"),
    num_workers=config.data.num_workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _compiled(job, config, count) -> finetune_step.Compiled:
  options = {"erasing": job.erasing, "l2_sp": job.l2_sp}
  key = settings.static(config, **options), count
  if key not in job.compiled:
    job.compiled[key] = finetune_step.compile_step(
      config, job.model, job.mesh, job.params, count=count, **options
    )
  return job.compiled[key]


def _state_directory(members) -> pathlib.Path:
  """Where the train state is: several members have one together."""
  if len(members) == 1:
    return members[0].directory
  name = f".{members[0].name}-{members[-1].name}"
  return members[0].directory.with_name(name)


def _is_due(config, i, total, num_train) -> bool:
  """Whether an ingredient is saved after i steps of a run."""
  if i == total or not config.ingredients:
    return i == total
  every = max(settings.steps(config, "ingredients", num_train), 1)
  return 0 < i < total and i % every == 0


def _check_finite(members, totals, i, metrics, failed) -> None:
  """Notes members whose loss after i steps is not finite; waits for it."""
  if metrics is None:
    return  # No step has been done yet.
  found = jax.device_get((metrics["loss"], metrics["grad_norm"]))
  losses, norms = (np.atleast_1d(x) for x in found)
  for member, total, loss, norm in zip(members, totals, losses, norms):
    if i > total or np.isfinite(loss) and np.isfinite(norm):
      continue
    rate = member.config.hyper.learning_rate
    failed.setdefault(
      member.name,
      f"The loss of {member.name} is {loss} after {i} steps, the norm of its "
      f"gradient {norm}. Lower hyper.learning_rate (now {rate:g}) or "
      "optimizer.clip_norm, or warm up longer, in a new --workdir. What was "
      "saved before is still good.",
    )


def _write(writers, totals, i, metrics) -> None:
  """Logs the metrics after i steps."""
  metrics = {k: np.atleast_1d(jax.device_get(v)) for k, v in metrics.items()}
  for k, writer in enumerate(writers):
    if i <= totals[k]:
      writer.write(i, {name: value[k] for name, value in metrics.items()})


# --- Ingredients --------------------------------------------------------------


def _save_ingredients(job, member, state, i, last, failed) -> None:
  """Saves the weights and their moving averages, each with its metrics."""
  name = "last" if last else f"step_{i:08d}"
  versions = {name: (None, lambda: state.params)}
  for k, decay in enumerate(member.config.hyper.ema):
    versions[f"{name}_ema_{decay}"] = (
      decay,
      functools.partial(finetune.ema_params, state, k),
    )
  for name, (decay, params) in versions.items():
    path = member.directory / "ingredients" / name
    if workdir_lib.agreed(path.exists()):
      continue  # Of the run that was killed after it.
    try:
      metrics = job.minival.metrics(params())
    except ValueError as e:
      failed[member.name] = f"{member.name}, {name}: {e}"
      return
    workdir_lib.save_model(
      path,
      params(),
      metrics=metrics,
      hyperparameters=_hyperparameters(member.config)
      | {"steps": i, "ema": decay, "init_hash": job.init_hash},
    )


def _hyperparameters(config) -> dict[str, Any]:
  """What is recorded beside an ingredient, flat."""
  found = config.hyper.to_dict() | config.data.augment.to_dict()
  return found | {
    "seed": config.seed,
    "batch_size": config.data.batch_size,
    "loss": config.loss,
    "optimizer": config.optimizer.name,
  }


def _finish(member: Member) -> None:
  """Marks a run as done, with the metrics of its last ingredients."""
  found = {
    path.parent.name: files.read_json(path)
    for path in sorted(member.directory.glob("ingredients/*/metrics.json"))
  }
  files.write_json(member.directory / "done.json", found)
