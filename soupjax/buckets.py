# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Objects in buckets: gs://, s3:// and az:// addresses.

Stores replace an object in one step, at the end of its upload, but have neither
renames nor directories. A file is therefore uploaded under a temporary name,
read back, and copied to its final name inside the store.
"""

from collections.abc import Iterator
import contextlib
import fnmatch
import hashlib
import json
import os
import pathlib
import signal
import socket
import threading
import time
from typing import Any
import uuid

from absl import logging
import google_crc32c
import tensorstore as ts

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
_CREDENTIALS = {
  "gs": "run `gcloud auth application-default login`, or set "
  "GOOGLE_APPLICATION_CREDENTIALS to the key of a service account",
  "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
  "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Error classes by name, since their packages are optional.
_NO_ACCESS = (
  "NoCredentialsError PartialCredentialsError DefaultCredentialsError "
  "CredentialRetrievalError ProfileNotFound PermissionError RefreshError "
  "TokenRetrievalError UnauthorizedSSOTokenError"
).split()
# Drivers of tensorstore, which is used for writes and locks.
_DRIVERS = {"gs": "gcs", "s3": "s3"}
# (kind, name) of the buckets that were reached.
_CHECKED: set[tuple[str, str]] = set()
_BLOCK = 32 << 20  # Bytes that are read back at a time.
# Retries of tensorstore: about a minute. s3fs and gcsfs retry 5 or 6 times.
RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "16s"}
# Name of an object that marks an incomplete upload below its prefix.
UNFINISHED = ".soupjax_upload"
# Seconds between renewals of a lock, and until a lock that is not renewed
# expires.
RENEW, EXPIRES = 15.0, 60.0
# Sizes that bound the memory of an upload.
_PARTS = {
  "s3": {"chunksize": 16 << 20, "max_concurrency": 4},
  "gs": {"chunksize": 32 << 20},
}


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is an address such as gs://bucket/file."""
  return "://" in os.fspath(path)


def kind_of(path: str | os.PathLike) -> str:
  """Returns the kind of store that an address belongs to: "gs", "s3" or "az".

  Raises:
    ValueError: if it is another kind.
  """
  text = os.fspath(path)
  kind = text.split("://")[0]
  if kind not in _PACKAGES:
    raise ValueError(
      f"{text}: addresses begin with gs://, s3:// or az://, not {kind}://. "
      "Copy the file to a local path."
    )
  return kind


def check_output(path: str | os.PathLike) -> None:
  """Checks that soupjax can write to the kind of store of an address.

  Raises:
    ValueError: if it cannot. The message names the kinds that it can write to.
  """
  if (kind := kind_of(path)) not in _DRIVERS:
    raise ValueError(
      f"{os.fspath(path)}: soupjax reads from {kind}:// but writes to gs:// "
      "and s3:// only. Write to one of these, or to a local path and copy it."
    )


def filesystem(path: str | os.PathLike) -> Any:
  """Returns the fsspec file system of an address.

  Raises:
    ValueError: if the package for that kind of address is missing.
  """
  kind = kind_of(path)
  try:
    import fsspec

    # Cached listings would hide objects written by other processes. The setting
    # also applies to the file systems that etils and Orbax create.
    for name in (kind, "gcs") if kind == "gs" else (kind,):
      defaults = fsspec.config.conf.setdefault(name, {})
      defaults.setdefault("use_listings_cache", False)
    # One file system per process: connections do not survive a fork.
    return fsspec.filesystem(kind)
  except ImportError as e:
    raise ValueError(
      f"{os.fspath(path)} cannot be read without {_PACKAGES[kind]}: pip "
      f"install soupjax[{kind}]."
    ) from e


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
  """Turns errors of a store into a ValueError with a fix.

  A FileNotFoundError, FileExistsError or ValueError is left as it is.
  """
  text = os.fspath(path)
  try:
    yield
  except (FileNotFoundError, FileExistsError, ValueError):
    raise
  except Exception as e:
    kind = text.split("://")[0]
    names = {c.__name__ for c in type(e).__mro__}
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    if names & {*_NO_ACCESS} or " 403" in reason or "Forbidden" in reason:
      raise ValueError(
        f"{text} cannot be reached without the right credentials ({reason}): "
        f"{_CREDENTIALS.get(kind, 'see docs/buckets.md')}, and check that they "
        "may read and write this bucket."
      ) from e
    raise ValueError(
      f"{text}: the connection to the store failed, even after retries "
      f"({type(e).__name__}: {reason}). Finished work is kept: run the same "
      "command again to continue."
    ) from e


