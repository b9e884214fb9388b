# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes one member of a sweep, or several side by side."""

from collections.abc import Sequence
import contextlib
import functools
from typing import Any

import jax
import numpy as np

from soupjax import files
from soupjax.checkpoints import train_state
from soupjax.metric_writers import MetricWriter
from soupjax.progress import Progress
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import adapter_files, step
from soupjax.tasks.finetune import batches as batches_lib
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune.job import Job, Member
from soupjax.train import step as train_step

PyTree = Any


def train(job: Job, members: Sequence[Member]) -> dict[str, str]:
  """Trains one member from the shared start, or several at once.

  Continues from the newest complete train state, and writes ingredients. After
  a failure, such as a loss of NaN, keeps the last train state from before.

  Args:
    job: from `open_job`.
    members: members with equal static configs; see `config.static`.

  Returns:
    Name -> reason of the members that failed.
  """
  with contextlib.ExitStack() as stack:
    return _train(job, members, stack)


def _train(job, members, stack: contextlib.ExitStack) -> dict[str, str]:
  """See `train`; `stack` closes files and threads, also after an error."""
  config, num_train = members[0].config, len(job.train)
  per_call = config.steps_per_call

  # --- Hyperparameters, keys, data --------------------------------------------
  compiled = _compiled(job, config, len(members))
  hyper, keys = compiled.ready(
    _stacked([settings.hyper(m.config, num_train) for m in members]),
    _stacked([np.uint32(m.config.seed) for m in members]),
  )
  shared = step.shared_of(config, job.l2_sp, job.params, job.shared)
  batches = batches_lib.open_batches(job, [m.config for m in members])
  stack.callback(batches.close)

  # --- State: the newest complete one, or the start ---------------------------
  directory = members[0].directory
  if len(members) > 1:  # They share one state.
    name = f".{members[0].name}-{members[-1].name}"
    directory = directory.with_name(name)
  saver = train_state.StateSaver(directory)
  stack.callback(saver.close)
  saved = train_state.restore(directory, compiled.shapes, compiled.places)
  if saved is None:
    first, state = 0, compiled.begin(job.params)
  else:
    state, record = saved
    first = record["step"]
    batches.set_state(record["data"])

  # --- Loop -------------------------------------------------------------------
  run = _Run(job, members, first)
  stack.callback(run.close_files)
  end = max(run.totals)
  every = max(settings.steps(config, "checkpoint", num_train), 1)
  checkpoint = settings.rounded_up(every, per_call)
  progress = Progress(members[0].name, end, start=min(first, end))
  metrics = None
  for i in range(
    first, settings.rounded_up(max(end, 1), per_call) + 1, per_call
  ):
    # Do the work that is due after i steps. The state is saved last, so that a
    # restart does not repeat this work.
    run.save_ingredients(i, state, metrics)
    if i and i % checkpoint == 0 and first < i < end:
      run.check_finite(i, metrics)
      run.flush()
      run.sync_files()
      if not run.failed:
        saver.save(i, state, {"step": i, "data": batches.get_state()})
    if i >= end or len(run.failed) == len(members):
      break
    # Launches one more call without waiting for the devices.
    batch = batches.next()
    with jax.transfer_guard("disallow"), step.memory_advice(config):
      state, metrics = compiled.step(state, batch, keys, hyper, shared)
    run.log(i, metrics)
    count = min(per_call, end - i)
    if i + count == end:
      jax.block_until_ready(metrics)  # So that the last line times all steps.
    progress.step(count, images=count * config.data.batch_size * len(members))

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


def _compiled(job, config, count) -> step.Compiled:
  options = {"off": job.off, "l2_sp": job.l2_sp}
  key = settings.static(config, **options), count
  if key not in job.compiled:
    job.compiled[key] = step.compile_step(
      config, job.model, job.mesh, job.params, count=count, **options
    )
  return job.compiled[key]


