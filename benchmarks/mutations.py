# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mutations of bytes, structure and directories for `fuzz_readers.py`.

A checkpoint is a dict from relative path to bytes; the path of a single file
is "". Values that are not bytes are keys of `SPECIAL`.
"""

import io
import json
import os
import pathlib
import struct
import zipfile

# Paths that are not regular files -> functions that make them.
SPECIAL = {
  "pipe": os.mkfifo,
  "device": lambda path: os.symlink("/dev/zero", path),
  "loop": lambda path: os.symlink(os.path.basename(path), path),
  "directory": os.mkdir,
}
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1)


def _json_values(rng):
  """Returns JSON values that readers do not expect."""
  return [
    None,
    True,
    -1,
    0,
    3,
    2**31,
    2**63,
    2**70,
    10**30,
    1e300,
    float("nan"),
    "",
    ".",
    "..",
    "../" * 9 + "etc/passwd",
    "/etc/passwd",
    "x" * 5000,
    "a/" * 200,
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [1] * 70,
    [0, 2**70],
    [2**40, 2**40],
    {"a": {}},
    rng.randrange(10**9),
  ]


def of_bytes(data: bytes, rng, other: bytes = b"") -> bytes:
  """Damages a few places of a file.

  Args:
    data: the file.
    rng: a `random.Random`.
    other: another file, parts of which may be copied in.

  Returns:
    The damaged file.
  """
  damaged = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    size = len(damaged)
    at = rng.randrange(size + 1)
    # Most structure is near the beginning or the end.
    at = rng.choice(
      (at, min(at, rng.randrange(300)), size - min(size, at % 300))
    )
    stop = min(size, at + rng.choice((1, 2, 4, 8, 30, 300)))
    kind = rng.randrange(9)
    if kind == 0 and at < size:
      damaged[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < size:
      damaged[at] = rng.randrange(256)
    elif kind == 2:
      width = rng.choice((1, 2, 4, 8))
      value = rng.choice(_NUMBERS) % 256**width
      damaged[at : at + width] = value.to_bytes(
        width, rng.choice(("little", "big"))
      )
    elif kind == 3:
      del damaged[at:stop]
    elif kind == 4:
      damaged[at:at] = damaged[at:stop]
    elif kind == 5:
      damaged[at:stop] = bytes(stop - at)
    elif kind == 6:
      del damaged[at:]
    elif kind == 7 and other:
      first = rng.randrange(len(other))
      damaged[at:stop] = other[first : first + stop - at]
    elif kind == 8:
      damaged[at:at] = rng.randbytes(rng.choice((1, 4, 30)))
  return bytes(damaged)


def of_json(text: bytes, rng) -> bytes:
  """Replaces, removes, renames or repeats a part of a JSON document."""
  if rng.random() < 0.05:
    return rng.choice((b"[", b'{"a":')) * rng.choice((900, 200_000))
  document = json.loads(text)
  places = [(None, None)]
  stack = [document]
  while stack:
    node = stack.pop()
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
      places.append((node, key))
      if isinstance(value, dict | list):
        stack.append(value)
  node, key = rng.choice(places)
  value = rng.choice(_json_values(rng))
  kind = rng.randrange(4)
  if node is None:
    document = value
  elif kind == 0:
    node[key] = value
  elif kind == 1:
    del node[key]
  elif kind == 2 and isinstance(node, dict):
    names = ["", "a/b", "w", "x" * 300, "a/" * 999, "..", "\ud800", *list(node)]
    node[rng.choice(names)] = node.pop(key)
  elif isinstance(node, list):
    node.insert(key, value)
  else:
    old = node[key]
    numbers = [*_NUMBERS, 300_000_000_000]
    node[key] = rng.choice(numbers) if isinstance(old, int) else [old, old]
  return json.dumps(document).encode()


def of_safetensors(data: bytes, rng) -> bytes:
  """Damages the JSON header, and updates its recorded length."""
  (length,) = struct.unpack("<Q", data[:8])
  header = of_json(data[8 : 8 + length], rng)
  return struct.pack("<Q", len(header)) + header + data[8 + length :]


def of_zip(data: bytes, rng) -> bytes:
  """Damages one member, and rewrites the archive with matching checksums."""
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [(i, archive.read(i)) for i in archive.infolist()]
    comment = archive.comment
  victim = rng.randrange(len(members))
  pickles = [k for k, (i, _) in enumerate(members) if "data.pkl" in i.filename]
  if pickles and rng.random() < 0.7:
    victim = pickles[0]
  with zipfile.ZipFile(out, "w") as archive:
    archive.comment = comment
    for k, (info, content) in enumerate(members):
      if k == victim:
        kind = rng.randrange(8)
        if kind == 0:
          continue
        if kind == 1:
          info.filename = rng.choice(
            ("", "..", "a/b.npy", "x" * 9999, members[0][0].filename)
          )
        elif kind == 2:
          info.compress_type = rng.choice((8, 12, 14))
        elif kind == 3 and content.startswith(b"\x93NUMPY"):
          content = content.replace(b"(", b"(%d, " % rng.choice(_NUMBERS), 1)
        else:
          content = of_bytes(content, rng)
      archive.writestr(info, content)
  return out.getvalue()


def of_folder(files: dict, rng) -> dict:
  """Removes, empties, swaps or replaces a file of a directory."""
  files = dict(files)
  name = rng.choice(list(files))
  kind = rng.randrange(4)
  if kind == 0:
    del files[name]
  elif kind == 1:
    files[name] = b""
  elif kind == 2:
    other = rng.choice(list(files))
    files[name], files[other] = files[other], files[name]
  else:
    files[name] = rng.choice(list(SPECIAL))
  return files


def of_store(files: dict, rng, folder: pathlib.Path) -> dict:
  """Damages the metadata of an array in the database of an Orbax checkpoint.

  Args:
    files: the files of the checkpoint.
    rng: a `random.Random`.
    folder: an empty directory for the damaged copy.
  """
  import tensorstore as ts

  for name, content in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
  base = {"driver": "file", "path": f"{folder}/state/"}
  store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
  keys = [
    k for k in store.list().result() if k.endswith((b".zarray", b".json"))
  ]
  key = rng.choice(sorted(keys))
  text = store.read(key).result().value
  store.write(key, of_json(text, rng)).result()
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for file in folder.rglob("*")
    if file.is_file()
  }