def check_bucket(path: str | os.PathLike) -> None:
  """Checks that the bucket of an address exists and can be reached.

  Raises:
    ValueError: if it cannot. The message has a fix.
  """
  text = os.fspath(path)
  kind = kind_of(text)
  bucket = text.partition("://")[2].partition("/")[0]
  if not bucket:
    raise ValueError(f"{text} has no bucket: write {kind}://BUCKET/PATH.")
  if (kind, bucket) in _CHECKED:
    return
  with explained(text):
    try:
      filesystem(text).info(bucket)
    except FileNotFoundError as e:
      raise ValueError(
        f"{text}: there is no bucket {bucket!r} that these credentials can "
        "see. Create it or correct the address."
      ) from e
  _CHECKED.add((kind, bucket))


def info(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the store's metadata of an object or a prefix.

  Raises:
    FileNotFoundError: if there is neither.
    ValueError: if the store cannot be reached.
  """
  with explained(path):
    return filesystem(path).info(os.fspath(path))


def listdir(path: str | os.PathLike) -> list[str]:
  """Returns the names directly below a prefix, sorted."""
  with explained(path):
    found = filesystem(path).ls(os.fspath(path), detail=False)
  names = {name.rstrip("/").rpartition("/")[2] for name in found}
  # Some programs put an empty object at the prefix itself.
  return sorted(names - {os.fspath(path).rstrip("/").rpartition("/")[2]})


def find(path: str | os.PathLike) -> list[str]:
  """Returns the names of all objects below a prefix, relative to it, sorted."""
  with explained(path):
    found = filesystem(path).find(os.fspath(path))
  prefix = os.fspath(path).partition("://")[2].rstrip("/") + "/"
  return sorted(name.removeprefix(prefix) for name in found)


def is_directory(path: str | os.PathLike) -> bool:
  """Returns whether there are objects below a prefix, but none of that name."""
  try:
    return info(path)["type"] == "directory"
  except FileNotFoundError:
    return False


def exists(path: str | os.PathLike) -> bool:
  """Returns whether there is an object of this name, or any below it."""
  try:
    info(path)
    return True
  except FileNotFoundError:
    return False


def identity(path: str | os.PathLike) -> tuple[int, int, int]:
  """Returns the size of an object in bytes, 0, and a hash of its version.

  The version is the store's generation or ETag, or else the modification time.

  Raises:
    ValueError: if there is no such object, or it is a directory.
  """
  try:
    found = info(path)
  except FileNotFoundError as e:
    raise ValueError(f"{os.fspath(path)} cannot be read: {e}.") from e
  if found["type"] == "directory":
    raise ValueError(
      f"{os.fspath(path)} is a directory where a file is expected."
    )
  return found["size"], 0, _version(found)


def _version(found) -> int:
  """Hashes the version of an object, from the store's metadata."""
  keys = ("generation", "etag", "ETag", "LastModified", "mtime")
  version = next((str(found[key]) for key in keys if found.get(key)), "")
  digest = hashlib.sha256(version.encode()).digest()
  return int.from_bytes(digest[:6], "big")


def objects(path: str | os.PathLike) -> dict[str, list[int]]:
  """Returns name -> [bytes, hash of the version] of objects below a prefix."""
  with explained(path):
    found = filesystem(path).find(os.fspath(path), detail=True)
  prefix = os.fspath(path).partition("://")[2].rstrip("/") + "/"
  return {
    name.removeprefix(prefix): [entry["size"], _version(entry)]
    for name, entry in sorted(found.items())
  }


def read(path: str | os.PathLike, start: int = 0, stop: int | None = None):
  """Returns the bytes of an object; with `stop`, those in [start, stop).

  Raises:
    FileNotFoundError: if there is no such object.
    ValueError: if the store cannot be reached.
  """
  with explained(path):
    fs, text = filesystem(path), os.fspath(path)
    if stop is None:
      return fs.cat_file(text)
    return fs.cat_file(text, start=start, end=stop)


def open_object(path: str | os.PathLike) -> Any:
  """Opens an object for `read_range`."""
  with explained(path):
    # No buffer, which would take 50 MB per file. S3 compares the ETag.
    return filesystem(path).open(os.fspath(path), "rb", cache_type="none")


def read_range(handle: Any, start: int, num_bytes: int) -> bytes:
  """Returns bytes of an open object; fewer than `num_bytes` only at its end.

  Raises:
    ValueError: if the store cannot be reached, or the object has changed.
  """
  path = handle.fs.unstrip_protocol(handle.path)
  with explained(path):
    try:
      handle.seek(start)
      return handle.read(num_bytes)
    except Exception as e:
      if type(e).__name__ == "FileExpired":
        raise ValueError(
          f"{path} has been replaced since it was opened. Open it again."
        ) from e
      raise


def write(path: str | os.PathLike, data: bytes) -> None:
  """Creates or replaces an object in one step.

  Raises:
    ValueError: if the store cannot be reached.
  """
  with explained(path):
    filesystem(path).pipe_file(os.fspath(path), data)


def remove(path: str | os.PathLike) -> None:
  """Removes an object and all objects below its name, if there are any."""
  with explained(path), contextlib.suppress(FileNotFoundError):
    filesystem(path).rm(os.fspath(path), recursive=True)


def upload(local: str | os.PathLike, path: str | os.PathLike) -> None:
  """Copies a file into a bucket; verifies it before it becomes visible.

  Args:
    local: path of the file.
    path: address of the object, which is replaced in one step.

  Raises:
    ValueError: if the store cannot be reached, or returns different bytes.
  """
  text, fs = os.fspath(path), filesystem(path)
  folder, _, name = text.rpartition("/")
  temporary = f"{folder}/.{name}.tmp"
  try:
    with explained(text):
      fs.put_file(os.fspath(local), temporary, **_PARTS.get(kind_of(text), {}))
    _compare(local, temporary, text)
    with explained(text):
      fs.cp_file(temporary, text)
  finally:
    # The next attempt uploads it again.
    with contextlib.suppress(Exception):
      fs.rm_file(temporary)


def _compare(local, temporary: str, name: str) -> None:
  """Raises a ValueError if an object differs from a file."""
  size = os.path.getsize(local)
  there = info(temporary)["size"]
  if there == size:
    with open(local, "rb") as f:
      for start in range(0, size, _BLOCK):
        part = f.read(_BLOCK)
        if google_crc32c.value(part) != google_crc32c.value(
          read(temporary, start, start + len(part))
        ):
          break
      else:
        return
  raise ValueError(
    f"{name} was not published, since the uploaded copy ({there} bytes) is not "
    f"identical to the file ({size} bytes). Run the command again."
  )


def upload_directory(
  local: str | os.PathLike, path: str | os.PathLike, last: tuple[str, ...]
) -> None:
  """Copies a directory into a bucket, the files that `last` names at the end.

  Args:
    local: path of the directory.
    path: address of the prefix for its files.
    last: names or patterns of the files that complete the directory, in order.
      Readers treat a directory without them as an interrupted save.

  Raises:
    ValueError: as in `upload`.
  """
  local = pathlib.Path(local)
  names = [p.relative_to(local) for p in local.rglob("*") if p.is_file()]

  def order(name):
    known = [k for k, p in enumerate(last) if fnmatch.fnmatchcase(str(name), p)]
    return (max(known, default=-1), str(name))

  prefix = os.fspath(path).rstrip("/")
  write(f"{prefix}/{UNFINISHED}", b"")
  for name in sorted(names, key=order):
    upload(local / name, f"{prefix}/{name}")
  remove(f"{prefix}/{UNFINISHED}")


# --- Access through tensorstore -----------------------------------------------


def kvstore(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the tensorstore spec of the key-value store below an address.

  Raises:
    ValueError: if tensorstore has no driver for this kind of address.
  """
  text = os.fspath(path)
  kind, _, rest = text.partition("://")
  if kind not in _DRIVERS:
    raise ValueError(
      f"{text}: Orbax checkpoints and run directories can only be in gs:// or "
      "s3://. Use one of these, or a local path."
    )
  bucket, _, key = rest.partition("/")
  spec = {"driver": _DRIVERS[kind], "bucket": bucket, "path": f"{key}/"}
  if kind == "s3":
    env = os.environ
    # tensorstore does not read the address of another S3 store from these.
    if url := env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"):
      region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
      spec |= {"endpoint": url, "aws_region": region or "us-east-1"}
    if env.get("AWS_ACCESS_KEY_ID"):
      # By default it also looks for files, and logs that they are missing.
      spec["aws_credentials"] = {"type": "environment"}
  return spec


def retries() -> dict[str, Any]:
  """Returns the part of a tensorstore context that bounds retries."""
  return {"s3_request_retries": RETRIES, "gcs_request_retries": RETRIES}


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str | None = None) -> Iterator[None]:
  """Holds a lock during a block: an object that only one process can create.

  The holder renews it every `RENEW` seconds. Another process takes the lock
  over if it sees no renewal for `EXPIRES` seconds, or if the holder ran on the
  same machine and has ended. A process that loses its lock ends itself, so that
  two processes never write at the same time.

  Args:
    path: address of the lock.
    busy: error message if another process holds the lock; None to wait for it.

  Raises:
    ValueError: with the message `busy`, or if the store cannot be reached.
  """
  folder, _, key = os.fspath(path).rpartition("/")
  check_bucket(folder)
  context = ts.Context(retries())
  store = ts.KvStore.open(kvstore(folder), context=context).result()
  owner = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "holder": uuid.uuid4().hex,
  }
  with explained(path):
    held = _take(store, key, owner, busy)
  stop = threading.Event()

  def renew():
    nonlocal held
    last = time.monotonic()
    while not stop.wait(RENEW):
      renewed = None
      try:
        renewed = _write(store, key, owner, held)
      except Exception as e:  # The next renewal may succeed.
        logging.warning("%s could not be renewed: %s", path, e)
        if time.monotonic() - last < EXPIRES - RENEW:
          continue
      if renewed is None:
        logging.error("Another run has taken the lock %s: this run ends.", path)
        os.kill(os.getpid(), signal.SIGTERM)
        return
      held, last = renewed, time.monotonic()

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
    with contextlib.suppress(Exception):
      store.write(key, None, if_equal=held).result()


def _write(store, key, owner, generation) -> bytes | None:
  """Writes a lock if its version is the given one; returns the new version."""
  # In some stores the version is a hash of the content, so the content varies.
  text = json.dumps({**owner, "id": uuid.uuid4().hex}).encode()
  written = store.write(key, text, if_equal=generation).result()
  if written.generation:
    return written.generation
  # If the store's reply was lost, the write may still have changed the version.
  found = store.read(key).result()
  is_ours = owner["holder"].encode() in (found.value or b"")
  return found.stamp.generation if is_ours else None


def _take(store, key, owner, busy) -> bytes:
  """Takes a lock, waiting if necessary; returns its version."""
  seen, since = None, 0.0
  while True:
    found = store.read(key).result()
    generation = found.stamp.generation
    free = found.state == "missing"
    if not free and generation != seen:
      if seen is not None and busy:  # It was renewed.
        raise ValueError(busy)
      seen, since = generation, time.monotonic()
    expired = time.monotonic() - since > EXPIRES
    if free or expired or _is_dead(found.value):
      if held := _write(store, key, owner, generation):
        return held
      continue
    time.sleep(min(1.0, RENEW / 4))


def _is_dead(text: bytes) -> bool:
  """Returns whether the holder of a lock ran on this machine and has ended."""
  try:
    owner = json.loads(text)
    if owner["host"] != socket.gethostname() or owner["pid"] == os.getpid():
      return False
    os.kill(owner["pid"], 0)
  except ProcessLookupError:
    return True
  except (ValueError, KeyError, TypeError, OSError):
    return False
  return False
