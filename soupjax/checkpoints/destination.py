# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs of a mix: written under a temporary name, then renamed."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import jax

from soupjax import files, processes
from soupjax.checkpoints import replaceable
from soupjax.checkpoints.formats import (
  byte_ranges,
  npz,
  orbax_writer,
  safetensors,
  safetensors_writer,
)
from soupjax.checkpoints.formats.recognise import recognise
from soupjax.soups.engine import plan as planning

FORMATS = ("orbax", "safetensors", "npz")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Destination:
  """An output that does not exist yet.

  Attributes:
    path: its final name.
    format: one of `FORMATS`.
    shard_bytes: of safetensors in shards, None for one file.
    overwrite: whether to replace what is there.
    plan: what will be written.
    text: more metadata, of safetensors only.
  """

  path: str
  format: str
  shard_bytes: int | None
  overwrite: bool
  plan: planning.Plan
  text: Mapping[str, str] | None = None

  @classmethod
  def of(
    cls,
    out: str | os.PathLike,
    format: str | None,
    shard_bytes: int | None,
    overwrite: bool,
    plan: planning.Plan,
  ) -> "Destination":
    """Finds the format from a name.

    Raises:
      ValueError: if it does not fit, or the path is an address.
    """
    out = os.fspath(out)
    if byte_ranges.is_remote(out):
      raise ValueError(
        f"{out}: soups are written to local paths. Write one, and copy it."
      )
    out = os.path.abspath(os.path.expanduser(out))
    if format is None:
      suffix = pathlib.PurePath(out).suffix
      format = {".safetensors": "safetensors", ".npz": "npz"}.get(
        suffix, "safetensors" if shard_bytes else "orbax"
      )
    if format not in FORMATS:
      raise ValueError(f"format={format!r} is none of {FORMATS}.")
    if shard_bytes is not None and (
      format != "safetensors" or shard_bytes < 1 or out.endswith(".safetensors")
    ):
      raise ValueError(
        f"shard_bytes={shard_bytes} goes with format='safetensors' and a "
        f"directory as out, not with {format} at {out}."
      )
    return cls(
      path=out,
      format=format,
      shard_bytes=shard_bytes,
      overwrite=overwrite,
      plan=plan,
    )

  @property
  def chunks(self) -> Mapping[str, tuple[int, ...]]:
    """Leaf -> shape that pieces are aligned with."""
    if self.format != "orbax":
      return self.plan.chunks
    # Read and written in one go: chunks of the output hold those of the input.
    found = dict(self.plan.chunks)
    for leaf, spec in self.plan.specs.items():
      found[leaf] = orbax_writer.chunk_shape(spec, found.get(leaf))
    return found

  @property
  def host_bytes(self) -> int:
    """Host memory that the writer holds besides the blocks."""
    # Two commits under way, in memory twice while they are encoded.
    if self.format != "orbax":
      return 1 << 20
    return min(
      4 * orbax_writer.COMMIT_BYTES, 4 * self.plan.write_bytes + (1 << 20)
    )

  @property
  def is_directory(self) -> bool:
    """Whether the output is a directory."""
    return self.format == "orbax" or self.shard_bytes is not None

  @property
  def temporary(self) -> str:
    """The name it has while it is written."""
    return str(files.temporary_name(self.path))

  @property
  def aside(self) -> str:
    """The name of a directory that is about to be replaced."""
    return f"{self.temporary}.old"

  def free_bytes(self) -> int:
    """Free space on the disk of the output."""
    return files.free_bytes(self.path)

  @property
  def num_bytes(self) -> int:
    """Bytes that it takes on disk, but for a header."""
    if self.format == "orbax":
      return orbax_writer.num_bytes(self.plan.specs, self.chunks)
    return self.plan.write_bytes

  def check(self, provenance: Mapping[str, Any]) -> None:
    """Checks what can be known before anything is read.

    Args:
      provenance: as long as the one that the writer's `finish` will get.

    Raises:
      ValueError: if something is in the way, the format cannot hold it, or
        there is no room.
    """
    if os.path.exists(self.path) and not self.overwrite:
      raise ValueError(
        f"{self.path} exists already: delete it, choose another out=, or pass "
        "overwrite=True."
      )
    if os.path.exists(self.aside) and not (
      self.overwrite or os.path.exists(self.path)
    ):
      raise ValueError(
        f"{self.aside} is what was at {self.path}, left by a run that was "
        "killed when it replaced it: rename it back or delete it, choose "
        "another out=, or pass overwrite=True."
      )
    replaceable.check_sources(self.path, self.plan.sources)
    if os.path.exists(self.path):
      replaceable.check_replaceable(self.path, self.is_directory)
    files.check_writable(self.path)
    if self.format == "orbax":
      orbax_writer.check(self.plan.specs)
    elif self.format == "npz":
      npz.check(self.plan.specs, provenance)
    else:
      safetensors_writer.check(self.plan.specs)
    files.check_room(self.path, self.num_bytes, self.free_bytes())

  @contextlib.contextmanager
  def opened(self, provenance: Mapping[str, Any]) -> Iterator[Any]:
    """Gives a writer; publishes what it wrote if nothing goes wrong.

    Args:
      provenance: as long as the one that the writer's `finish` will get.

    Yields:
      A `soupjax.soups.engine.run.Writer` with `finish(provenance)`.

    Raises:
      ValueError: if the place cannot be written, or another run is writing.
    """
    first = jax.process_index() == 0
    lock = writer = None
    try:
      if first:
        lock = self._prepare()
      processes.barrier("prepared")
      writer = self._writer(provenance, create=first)
      processes.barrier("created")
      yield _Finisher(writer, first)
      processes.barrier("finished")
      if first:
        self._publish()
      processes.barrier("published")
    except BaseException as e:
      if writer is not None:
        writer.close()
      if lock is not None:
        remove(self.temporary)
      if isinstance(e, OSError):
        raise byte_ranges.explained(e, self.path) from e
      raise
    finally:
      if lock is not None:
        os.close(lock)

  def _prepare(self) -> int:
    """Clears away what a killed run left; returns a lock on the place."""
    os.makedirs(os.path.dirname(self.path), exist_ok=True)
    if os.path.exists(self.temporary):
      os.close(self._lock())
      remove(self.temporary)
    if self.is_directory:
      os.mkdir(self.temporary)
    else:
      os.close(os.open(self.temporary, os.O_CREAT | os.O_WRONLY, 0o666))
    held = self._lock()
    # A run was killed while it replaced a directory, before or after the soup
    # was there.
    if os.path.exists(self.path):
      remove(self.aside)
    elif os.path.exists(self.aside):
      os.rename(self.aside, self.path)
    return held

  def _lock(self) -> int:
    """Locks the temporary name."""
    return files.lock(
      self.temporary,
      f"Another run is writing {self.path}: wait for it, or choose another "
      "out=.",
    )

  def _writer(self, provenance, create):
    specs, order = self.plan.specs, self.plan.order
    if self.format == "npz":
      return npz.NpzWriter(self.temporary, specs, order, create=create)
    if self.format == "orbax":
      return orbax_writer.OrbaxWriter(
        self.temporary,
        specs,
        self.plan.treedef,
        self.chunks,
        process=(jax.process_index(), jax.process_count()),
      )
    return safetensors_writer.SafetensorsWriter(
      self.temporary,
      specs,
      order,
      provenance,
      shard_bytes=self.shard_bytes,
      text=self.text or _origin(self.plan.sources[0]),
      create=create,
    )

  def _publish(self):
    if self.is_directory and os.path.exists(self.path):
      # Directories cannot be exchanged in one step: for a moment there is
      # nothing at the final name.
      remove(self.aside)
      os.rename(self.path, self.aside)
      os.rename(self.temporary, self.path)
      remove(self.aside)
    else:
      os.replace(self.temporary, self.path)
    folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


class _Finisher:
  """A writer whose `finish` knows which process it is in."""

  def __init__(self, writer, first):
    self.write = writer.write
    self._writer, self._first = writer, first

  def finish(self, provenance):
    processes.barrier("written")
    self._writer.finish(provenance, first=self._first)


def _origin(source) -> dict[str, str]:
  """What a safetensors source says about its origin, {"format": "pt"}.

  Some readers insist on it.
  """
  if source.path is None:
    return {}
  try:
    path, opener = recognise(source.path)
  except ValueError:  # Gone, or read by other means than ours.
    return {}
  if opener is not safetensors.open_checkpoint:
    return {}
  found = safetensors.metadata(path)
  return {k: v for k, v in found.items() if k == "format"}


def remove(path: str) -> None:
  """Removes a file or a directory, if it is there."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  elif os.path.lexists(path):
    os.remove(path)
