# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the readers of all formats with damaged checkpoints.

  python benchmarks/fuzz_readers.py                   # 10,000 cases, minutes
  python benchmarks/fuzz_readers.py --case=orbax:123  # one of them, in full

A case is a small checkpoint with damage that its number determines. It must
give the same values, or a ValueError that names the checkpoint. Other values
are a failure if the format has checksums, unless the damage updated them too.
Cases run in a process of limited memory. A case that ends the process or hangs
is reported, and a new process continues with the next case.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile

import mutations

# Seconds after which a case counts as hanging, and the address space of a
# process in bytes, beyond what the imports take.
PATIENCE = 30
MEMORY = 4 << 30


@dataclasses.dataclass(frozen=True)
class Seed:
  """An undamaged checkpoint.

  Attributes:
    files: relative path -> bytes; a single file has the path "".
    has_checksums: whether damage to any weight must be noticed.
    share: relative number of cases; Orbax is fifty times as slow as the others.
    suffix: suffix of the name, for formats without a magic number.
  """

  files: dict[str, bytes]
  has_checksums: bool
  share: float = 1.0
  suffix: str = ""


class _Reference:
  """A tensor in a torch file that covers the storage with the given key."""

  def __init__(self, key, array):
    self.key, self.array = key, array


class _Pickler(pickle._Pickler):
  """Pickles references as torch pickles tensors."""

  def save(self, obj, save_persistent_id=True):
    if not isinstance(obj, _Reference):
      super().save(obj, save_persistent_id)
      return
    array = obj.array
    strides = tuple(s // array.itemsize for s in array.strides)
    kind = {"f": "FloatStorage", "i": "IntStorage"}.get(array.dtype.kind)
    self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\n")
    self.write(f"{kind or 'BFloat16Storage'}\n".encode())
    self.write(f"V{obj.key}\nVcpu\nI{array.size}\ntQI0\n".encode())
    for numbers in (array.shape, strides):
      self.write(b"(" + b"".join(b"I%d\n" % n for n in numbers) + b"t")
    self.write(b"I00\n}tR")


def _torch(tree) -> bytes:
  out, content = io.BytesIO(), io.BytesIO()
  keys = {name: str(k) for k, name in enumerate(tree)}
  weights = {name: _Reference(keys[name], tree[name]) for name in tree}
  state = {"state_dict": weights, "epoch": 3}
  _Pickler(content, protocol=2).dump(state)
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("archive/data.pkl", content.getvalue())
    archive.writestr("archive/byteorder", b"little")
    for name, array in tree.items():
      data = array.tobytes(order="A")
      archive.writestr(f"archive/data/{keys[name]}", data)
    archive.writestr("archive/version", b"3\n")
  return out.getvalue()


def _torch_shards(tree) -> dict[str, bytes]:
  parts, index = {}, {}
  for k, leaves in enumerate((list(tree)[:2], list(tree)[2:]), start=1):
    shard = f"pytorch_model-{k:05d}-of-00002.bin"
    parts[shard] = _torch({leaf: tree[leaf] for leaf in leaves})
    index.update(dict.fromkeys(leaves, shard))
  text = json.dumps({"weight_map": index})
  return {**parts, "pytorch_model.bin.index.json": text.encode()}


def weights():
  """Returns a small tree: leaf -> array."""
  import ml_dtypes
  import numpy as np

  rng = np.random.default_rng(0)
  return {
    "block/kernel": rng.normal(size=(6, 4)).astype(np.float32),
    "block/scale": rng.normal(size=5).astype(ml_dtypes.bfloat16),
    "count": np.array([3, 2**20], np.int32),
    "head": np.asfortranarray(rng.normal(size=(3, 2)).astype(np.float32)),
  }


def make_seeds(folder: pathlib.Path) -> dict[str, Seed]:
  """Makes an undamaged checkpoint of every kind.

  Args:
    folder: an empty directory.
  """
  from flax import serialization
  import numpy as np
  import orbax.checkpoint as ocp
  from safetensors.numpy import save

  import soupjax as sj

  tree = weights()
  rows = {k: np.ascontiguousarray(v) for k, v in tree.items()}
  model = sj.Ingredient.from_params("model", rows)

  def mixed(name, **settings):
    sj.mix(sj.rules.linear(), [model], out=folder / name, **settings)
    return _read(folder / name)

  def archived(save_arrays):
    out = io.BytesIO()
    save_arrays(out, **tree)
    return {"": out.getvalue()}

  shards = mixed("shards", format="safetensors", shard_bytes=100)
  for name in ("metrics.json", "hyperparameters.json"):
    shards[name] = json.dumps({"minival/prec@1": 0.5}).encode()
  # Orbax restores nested dicts.
  nested = {"block": {}}
  for name, array in rows.items():
    *parents, last = name.split("/")
    (nested[parents[0]] if parents else nested)[last] = array
  sj.save_params(folder / "orbax", nested)
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(folder / "zarr", nested)
  return {
    "safetensors": Seed({"": save(rows)}, False),
    "soup.safetensors": Seed(mixed("x.safetensors"), True),
    "shards": Seed(shards, True),
    "npz": Seed(archived(np.savez), True),
    "packed npz": Seed(archived(np.savez_compressed), True),
    "soup.npz": Seed(mixed("x.npz"), True),
    "torch": Seed({"": _torch(tree)}, True),
    "torch shards": Seed(_torch_shards(tree), True),
    "orbax": Seed(_read(folder / "orbax"), False, 0.2),
    "soup in orbax": Seed(mixed("soup"), True, 0.2),
    "zarr": Seed(_read(folder / "zarr"), False, 0.2),
    "msgpack": Seed({"": serialization.to_bytes(nested)}, False),
    **_of_extras(tree, folder),
  }


def _of_extras(tree, folder: pathlib.Path) -> dict[str, Seed]:
  """Makes the checkpoints that need onnx or torch, if these are installed."""
  seeds = {}
  with contextlib.suppress(ImportError):
    from onnx import helper, numpy_helper

    arrays = [numpy_helper.from_array(array, k) for k, array in tree.items()]
    graph = helper.make_graph([], "model", [], [], arrays)
    data = helper.make_model(graph).SerializeToString()
    seeds["onnx"] = Seed({"": data}, False, suffix=".onnx")
  with contextlib.suppress(ImportError):
    import numpy as np
    import torch
    from torch.distributed import checkpoint

    tensors = {
      k: torch.from_numpy(np.ascontiguousarray(v, np.float32)).bfloat16()
      if v.dtype == "bfloat16"
      else torch.from_numpy(np.ascontiguousarray(v))
      for k, v in tree.items()
    }
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      checkpoint.save(tensors, checkpoint_id=folder / "dcp", no_dist=True)
    seeds["torch DCP"] = Seed(_read(folder / "dcp"), False)
  return seeds


def _read(path: pathlib.Path) -> dict[str, bytes]:
  """Returns relative path -> bytes of a file or directory."""
  if path.is_file():
    return {"": path.read_bytes()}
  files = sorted(file for file in path.rglob("*") if file.is_file())
  return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _write(path: pathlib.Path, files) -> None:
  """Writes files at a path, and pipes, devices and so on (`SPECIAL`)."""
  for name, content in files.items():
    file = path / name if name else path
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      mutations.SPECIAL[content](file)
    else:
      file.write_bytes(content)


def mutate(seeds, kind: str, number: int, folder: pathlib.Path):
  """Damages a checkpoint.

  Args:
    seeds: kind -> undamaged checkpoint.
    kind: the kind to damage.
    number: determines the damage.
    folder: an empty directory.

  Returns:
    The files, and whether the damage updated checksums too.
  """
  rng = random.Random(f"{kind}:{number}")
  files = dict(seeds[kind].files)
  if len(files) > 1 and rng.random() < 0.1:
    return mutations.of_folder(files, rng), False
  if "state/manifest.ocdbt" in files and rng.random() < 0.2:
    with tempfile.TemporaryDirectory(dir=folder) as place:
      return mutations.of_store(files, rng, pathlib.Path(place)), True
  name = rng.choice(list(files))
  texts = [name for name in files if _is_json(files[name])]
  if texts and rng.random() < 0.5:
    name = rng.choice(texts)
  data, renewed, structural = files[name], False, rng.random() < 0.5
  if structural and name in texts:
    files[name] = mutations.of_json(data, rng)
  elif structural and data[:4] == b"PK\x03\x04":
    files[name], renewed = mutations.of_zip(data, rng), True
  elif structural and data[8:9] == b"{":
    files[name] = mutations.of_safetensors(data, rng)
  else:
    other = seeds[rng.choice(list(seeds))].files
    other = other[rng.choice(list(other))]
    files[name] = mutations.of_bytes(data, rng, other)
  return files, renewed


def _is_json(data: bytes) -> bool:
  try:
    return isinstance(json.loads(data), dict)
  except ValueError:
    return False


def outcome(seeds, kind: str, number: int, folder: pathlib.Path) -> str:
  """Reads the checkpoint of one case.

  Returns:
    "same", "refused", or "other values" where this is allowed; anything else
    is a failure.
  """
  import jax
  import numpy as np

  import soupjax as sj
  from soupjax.soups.core import tree as trees

  files, renewed = mutate(seeds, kind, number, folder)
  path = folder / f"case{seeds[kind].suffix}"
  _write(path, files)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      (ingredient,) = sj.find_ingredients(path)
      if number % 5:
        params = jax.device_get(ingredient.load())
      else:
        rule = sj.rules.linear()
        params = sj.mix(rule, ingredient, check_finite=False).params
      params, _ = trees.flatten(params)
      sj.provenance(path)
  except ValueError as e:
    return "refused" if str(path) in str(e) else f"unnamed: {e!s:.300}"
  except Exception:
    return traceback.format_exc()[-1500:]
  finally:
    with contextlib.suppress(FileNotFoundError):
      shutil.rmtree(path) if path.is_dir() else os.remove(path)
  expected = weights()
  same = params.keys() == expected.keys() and all(
    params[k].dtype == v.dtype and np.array_equal(params[k], v)
    for k, v in expected.items()
  )
  if same:
    return "same"
  allowed = renewed or not seeds[kind].has_checksums
  return "other values" if allowed else "wrong values, without a word"


def cases(seeds, count: int, first: int = 0) -> list[tuple[str, int]]:
  """Returns (kind, number) of each case."""
  total = sum(seed.share for seed in seeds.values())
  return [
    (kind, first + k)
    for kind, seed in seeds.items()
    for k in range(math.ceil(count * seed.share / total))
  ]


def work(folder: pathlib.Path, count: int, first: int, start: int) -> None:
  """Runs the cases from `start` on, and writes one line for each."""
  with open(folder / "seeds", "rb") as f:
    seeds = pickle.load(f)
  import jax
  from orbax.checkpoint import v1  # noqa: F401

  import soupjax  # noqa: F401

  jax.devices()
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  place = folder / "files"
  place.mkdir(exist_ok=True)
  for case in cases(seeds, count, first)[start:]:
    started = time.perf_counter()
    result = outcome(seeds, *case, place)
    seconds = time.perf_counter() - started
    print(json.dumps([*case, result, seconds]), flush=True)


def _follow(folder, count, first, start):
  """Yields the results of one process until it ends or hangs."""
  import soupjax

  command = [sys.executable, __file__, "--worker", str(folder)]
  command += [f"--cases={count}", f"--first={first}", f"--start={start}"]
  package = os.path.dirname(os.path.dirname(soupjax.__file__))
  env = {**os.environ, "PYTHONPATH": package, "JAX_PLATFORMS": "cpu"}
  with open(folder / "log", "w+b") as out, open(folder / "errors", "wb") as err:
    process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
    try:
      seen, waited, partial = 0, time.monotonic(), b""
      while True:
        ended = process.poll() is not None
        with open(folder / "log", "rb") as log:
          log.seek(seen)
          data = log.read()
        if data:
          waited, seen = time.monotonic(), seen + len(data)
          *lines, partial = (partial + data).split(b"\n")
          yield from map(json.loads, lines)
        elif ended:
          return
        elif time.monotonic() - waited > PATIENCE:
          process.kill()
          return
        else:
          time.sleep(0.05)
    finally:
      process.kill()
      process.wait()


def fuzz(count: int, first: int, folder: pathlib.Path):
  """Runs cases of every kind.

  Args:
    count: number of cases.
    first: number of the first case of every kind.
    folder: an empty directory.

  Returns:
    Kind -> outcome -> count; (kind, number, outcome) of each failure; and the
    seconds of the slowest case.
  """
  (folder / "sound").mkdir()
  seeds = make_seeds(folder / "sound")
  (folder / "seeds").write_bytes(pickle.dumps(seeds))
  todo, done = cases(seeds, count, first), 0
  counts: dict[str, collections.Counter[str]] = {}
  failures, slowest = [], 0.0
  while done < len(todo):
    before = done
    for kind, number, result, seconds in _follow(folder, count, first, done):
      done, slowest = done + 1, max(slowest, seconds)
      counts.setdefault(kind, collections.Counter())
      if result in ("same", "refused", "other values"):
        counts[kind][result] += 1
      else:
        counts[kind]["failed"] += 1
        failures.append((kind, number, result))
    if done < len(todo):
      errors = (folder / "errors").read_bytes()[-2000:].decode(errors="replace")
      failures.append((*todo[done], f"the process ended or hangs: {errors}"))
      if before == done and len(failures) > 2:
        raise RuntimeError(errors)
      counts.setdefault(todo[done][0], collections.Counter())["failed"] += 1
      done += 1
      shutil.rmtree(folder / "files", ignore_errors=True)
  return counts, failures, slowest


def table(counts) -> str:
  """Returns the counts as a table in Markdown."""
  columns = ["same", "refused", "other values", "failed"]
  lines = ["| checkpoint | cases | " + " | ".join(columns) + " |"]
  lines.append("|---" * (len(columns) + 2) + "|")
  total = collections.Counter()
  for kind, found in counts.items():
    total += found
    cells = [sum(found.values()), *(found[c] for c in columns)]
    lines.append(f"| {kind} | " + " | ".join(f"{n:,}" for n in cells) + " |")
  cells = [sum(total.values()), *(total[c] for c in columns)]
  lines.append("| all | " + " | ".join(f"{n:,}" for n in cells) + " |")
  return "\n".join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--cases", type=int, default=10_000)
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--case", help="KIND:NUMBER: runs one case and prints it")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.worker:
    folder = pathlib.Path(arguments.worker)
    work(folder, arguments.cases, arguments.first, arguments.start)
    return
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if arguments.case:
      kind, number = arguments.case.rsplit(":", 1)
      print(outcome(make_seeds(folder), kind, int(number), folder))
      return
    started = time.perf_counter()
    counts, failures, slowest = fuzz(arguments.cases, arguments.first, folder)
    for kind, number, result in failures:
      print(f"--case='{kind}:{number}'\n{result}\n")
    print(table(counts))
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s, the slowest case {slowest:.2f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
  main()
