# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a fine-tuning config: once, one member of its sweep, or all of them."""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import traceback
from typing import Any

from absl import logging
import jax
import ml_collections

from soupjax import buckets, files, processes
from soupjax.checkpoints import replaceable
from soupjax.checkpoints.adapters import peft_files
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import loop, pixels
from soupjax.tasks.finetune.job import Job, Member, open_job


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  sweep: Sequence[dict[str, Any]] | None = None,
  index: int | None = None,
) -> list[pathlib.Path]:
  """Fine-tunes the members that are not done.

  Args:
    config: with the keys of `config.default_config`.
    path: the directory of the run, or of all members of the sweep.
    sweep: dotted overrides, one dict per member; None runs the config itself.
    index: index of the one member to run; None runs all.

  Returns:
    The directories of the members, each with `ingredients/NAME`.

  Raises:
    ValueError: if the config is invalid. Also if members failed, but only after
      the others have run.
  """
  config = settings.with_model_of_start(config)
  settings.check(config)
  pixels.check(config)
  workdir = files.path_of(path)
  if config.adapter.kind:
    peft_files.check_local(workdir)
    if jax.process_count() > 1:
      raise ValueError(
        f"adapter.kind={config.adapter.kind!r} is for one process, since only "
        "the first one writes the files of adapters: leave --distributed out."
      )
  remote = buckets.is_remote(config.init.path) or buckets.is_remote(workdir)
  if config.init.path and not remote:
    replaceable.check_folder(workdir, os.path.expanduser(config.init.path))
  # Compile for all members even if only one is run, so that it gives the same
  # numbers.
  members = all_members = members_of(config, workdir, sweep)
  members = chosen(members, index)
  # All jobs of a Slurm array may get here at the same time.
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"{workdir} is a file: choose a directory.")
  is_new = not workdir_lib.exists(workdir / "config.json")
  if jax.process_index() == 0:
    with workdir_lib.waiting(workdir / ".start.lock"):
      workdir_lib.open_workdir(workdir, _recorded(config))
    for member in members if sweep is not None else ():
      if member.done:  # Reject results of a sweep that has changed.
        workdir_lib.open_workdir(member.directory, _recorded(member.config))
  processes.check_shared(workdir)
  done = workdir_lib.agreed([m.name for m in members if m.done])
  chunks = chunked(members, max(config.population, 1))
  left = [chunk for chunk in chunks if {m.name for m in chunk} - set(done)]
  failed: dict[str, str] = {}
  jobs: dict[int, Job] = {}
  for chunk in left:
    try:
      if len(chunk) not in jobs:
        jobs[len(chunk)] = open_job(
          config, all_members, workdir, at_once=len(chunk)
        )
      with _opened(chunk, workdir):
        failed |= loop.train(jobs[len(chunk)], chunk)
    except Exception as e:  # A failed member must not stop the others.
      if is_new and not jobs and jax.process_index() == 0:
        workdir_lib.forget(workdir)
      if len(left) == 1 or len(chunk) not in jobs:
        raise
      if not isinstance(e, (ValueError, OSError)) or logging.vlog_is_on(1):
        logging.error("%s", traceback.format_exc())
      reason = f"{type(e).__name__}: {e}"
      failed |= {m.name: reason for m in chunk if m.name not in done}
  if failed:
    lines = [f"{name}: {reason}" for name, reason in failed.items()]
    raise ValueError(
      f"{len(failed)} of {len(members)} runs failed. The same command runs "
      "only these again:\n  " + "\n  ".join(lines)
    )
  return [m.directory for m in members]


def members_of(
  config, workdir: str | os.PathLike, sweep: Sequence[dict[str, Any]] | None
) -> list[Member]:
  """Lists the members of a sweep, with resolved and checked configs.

  Args:
    config: the sweep's config.
    workdir: directory of the sweep.
    sweep: dotted overrides, one dict per member. None gives one member, "run",
      with the config itself, unchecked.

  Raises:
    ValueError: if a member's config is invalid. The message names the member.
  """
  workdir = files.path_of(workdir)
  if sweep is None:
    return [Member("run", config, workdir)]
  members = []
  for k, overrides in enumerate(sweep):
    name = f"member_{k:03d}"
    resolved = settings.member_config(config, overrides, k)
    try:
      settings.check(resolved)
      pixels.check(resolved)
    except ValueError as e:
      raise ValueError(f"{name} of the sweep, {overrides}: {e}") from e
    members.append(Member(name, resolved, workdir / name))
  return members


def chosen(members: Sequence[Member], index: int | None) -> list[Member]:
  """Returns the member with an index, or all members if it is None.

  Raises:
    ValueError: if there is no such member.
  """
  if index is None:
    return list(members)
  if not 0 <= index < len(members):
    raise ValueError(
      f"--sweep_index={index}: the sweep has members 0 to {len(members) - 1}."
    )
  return [members[index]]


def chunked(members: Sequence[Member], size: int) -> list[list[Member]]:
  """Splits members into groups that are trained at once.

  Members of a group share a compiled step. Those that are done stay in their
  groups, so that the groups are the same when a sweep is started again.

  Args:
    members: the members to train.
    size: maximum number of members in a group.
  """
  options = settings.shared_options([m.config for m in members])
  kinds: dict[str, list[Member]] = {}
  for member in members:
    key = settings.static(member.config, **options)
    kinds.setdefault(key, []).append(member)
  return [
    kind[i : i + size]
    for kind in kinds.values()
    for i in range(0, len(kind), size)
  ]


def _recorded(config) -> ml_collections.ConfigDict:
  """Returns the config without keys that do not affect the results."""
  recorded = ml_collections.ConfigDict(config.to_dict())
  for name in ("population", "log", "checkpoint"):
    del recorded[name]
  for name in ("num_workers", "in_memory", "cache_gb"):
    del recorded.data[name]
  return recorded


@contextlib.contextmanager
def _opened(members, workdir: pathlib.Path) -> Iterator[None]:
  """Opens and locks the directories of members to be trained."""
  with contextlib.ExitStack() as stack:
    for member in members if jax.process_index() == 0 else ():
      if member.directory != workdir:
        workdir_lib.open_workdir(member.directory, _recorded(member.config))
      stack.enter_context(workdir_lib.locked(member.directory))
    workdir_lib.agreed("opened")
    yield