def _stacked(trees):
  """Stacks the trees of several members; returns that of one unchanged."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *x: np.stack(x), *trees)


class _Run:
  """Bookkeeping of members side by side: metrics, failures, ingredients."""

  def __init__(self, job: Job, members: Sequence[Member], first: int):
    """Opens the log files at the step where the run starts."""

    def duration(member, key):
      return settings.steps(member.config, key, len(job.train))

    self.job, self.members = job, members
    self.totals = [duration(m, "hyper.total") for m in members]
    self.failed: dict[str, str] = {}
    self._per_call = members[0].config.steps_per_call
    self._log = max(duration(members[0], "log"), 1)
    self._every = [
      max(duration(m, "ingredients"), 1) if m.config.ingredients else 0
      for m in members
    ]
    # Number of steps before an earlier call, and its metrics, which are read
    # when the next ones are due.
    self._pending: tuple[int, Any] | None = None
    self._writers = [
      MetricWriter(m.directory, m.name, done=first) for m in members
    ]

  def log(self, i: int, metrics) -> None:
    """Keeps the metrics of the call after step i, if they are to be logged."""
    if (i + self._per_call) // self._log == i // self._log:
      return
    if self._pending is not None:
      begin, earlier = self._pending
      self.check_finite(begin + self._per_call, earlier)
    self.flush()
    self._pending = i, metrics

  def flush(self) -> None:
    """Writes pending metrics to the log files; waits for the devices."""
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
    """Records members as failed if their loss after i steps is not finite."""
    if metrics is None:
      return  # This start has not done any step yet.
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
        f"The loss of {member.name} is {loss} after {i} steps, and the norm of "
        f"its gradient is {norm}. Lower hyper.learning_rate (now {rate:g}) or "
        "optimizer.clip_norm, or warm up longer, in a new --workdir. "
        "Ingredients saved earlier are still good.",
      )

  def save_ingredients(self, i: int, state, metrics) -> None:
    """Saves the ingredients that are due after i steps."""
    for k, (member, total) in enumerate(zip(self.members, self.totals)):
      last = total <= i < total + self._per_call
      along = self._every[k] and 0 < i < total and i % self._every[k] == 0
      if not last and not along:
        continue
      self.check_finite(i, metrics)
      if member.name not in self.failed:
        own = step.select(state, k) if len(self.members) > 1 else state
        name = "last" if last else f"step_{i:08d}"
        self._save(member, own, min(i, total), name)

  def _save(self, member: Member, state, i: int, name: str) -> None:
    """Saves the weights and moving averages after i steps, with metrics."""
    versions = {name: (None, lambda: state.params)}
    for k, decay in enumerate(member.config.hyper.ema):
      average = functools.partial(train_step.ema_params, state, k)
      versions[f"{name}_ema_{decay}"] = decay, average
    for name, (decay, params) in versions.items():
      path = member.directory / "ingredients" / name
      if workdir_lib.has_model(path):
        continue  # Saved before the run was killed.
      adapted = params()
      full = self._merged(adapted, member)
      try:
        metrics = self.job.metrics(full)
      except ValueError as e:
        self.failed[member.name] = f"{member.name}, {name}: {e}"
        return
      records = {
        "metrics": metrics,
        "hyperparameters": _hyperparameters(member.config)
        | {"steps": i, "ema": decay, **self.job.init_hashes},
      }
      if self.job.base is not None:
        self._save_adapter(name, adapted, member, records)
      workdir_lib.save_model(path, full, **records)

  def _merged(self, params, member: Member):
    """Returns the parameters with an adapter merged into the weights."""
    adapter = settings.adapter_of(member.config)
    return jax.jit(adapter.merged)(params) if adapter else params

  def _save_adapter(self, name, params, member: Member, records) -> None:
    """Writes the trained leaves as an adapter, before the ingredient exists."""
    if jax.process_index() == 0:
      adapter_files.write(
        member.directory / "adapters" / name,
        params,
        member.config,
        self.job.base,
        **records,
      )

  def sync_files(self) -> None:
    """Uploads the log files, if they are in a bucket."""
    for writer in self._writers:
      writer.sync()

  def close(self) -> None:
    """Writes pending metrics and closes the log files."""
    self.flush()
    self.close_files()

  def close_files(self) -> None:
    """Closes the log files, without waiting for pending metrics."""
    for writer in self._writers:
      writer.close()


def _by_member(metric) -> np.ndarray:
  """Returns a metric as (steps, members)."""
  array = np.asarray(metric)
  return array[:, None] if array.ndim == 1 else array


def _hyperparameters(config) -> dict[str, Any]:
  """Returns the hyperparameters that are recorded beside an ingredient."""
  varied = config.hyper.to_dict() | config.data.augment.to_dict()
  return varied | {
    "seed": config.seed,
    "batch_size": config.data.batch_size,
    "recipe": config.recipe,
    "loss": config.loss,
    "optimizer": config.optimizer.name,
  }


def _finish(member: Member) -> None:
  """Marks a member as done; records the metrics of its ingredients."""
  metrics = {
    path.parent.name: files.read_json(path)
    for path in sorted(member.directory.glob("ingredients/*/metrics.json"))
  }
  files.write_json(member.directory / "done.json", metrics)
