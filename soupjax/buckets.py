# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Objects in buckets: gs://, s3:// and az:// addresses.

An object is replaced in one step, when its upload is complete; there is no
rename and there are no directories. So a file is uploaded under another name,
read back, and copied to its own name inside the store.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
from typing import Any

import google_crc32c

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
_CREDENTIALS = {
  "gs": "run `gcloud auth application-default login`, or set "
  "GOOGLE_APPLICATION_CREDENTIALS to the key of a service account",
  "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
  "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Classes of errors by their names, since their packages are optional.
_NO_ACCESS = (
  "NoCredentialsError PartialCredentialsError DefaultCredentialsError "
  "CredentialRetrievalError ProfileNotFound PermissionError RefreshError "
  "TokenRetrievalError UnauthorizedSSOTokenError"
).split()
# Kinds and names of buckets that could be reached.
_CHECKED: set[tuple[str, str]] = set()
_BLOCK = 32 << 20  # Bytes that are read back at once.
# Of tensorstore, about a minute in all. s3fs and gcsfs try 5 or 6 times.
RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "16s"}
# Memory of an upload.
_PARTS = {
  "s3": {"chunksize": 16 << 20, "max_concurrency": 4},
  "gs": {"chunksize": 32 << 20},
}


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address such as gs://bucket/file."""
  return "://" in os.fspath(path)


def kind_of(path: str | os.PathLike) -> str:
  """Returns the kind of a store, such as "s3".

  Raises:
    ValueError: if there is no such kind.
  """
  text = os.fspath(path)
  kind = text.split("://")[0]
  if kind not in _PACKAGES:
    raise ValueError(
      f"{text}: addresses begin with gs://, s3:// or az://, not {kind}://. "
      "Copy the file to a local path."
    )
  return kind


def filesystem(path: str | os.PathLike) -> Any:
  """Returns the fsspec file system of an address.

  Raises:
    ValueError: if the package for that kind of address is missing.
  """
  kind = kind_of(path)
  try:
    import fsspec

    # Listings that are remembered would hide objects of other processes. The
    # setting also reaches the file systems that etils and Orbax make.
    for name in (kind, "gcs") if kind == "gs" else (kind,):
      defaults = fsspec.config.conf.setdefault(name, {})
      defaults.setdefault("use_listings_cache", False)
    # A copy for every process: a connection does not survive a fork.
    return fsspec.filesystem(kind)
  except ImportError as e:
    raise ValueError(
      f"{os.fspath(path)} cannot be read without {_PACKAGES[kind]}: pip "
      f"install soupjax[{kind}]."
    ) from e


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
  """Turns errors of a store into a ValueError with the fix.

  Errors for objects that do not exist stay as they are.
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
      f"{text}: the connection to the store broke, and several tries failed "
      f"({type(e).__name__}: {reason}). What was finished is kept: start again "
      "to go on."
    ) from e


def check_bucket(path: str | os.PathLike) -> None:
  """Checks that the bucket of an address exists and can be listed.

  Raises:
    ValueError: if it cannot be reached, naming the fix.
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
  """Returns what a store says of an object or a prefix of objects.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if the store cannot be reached.
  """
  with explained(path):
    return filesystem(path).info(os.fspath(path))


def listdir(path: str | os.PathLike) -> list[str]:
  """Returns the names directly below a prefix, in order."""
  with explained(path):
    found = filesystem(path).ls(os.fspath(path), detail=False)
  names = {name.rstrip("/").rpartition("/")[2] for name in found}
  # Some programs put an empty object at the prefix itself.
  return sorted(names - {os.fspath(path).rstrip("/").rpartition("/")[2]})


def find(path: str | os.PathLike) -> list[str]:
  """Returns the names of all objects below a prefix, relative to it."""
  with explained(path):
    found = filesystem(path).find(os.fspath(path))
  prefix = os.fspath(path).partition("://")[2].rstrip("/") + "/"
  return sorted(name.removeprefix(prefix) for name in found)


def is_directory(path: str | os.PathLike) -> bool:
  """Whether there are objects below a prefix, and none of its name."""
  try:
    return info(path)["type"] == "directory"
  except FileNotFoundError:
    return False


def exists(path: str | os.PathLike) -> bool:
  """Whether there is an object of this name, or some below it."""
  try:
    info(path)
    return True
  except FileNotFoundError:
    return False


def identity(path: str | os.PathLike) -> tuple[int, int, int]:
  """Returns the size of an object, 0, and a number for its version.

  The version is that of the store: its ETag or generation.

  Raises:
    ValueError: if there is no such object.
  """
  try:
    found = info(path)
  except FileNotFoundError as e:
    raise ValueError(f"{os.fspath(path)} cannot be read: {e}.") from e
  if found["type"] == "directory":
    raise ValueError(
      f"{os.fspath(path)} is a directory where a file is expected."
    )
  keys = ("generation", "etag", "ETag", "VersionId", "LastModified", "mtime")
  version = repr([str(found[key]) for key in keys if found.get(key)])
  digest = hashlib.sha256(version.encode()).digest()
  return found["size"], 0, int.from_bytes(digest[:7], "big")


def read(path: str | os.PathLike, start: int = 0, stop: int | None = None):
  """Returns the bytes of an object, or a range of them.

  Raises:
    FileNotFoundError: if there is none.
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
    # Without a buffer, which would be 50 MB a file; S3 compares the ETag.
    return filesystem(path).open(os.fspath(path), "rb", cache_type="none")


def read_range(handle: Any, start: int, num_bytes: int) -> bytes:
  """Returns bytes of an open object, fewer only if it ends before.

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
  """Replaces an object, in one step.

  Raises:
    ValueError: if the store cannot be reached.
  """
  with explained(path):
    filesystem(path).pipe_file(os.fspath(path), data)


def remove(path: str | os.PathLike) -> None:
  """Removes an object, or all objects below a name, if there are any."""
  with explained(path), contextlib.suppress(FileNotFoundError):
    filesystem(path).rm(os.fspath(path), recursive=True)


def upload(local: str | os.PathLike, path: str | os.PathLike) -> None:
  """Copies a file into a bucket: verified first, then visible in one step.

  Args:
    local: of the file.
    path: of the object, which is replaced.

  Raises:
    ValueError: if the store cannot be reached, or has other bytes.
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
    # It is written again by the next try.
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
    f"{name} was not published, since the store returned other bytes than were "
    f"uploaded ({there} of {size} bytes). Start again."
  )


def upload_directory(
  local: str | os.PathLike, path: str | os.PathLike, last: tuple[str, ...]
) -> None:
  """Copies a directory into a bucket; the files named `last` come last.

  Args:
    local: of the directory.
    path: the address that its files are below.
    last: names of files that readers ask for, in order: without them, they
      take what is there for an interrupted save.
  """
  local = pathlib.Path(local)
  names = [p.relative_to(local) for p in local.rglob("*") if p.is_file()]

  def order(name):
    known = [k for k, end in enumerate(last) if name.match(end)]
    return (max(known, default=-1), str(name))

  for name in sorted(names, key=order):
    upload(local / name, f"{os.fspath(path).rstrip('/')}/{name}")
