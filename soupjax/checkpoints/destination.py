# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Destinations of a mix: written under a temporary name, then renamed."""

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
  """The file or directory that a mix will write.

  Attributes:
    path: its final name.
    format: one of `FORMATS`.
    shard_bytes: the size of safetensors shards, None for one file.
    overwrite: whether to replace an existing checkpoint.
    plan: of the mix.
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
    """Makes a destination; the suffix of `out` implies the format.

    Raises:
      ValueError: if format and path contradict each other, or the path is
        remote.
    """
    out = os.fspath(out)
    if byte_ranges.is_remote(out):
      raise ValueError(
        f"{out}: soups are written to local paths only. Write one and copy it."
      )
    out = os.path.abspath(os.path.expanduser(out))
    if format is None:
      suffix = pathlib.PurePath(out).suffix
      format = {".safetensors": "safetensors", ".npz": "npz"}.get(
        suffix, "safetensors" if shard_bytes else "orbax"
      )
    if format not in FORMATS:
      raise ValueError(f"format={format!r} must be one of {FORMATS}.")
    if shard_bytes is not None and (
      format != "safetensors" or shard_bytes < 1 or out.endswith(".safetensors")
    ):
      raise ValueError(
        f"shard_bytes={shard_bytes} needs format='safetensors' and a directory "
        f"as out, but got {format} at {out}."
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
    """Leaf -> shape that blocks are aligned with."""
    if self.format != "orbax":
      return self.plan.chunks
    # Output chunks consist of whole input chunks, so that each is read once.
    return dict(self.plan.chunks) | {
      leaf: orbax_writer.chunk_shape(spec, self.plan.chunks.get(leaf))
      for leaf, spec in self.plan.specs.items()
    }

  @property
  def host_bytes(self) -> int:
    """Host memory of the writer, without the blocks."""
    if self.format != "orbax":
      return 1 << 20
    # Two commits at a time, each in memory twice while it is encoded.
    return min(
      4 * orbax_writer.COMMIT_BYTES, 4 * self.plan.write_bytes + (1 << 20)
    )

  @property
  def is_directory(self) -> bool:
    """Whether the output is a directory."""
    return self.format == "orbax" or self.shard_bytes is not None

  @property
  def temporary(self) -> str:
    """The name of the output while it is written."""
    return str(files.temporary_name(self.path))

  @property
  def aside(self) -> str:
    """The name of the old directory while it is replaced."""
    return f"{self.temporary}.old"

  def free_bytes(self) -> int:
    """Returns the free space on the disk of the output."""
    return files.free_bytes(self.path)

  @property
  def num_bytes(self) -> int:
    """Bytes on disk, without headers."""
    if self.format == "orbax":
      return orbax_writer.num_bytes(self.plan.specs, self.chunks)
    return self.plan.write_bytes

  def check(self, provenance: Mapping[str, Any]) -> None:
    """Checks everything that can be checked before reading weights.

    Args:
      provenance: of the same length as the one that the writer's `finish` gets.

    Raises:
      ValueError: if the path is taken, the format cannot hold the leaves, or
        the disk is too full.
    """
    exists = os.path.exists(self.path)
    if exists and not self.overwrite:
      raise ValueError(
        f"{self.path} exists already: delete it, choose another out= or pass "
        "overwrite=True."
      )
    if os.path.exists(self.aside) and not (self.overwrite or exists):
      raise ValueError(
        f"{self.aside} is the previous content of {self.path}, left by a run "
        "that was killed while it replaced it: rename it back, delete it, "
        "choose another out= or pass overwrite=True."
      )
    replaceable.check_sources(self.path, self.plan.sources)
    if exists:
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
    """Opens a writer and publishes its output on success.

    Args:
      provenance: of the same length as the one that the writer's `finish` gets.

    Yields:
      A `soupjax.checkpoints.formats.block_writer.BlockWriter`.

    Raises:
      ValueError: if the path cannot be written, or another run is writing it.
    """
    first = jax.process_index() == 0
    lock = writer = None
    try:
      if first:
        lock = self._prepare()
      processes.barrier("prepared")
      writer = self._writer(provenance, first)
      processes.barrier("created")
      yield writer
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
        files.explain(e, self.path)
      raise
    finally:
      if lock is not None:
        os.close(lock)

  def _prepare(self) -> int:
    """Removes the remains of a killed run; returns a lock on the output."""
    os.makedirs(os.path.dirname(self.path), exist_ok=True)
    if os.path.exists(self.temporary):
      os.close(self._lock())
      remove(self.temporary)
    if self.is_directory:
      os.mkdir(self.temporary)
    else:
      os.close(os.open(self.temporary, os.O_CREAT | os.O_WRONLY, 0o666))
    lock = self._lock()
    # A run was killed while it replaced a directory, after or before the new
    # one had its name.
    if os.path.exists(self.path):
      remove(self.aside)
    elif os.path.exists(self.aside):
      os.rename(self.aside, self.path)
    return lock

  def _lock(self) -> int:
    """Locks the temporary name."""
    return files.lock(
      self.temporary,
      f"Another run is writing {self.path}: wait for it or choose another "
      "out=.",
    )

  def _writer(self, provenance, first):
    specs, order = self.plan.specs, self.plan.order
    if self.format == "npz":
      return npz.NpzWriter(self.temporary, specs, order, first=first)
    if self.format == "orbax":
      return orbax_writer.OrbaxWriter(
        self.temporary, specs, self.plan.treedef, self.chunks
      )
    return safetensors_writer.SafetensorsWriter(
      self.temporary,
      specs,
      order,
      provenance,
      shard_bytes=self.shard_bytes,
      text=self.text or _origin(self.plan.sources[0]),
      first=first,
    )

  def _publish(self):
    if self.is_directory and os.path.exists(self.path):
      # Directories cannot be exchanged in one step, so the final name is free
      # for a moment.
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


def _origin(source) -> dict[str, str]:
  """Returns {"format": "pt"} if a safetensors source has it.

  Some readers require it.
  """
  if source.path is None:
    return {}
  try:
    path, file_format = recognise(source.path)
  except ValueError:  # It is gone, or the user's own reader opened it.
    return {}
  if file_format is not safetensors:
    return {}
  return {k: v for k, v in safetensors.metadata(path).items() if k == "format"}


def remove(path: str) -> None:
  """Removes a file or directory if it exists."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  elif os.path.lexists(path):
    os.remove(path)
