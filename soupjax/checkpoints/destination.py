# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Destinations of a mix: written under a temporary name, then renamed.

Output for a bucket is written and checked on local disk, then uploaded.
"""

from collections.abc import Iterator, Mapping
import contextlib
import difflib
import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax

from soupjax import buckets, files, processes
from soupjax.checkpoints import (
  bucket_writer,
  companions,
  model_card,
  readable,
  replaceable,
)
from soupjax.checkpoints.formats import (
  npz,
  orbax_writer,
  safetensors_writer,
)
from soupjax.checkpoints.formats.foreign import torch_writer
from soupjax.checkpoints.formats.recognise import absolute
from soupjax.soups.core import records
from soupjax.soups.engine import plan as planning

FORMATS = {
  "orbax": orbax_writer,
  "safetensors": safetensors_writer,
  "npz": npz,
  "torch": torch_writer,
  # A directory for the Hugging Face hub.
  "hub": safetensors_writer,
}


# Files that complete a directory in a bucket, in order.
_COMMITTED = ("state/commit_success.txt", "commit_success.txt")
_LAST = (
  "*.index.json",
  "state/_METADATA",
  _COMMITTED[0],
  "_CHECKPOINT_METADATA",
  _COMMITTED[1],
)
# Suffix -> format.
_OURS = {
  ".safetensors": "safetensors",
  ".npz": "npz",
  **dict.fromkeys((".pt", ".pth", ".bin"), "torch"),
}
# Suffixes of other programs' weight files, and of archives.
_FOREIGN = frozenset(
  ".caffemodel .ckpt .ggml .gguf .h5 .hdf5 .joblib .json .keras .mar "
  ".mlmodel .msgpack .nemo .npy .onnx .ot .pb .pdparams .pickle "
  ".pkl .pt2 .pte .t7 .tflite .th .torch .weights .7z .bz2 .gz .rar "
  ".tar .tgz .xz .zip .zst".split()
)


def format_of(out: str, format: str | None, sharded: bool = False) -> str:
  """Returns the format of an output, by its suffix unless it is given.

  A suffix that weight files do not have, as in "soup-v1.5", is part of the name
  of a directory.

  Args:
    out: the path.
    format: one of `FORMATS` or None.
    sharded: whether to write a directory of safetensors shards.

  Raises:
    ValueError: if the format is unknown or contradicts the suffix, or the path
      is a whole bucket or in a store that cannot be written.
  """
  if buckets.is_remote(out):
    buckets.check_output(out)
    if not out.partition("://")[2].partition("/")[2]:
      raise ValueError(f"{out} is a bucket: write {out.rstrip('/')}/NAME.")
  suffix = pathlib.PurePath(out).suffix
  if format not in (None, *FORMATS):
    raise ValueError(f"format={format!r} must be one of {[*FORMATS]}.")
  expected = _OURS.get(suffix)
  similar = difflib.get_close_matches(suffix.lower(), _OURS, 1, 0.8)
  if expected is None and (similar or suffix.lower() in _FOREIGN):
    raise ValueError(
      f"{out}: soupjax does not write {suffix} files. Choose a name that ends "
      "in .safetensors, .npz or .pt, or one without such a suffix for an Orbax "
      "directory." + (f" Did you mean {similar[0]}?" if similar else "")
    )
  if expected and format not in (None, expected):
    raise ValueError(
      f"{out} has the suffix of another format than format={format!r}: leave "
      "format= out or choose a name without this suffix."
    )
  return format or expected or ("safetensors" if sharded else "orbax")


class Destination:
  """The file or directory that a mix will write.

  Attributes:
    path: its final name.
    format: one of `FORMATS`.
    is_directory: whether it is a directory.
    temporary: its local name while it is written.
    aside: the name of the old directory while it is replaced.
    on_mesh: whether several processes write into a bucket. They share no disk,
      so the soup is made on their devices, and each writes its own part.
    chunks: leaf -> shape that blocks are aligned with.
    num_bytes: bytes on disk, without headers.
    host_bytes: bytes of host memory for the writer, without the blocks.
    beside: files beside the first ingredient that are copied to the output.
    left_beside: names of files beside the first ingredient that are not copied,
      since the directory of the output has other files.
  """

  def __init__(
    self,
    out: str | os.PathLike,
    format: str | None,
    shard_bytes: int | None,
    overwrite: bool,
    plan: planning.Plan,
    text: Mapping[str, str] | None = None,
  ):
    """Chooses the format by the suffix of `out` if `format` is None.

    Args:
      out: a local path or an address in a bucket.
      format: one of `FORMATS` or None.
      shard_bytes: the size of safetensors shards, None for one file.
      overwrite: whether to replace an existing checkpoint.
      plan: the plan of the mix.
      text: text metadata, for safetensors only; None takes the texts that all
        ingredients share.

    Raises:
      ValueError: if format and path contradict each other, or the address is
        of an unsupported kind.
    """
    out = absolute(out)
    self._in_bucket = buckets.is_remote(out)
    format = format_of(out, format, shard_bytes is not None)
    if shard_bytes is not None and (
      format not in ("safetensors", "hub")
      or shard_bytes < 1
      or out.endswith(".safetensors")
    ):
      raise ValueError(
        f"shard_bytes={shard_bytes} needs format='safetensors' and a directory "
        f"as out, but got {format} at {out}."
      )
    self.path, self.format = out, format
    self._shard_bytes, self._overwrite = shard_bytes, overwrite
    self._plan, self._text = plan, text
    self.is_directory = format in ("orbax", "hub") or shard_bytes is not None
    self.on_mesh = self._in_bucket and jax.process_count() > 1
    self.temporary = str(files.temporary_name(out))
    if self._in_bucket:
      self.temporary = _staged(out)
    self.aside = f"{self.temporary}.old"
    beside = companions.beside(companions.home(plan.sources[0]))
    self.beside = [f for f in beside if str(f.parent) != os.path.dirname(out)]
    self.left_beside: list[str] = []
    # Other outputs may share the prefix in a bucket.
    if not self.is_directory and (
      self._in_bucket or not companions.has_own_directory(out)
    ):
      self.left_beside = [file.name for file in self.beside]
      self.beside = []
    self.chunks = dict(plan.chunks)
    self._weights = self._card = ""
    if format == "hub":
      self._weights = model_card.weights_name(
        plan.sources[0].configs, plan.sources[0].name, shard_bytes is not None
      )
    self.num_bytes = plan.write_bytes
    self.host_bytes = 1 << 20
    if format == "orbax":
      # Output chunks consist of whole input chunks, so that each is read once.
      for leaf, spec in plan.specs.items():
        chunk = orbax_writer.chunk_shape(spec, plan.chunks.get(leaf))
        self.chunks[leaf] = chunk
      self.num_bytes = orbax_writer.num_bytes(plan.specs, self.chunks)

  def check(self, provenance: Mapping[str, Any]) -> None:
    """Checks everything that can be checked before reading weights.

    Args:
      provenance: a record as long as the one that the writer's `finish` gets.

    Raises:
      ValueError: if the path is taken or is one of the sources, the format
        cannot hold the leaves, or the disk is too full.
    """
    exists = self._exists()
    if exists and not self._overwrite:
      raise ValueError(
        f"{self.path} exists already: delete it, choose another out= or pass "
        "overwrite=True."
      )
    if os.path.lexists(self.aside) and not (self._overwrite or exists):
      raise ValueError(
        f"{self.aside} is the previous content of {self.path}, left by a run "
        "that was killed while it replaced it: rename it back, delete it, "
        "choose another out= or pass overwrite=True."
      )
    replaceable.check_sources(self.path, self._plan.sources)
    if exists and not self._in_bucket:
      replaceable.check_replaceable(self.path, self.is_directory)
    elif exists:
      replaceable.check_object(self.path, self.is_directory)
    # Only the first process removes these, perhaps before others look.
    if jax.process_index() == 0:
      if os.path.lexists(self.temporary):
        replaceable.check_leftover(self.temporary, self.is_directory)
      if os.path.lexists(self.aside):
        replaceable.check_replaceable(self.aside, self.is_directory)
    if not self._in_bucket:
      files.check_writable(self.path)
    self._expected = readable.check_names(self.path, self._plan.specs)
    if not (self.is_directory or self._overwrite or self._in_bucket):
      folder, first = os.path.dirname(self.path), self._plan.sources[0]
      if taken := companions.different(self.beside, folder, first):
        raise ValueError(
          f"{taken[0]} differs from the file beside {first.name!r}, which "
          "would replace it: delete it, choose another out= or pass "
          "overwrite=True."
        )
    FORMATS[self.format].check(self._plan.specs, provenance)
    if not self.on_mesh:
      files.check_room(self.disk, self.num_bytes)

  @property
  def disk(self) -> str:
    """A path on the disk that the output is written to."""
    return self.temporary if self._in_bucket else self.path

  def _exists(self) -> bool:
    if not self._in_bucket:
      return os.path.lexists(self.path)
    if self.on_mesh and self.format != "orbax":
      raise ValueError(
        f"{self.path}: into a bucket, several processes write Orbax "
        f"directories only, not {self.format}. Choose an out= without a "
        "suffix, mix in one process, or write to a disk that they share."
      )
    buckets.check_bucket(self.path)
    if self.is_directory and replaceable.is_interrupted(self.path):
      return False
    return buckets.exists(self.path)

  def describe(self, provenance: Mapping[str, Any]) -> None:
    """Makes the model card of a hub directory from a complete record."""
    if self.format == "hub":
      sources = self._plan.sources[: self._plan.count]
      title = os.path.basename(self.path)
      self._card = model_card.of_mix(title, provenance, sources)

  @contextlib.contextmanager
  def opened(self, provenance: Mapping[str, Any]) -> Iterator[Any]:
    """Opens a writer and publishes its output on success.

    Args:
      provenance: a record as long as the one that the writer's `finish` gets.

    Yields:
      A `soupjax.checkpoints.formats.block_writer.BlockWriter`.

    Raises:
      ValueError: if the path cannot be written, or another run is writing it.
    """
    with self._locked():
      yield from self._opened(provenance)

  def _opened(self, provenance):
    first = jax.process_index() == 0
    lock = writer = None
    try:
      if first:
        with files.uninterrupted():
          lock = self._prepare()
      processes.check_shared(os.path.dirname(self.path))
      with files.uninterrupted():
        writer = self._writer(provenance, first)
      processes.barrier("created")
      yield writer
      processes.barrier("finished")
      if first:
        self._publish()
      processes.barrier("published")
    except BaseException as e:
      with files.uninterrupted():
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

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    """Locks an output in a bucket against other machines."""
    if not self._in_bucket or jax.process_index() > 0:
      yield
      return
    folder, _, name = self.path.rpartition("/")
    busy = (
      f"Another run is writing {self.path}: wait for it or choose another out=."
    )
    with buckets.locked(f"{folder}/.{name}.lock", busy):
      self._check_free()
      yield

  def _check_free(self):
    """Checks that nothing has been written to the address since `check`."""
    if self._exists() and not self._overwrite:
      raise ValueError(
        f"{self.path} was written by another program meanwhile: delete it or "
        "choose another out=."
      )

  def save(self, params: Any, provenance: Mapping[str, Any]) -> None:
    """Writes a tree that is spread over several processes to a bucket.

    Args:
      params: the soup.
      provenance: its record.

    Raises:
      ValueError: as in `opened`.
    """
    first = jax.process_index() == 0
    with self._locked():
      record = {"soupjax": dict(provenance)}
      finish = bucket_writer.start(self.path, params, record)
      if first:
        self._complete(self.path)
      finish()
      if first:
        readable.check_written(self.path, self.path, self._expected)
      processes.barrier("published")

  def _prepare(self) -> int:
    """Removes the remains of a killed run; returns a lock on the output."""
    if self._in_bucket:
      make_private(os.path.dirname(self.temporary))
    else:
      os.makedirs(os.path.dirname(self.path), exist_ok=True)
    if os.path.lexists(self.temporary):
      replaceable.check_leftover(self.temporary, self.is_directory)
      os.close(self._lock())
      remove(self.temporary)
    if self.is_directory:
      os.mkdir(self.temporary)
    else:
      os.close(os.open(self.temporary, os.O_CREAT | os.O_WRONLY, 0o666))
    lock = self._lock()
    if self._in_bucket:
      return lock
    # A run was killed while it replaced a directory, after or before the new
    # one got its final name.
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
    specs, order = self._plan.specs, self._plan.order
    if self.format == "torch":
      return torch_writer.TorchWriter(self.temporary, specs, order, first=first)
    if self.format == "npz":
      return npz.NpzWriter(self.temporary, specs, order, first=first)
    if self.format == "orbax":
      return orbax_writer.OrbaxWriter(
        self.temporary,
        specs,
        order,
        self._plan.treedef,
        self.chunks,
        first=first,
      )
    alone = self._weights if self._shard_bytes is None else ""
    return safetensors_writer.SafetensorsWriter(
      os.path.join(self.temporary, alone) if alone else self.temporary,
      specs,
      order,
      provenance,
      shard_bytes=self._shard_bytes,
      text=self._text or _texts(self._plan.sources[: self._plan.count]),
      first=first,
    )

  def _publish(self):
    """Gives the output its final name if it can be opened."""
    readable.check_written(self.temporary, self.path, self._expected)
    if self._in_bucket:  # Ctrl-C stops it: an upload may take minutes.
      try:
        self._upload()
      except KeyboardInterrupt as e:
        e.add_note(
          f"{self.path} was not published. The next run replaces what was "
          "uploaded."
        )
        raise
      return
    with files.uninterrupted():
      self._rename()

  def _rename(self):
    # Before the weights, so that no reader finds them without their config.
    folder = self.temporary if self.is_directory else os.path.dirname(self.path)
    self._complete(folder)
    if self.is_directory and os.path.exists(self.path):
      # Directories cannot be exchanged in one step, so the final name is free
      # for a moment.
      remove(self.aside)
      os.rename(self.path, self.aside)
      try:
        os.rename(self.temporary, self.path)
      except OSError:
        os.rename(self.aside, self.path)
        raise
      remove(self.aside)
    else:
      os.replace(self.temporary, self.path)
    folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)

  def _complete(self, folder):
    """Copies files beside the first ingredient and writes the model card."""
    companions.copy(self.beside, folder, self._plan.sources[0])
    if self._card:
      model_card.write(folder, self._card, self._plan.specs)

  def _upload(self):
    """Copies the output into the bucket, files that complete it last."""
    if not self.is_directory:
      self._check_free()
      buckets.upload(self.temporary, self.path)
    else:
      self._complete(self.temporary)
      self._check_free()
      if self.format == "orbax":
        for name in _COMMITTED:  # Orbax requires them in gs:// buckets.
          pathlib.Path(self.temporary, name).touch()
      buckets.remove(self.path)  # Remains of an interrupted upload.
      buckets.upload_directory(self.temporary, self.path, _LAST)
    remove(self.temporary)


def _staged(out: str) -> str:
  """Returns the local path of an output until it is uploaded to its address.

  An address always maps to the same path, so that the remains of a killed run
  are found and removed.
  """
  digest = hashlib.sha256(out.encode()).hexdigest()[:16]
  folder = os.path.join(tempfile.gettempdir(), f"soupjax-{os.geteuid()}")
  return os.path.join(folder, f"{digest}{pathlib.PurePath(out).suffix}")


def make_private(folder: str) -> None:
  """Makes a directory that only this user can write.

  Raises:
    ValueError: if it belongs to another user.
  """
  os.makedirs(folder, mode=0o700, exist_ok=True)
  status = os.lstat(folder)
  if status.st_uid != os.geteuid() or status.st_mode & 0o022:
    raise ValueError(
      f"{folder} belongs to another user or can be written by others: set "
      "TMPDIR to a directory of your own."
    )


def _texts(ingredients) -> dict[str, str]:
  """Returns the text metadata of a soup: entries that all ingredients share.

  "format" is taken from the first ingredient, since some readers require it.
  """
  first = ingredients[0].text
  form = {"format": first["format"]} if "format" in first else {}
  return {**records.shared_text(ingredients), **form}


def remove(path: str) -> None:
  """Removes a file or directory if it exists."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  elif os.path.lexists(path):
    os.remove(path)
