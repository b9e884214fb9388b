# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes one member of a sweep, or several side by side.

Reads top to bottom: the parts that members share, the loop, its ingredients.
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
from soupjax.evaluators import Evaluator
from soupjax.metric_writers import MetricWriter
from soupjax.progress import Progress
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import batches as batches_lib
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import init, step
from soupjax.train import step as train_step

PyTree = Any


@dataclasses.dataclass(eq=False)
class Job:
  """Everything that the members of a sweep share, compiled functions included.

  Attributes:
    config: of the sweep, before a member's overrides.
    mesh: "data", other axes of `config.sharding.mesh`; "member" in front where
      members are trained at once.
    model: with a head for the data's classes.
    train: the images to train on.
    minival: evaluates parameters on held-out images.
    params: the shared start, on the mesh.
    init_hash: of the shared start.
    off: hyperparameters of batch ops that are 0 in all members.
    l2_sp: whether any member is pulled to the start.
    compiled: by static config and number of members.
    held: train sets in memory, by their operations; None for one that is not.
  """

  config: Any
  mesh: jax.sharding.Mesh
  model: Any
  train: data.Source
  minival: Evaluator
  params: PyTree
  init_hash: str
  off: tuple[str, ...]
  l2_sp: bool
  compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)
  held: dict[str, Any] = dataclasses.field(default_factory=dict)


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
  mesh = step.make_mesh(config, at_once)
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
  init_hash = init.shared_start(config, model, train, mesh, workdir)
  shapes = abstract_params(config, model)
  rules = settings.sharding_rules(config)
  places = sharding.of_state(
    mesh, shapes, shapes, rules, fsdp_min_size=config.sharding.fsdp_min_size
  )
  by_name = dict(sharding.named(places))
  params = init.initial(workdir, lambda leaf, _: by_name[leaf])
  return Job(
    config=config,
    mesh=mesh,
    model=model,
    train=train,
    minival=Evaluator(model, batches, mesh=mesh, cache_gb=config.data.cache_gb),
    params=params,
    init_hash=init_hash,
    off=settings.off([m.config for m in members]),
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
        f"{shared} images are in both data.train={c.train!r} and data.minival="
        f"{c.minival!r}, so every choice made on minival would be biased. Use "
        "parts that do not overlap, such as 'train[:98%]' and 'train[98%:]'."
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
    members: of one static config; see `config.static`.

  Returns:
    Name -> reason, for members that failed.
  """
  config, num_train = members[0].config, len(job.train)
  run = _Run(job, members)
  per_call, end = config.steps_per_call, max(run.totals)
  checkpoint = _rounded_up(
    settings.steps(config, "checkpoint", num_train), per_call
  )

  # --- Hyperparameters, keys, data --------------------------------------------
  compiled = _compiled(job, config, len(members))
  hyper, keys = compiled.ready(
    _join([settings.hyper(m.config, num_train) for m in members]),
    _join([np.uint32(m.config.seed) for m in members]),
  )
  start = job.params if job.l2_sp else None
  batches = batches_lib.open_batches(job, [m.config for m in members])

  # --- State: the newest that is whole, else the start ------------------------
  directory = _state_directory(members)
  saver = train_state.StateSaver(directory)
  saved = train_state.restore(directory, compiled.shapes, compiled.places)
  if saved is None:
    first, state = 0, compiled.begin(job.params)
  else:
    state, record = saved
    first = record["step"]
    batches.set_state(record["data"])

  # --- Loop -------------------------------------------------------------------
  run.open_writers(first)
  progress = Progress(members[0].name, end, start=min(first, end))
  metrics = None
  for i in range(first, _rounded_up(end, per_call) + 1, per_call):
    # Work that is due after i steps. A state is saved last, so that nothing
    # before it is done again.
    run.save_ingredients(i, state, metrics)
    if i and i % checkpoint == 0 and first < i < end:
      run.check_finite(i, metrics)
      run.flush()
      if not run.failed:
        saver.save(i, state, {"step": i, "data": batches.get_state()})
    if i >= end or len(run.failed) == len(members):
      break
    # One more call; nothing here waits for the devices.
    images, labels = batches.next()
    with jax.transfer_guard("disallow"), step.memory_advice(config):
      state, metrics = compiled.step(state, images, labels, keys, hyper, start)
    run.log(i, metrics)
    count = min(per_call, end - i)
    progress.step(count, images=count * config.data.batch_size * len(members))
  run.flush()

  # --- End --------------------------------------------------------------------
  run.close()
  batches.close()
  saver.wait()
  for member in members:
    if member.name not in run.failed and jax.process_index() == 0:
      _finish(member)
  if not run.failed:
    saver.remove()
  return run.failed


class _Run:
  """Bookkeeping of members side by side: metrics, failures, ingredients."""

  def __init__(self, job: Job, members: Sequence[Member]):
    config, num_train = members[0].config, len(job.train)
    self.job, self.members = job, members
    self.totals = [settings.total_steps(m.config, num_train) for m in members]
    self.failed: dict[str, str] = {}
    self._per_call = config.steps_per_call
    self._log = max(settings.steps(config, "log", num_train), 1)
    # Metrics of an earlier call: read when the next ones are due.
    self._pending: tuple[int, Any] | None = None
    self._writers: list[MetricWriter] = []

  def open_writers(self, first: int) -> None:
    """Opens the log files, at the step where the run starts."""
    self._writers = [
      MetricWriter(m.directory, m.name, done=first) for m in self.members
    ]

  def log(self, i: int, metrics) -> None:
    """Notes the metrics of the call that began after i steps."""
    if (i + self._per_call) // self._log == i // self._log:
      return
    if self._pending is not None:
      begin, earlier = self._pending
      self.check_finite(begin + self._per_call, earlier)
    self.flush()
    self._pending = i, metrics

  def flush(self) -> None:
    """Writes pending metrics to the log files; waits for them."""
    if self._pending is None:
      return
    (i, metrics), self._pending = self._pending, None
    metrics = {k: _by_member(v) for k, v in jax.device_get(metrics).items()}
    for offset in range(self._per_call):
      at = i + offset + 1
      for k, writer in enumerate(self._writers):
        if at % self._log == 0 and at <= self.totals[k]:
          writer.write(at, {n: v[offset, k] for n, v in metrics.items()})

  def check_finite(self, i: int, metrics) -> None:
    """Notes members whose loss after i steps is not finite; waits for it."""
    if metrics is None:
      return  # No step has been done yet.
    last = jax.device_get((metrics["loss"], metrics["grad_norm"]))
    losses, norms = (_by_member(x)[-1] for x in last)
    for member, total, loss, norm in zip(
      self.members, self.totals, losses, norms
    ):
      if i - self._per_call >= total or np.isfinite(loss) and np.isfinite(norm):
        continue
      rate = member.config.hyper.learning_rate
      self.failed.setdefault(
        member.name,
        f"The loss of {member.name} is {loss} after {i} steps, the norm of its "
        f"gradient {norm}. Lower hyper.learning_rate (now {rate:g}) or "
        "optimizer.clip_norm, or warm up longer, in a new --workdir. "
        "Ingredients saved earlier are still good.",
      )

  def save_ingredients(self, i: int, state, metrics) -> None:
    """Saves the ingredients that are due after i steps."""
    for k, (member, total) in enumerate(zip(self.members, self.totals)):
      at = min(i, total)
      last = at == total and i - total < self._per_call
      if not last and not _along_the_run(member.config, i, total, self.job):
        continue
      self.check_finite(i, metrics)
      if member.name not in self.failed:
        together = len(self.members) > 1
        own = step.select(state, k) if together else state
        _save_ingredients(self.job, member, own, at, last, self.failed)

  def close(self) -> None:
    """Closes the log files."""
    for writer in self._writers:
      writer.close()


def _by_member(metric) -> np.ndarray:
  """Returns a metric as (steps, members)."""
  array = np.asarray(metric)
  return array[:, None] if array.ndim == 1 else array


def _rounded_up(number: int, multiple: int) -> int:
  """Returns the next multiple, at least one of it."""
  return max(-(-number // multiple), 1) * multiple


def _join(members):
  """Stacks the trees of several members; returns that of one as it is."""
  if len(members) == 1:
    return members[0]
  return jax.tree.map(lambda *x: np.stack(x), *members)


def _compiled(job, config, count) -> step.Compiled:
  options = {"off": job.off, "l2_sp": job.l2_sp}
  key = settings.static(config, **options), count
  if key not in job.compiled:
    job.compiled[key] = step.compile_step(
      config, job.model, job.mesh, job.params, count=count, **options
    )
  return job.compiled[key]


def _state_directory(members) -> pathlib.Path:
  """Returns the directory of the train state, shared by members at once."""
  if len(members) == 1:
    return members[0].directory
  name = f".{members[0].name}-{members[-1].name}"
  return members[0].directory.with_name(name)


def _along_the_run(config, i, total, job) -> bool:
  """Returns whether an ingredient is due after i steps, before the end."""
  if not config.ingredients:
    return False
  every = max(settings.steps(config, "ingredients", len(job.train)), 1)
  return 0 < i < total and i % every == 0


# --- Ingredients --------------------------------------------------------------


def _save_ingredients(job, member, state, i, last, failed) -> None:
  """Saves weights and moving averages after i steps, each with its metrics."""
  name = "last" if last else f"step_{i:08d}"
  versions = {name: (None, lambda: state.params)}
  for k, decay in enumerate(member.config.hyper.ema):
    versions[f"{name}_ema_{decay}"] = (
      decay,
      functools.partial(train_step.ema_params, state, k),
    )
  for name, (decay, params) in versions.items():
    path = member.directory / "ingredients" / name
    if workdir_lib.agreed(path.exists()):
      continue  # Saved before the run was killed.
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
  """Returns the values that are recorded beside an ingredient."""
  varied = config.hyper.to_dict() | config.data.augment.to_dict()
  return varied | {
    "seed": config.seed,
    "batch_size": config.data.batch_size,
    "loss": config.loss,
    "optimizer": config.optimizer.name,
  }


def _finish(member: Member) -> None:
  """Marks a run as done, with the metrics of its last ingredients."""
  metrics = {
    path.parent.name: files.read_json(path)
    for path in sorted(member.directory.glob("ingredients/*/metrics.json"))
  }
  files.write_json(member.directory / "done.json", metrics)
