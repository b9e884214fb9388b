# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs that change, are not regular files, or are very many."""

import errno
import json
import os
import pathlib
import resource
import shutil
import socket
import threading

import numpy as np
import orbax.checkpoint as ocp
import pytest

import soupjax as sj
from soupjax import files
from soupjax.checkpoints.formats import byte_ranges, input_files
from tests.checkpoints.formats import torch_test

pytestmark = pytest.mark.filterwarnings(
  "ignore:.*hold the same", "ignore:.*have the same"
)
RULE = sj.rules.linear()
KINDS = ["safetensors", "shards", "npz", "packed", "orbax", "zarr", "torch"]


def tree(value):
  return {k: np.full((32, 8), value, np.float32) for k in ("a", "b", "c")}


def save(path, kind, value):
  """Writes a checkpoint of a kind; returns a file of it that holds weights."""
  if kind == "packed":
    with open(path, "wb") as f:
      np.savez_compressed(f, **tree(value))
  elif kind == "npz":
    with open(path, "wb") as f:
      np.savez(f, **tree(value))
  elif kind == "torch":
    leaves = tree(value)
    views = {k: torch_test.tensor(k, 256, 0, (32, 8), (8, 1)) for k in leaves}
    torch_test.save(path, views, leaves)
  elif kind == "zarr":
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(path, tree(value))
    return path / "b" / "0.0"
  else:
    ingredient = sj.Ingredient.from_params("x", tree(value))
    format = "orbax" if kind == "orbax" else "safetensors"
    shards = {"shard_bytes": 1100} if kind == "shards" else {}
    sj.mix(RULE, [ingredient], out=path, format=format, **shards)
  if kind == "orbax":
    return max(path.rglob("d/*"), key=lambda file: file.stat().st_size)
  return sorted(path.glob("*2-of*"))[0] if kind == "shards" else path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  names = {kind: save(folder / kind, kind, 1.0) for kind in KINDS}
  return folder, names


def copied(saved, kind, tmp_path):
  """Returns the path of a copy, and the path of its file with weights."""
  folder, names = saved
  source, path = folder / kind, tmp_path / "last"
  if source.is_dir():
    shutil.copytree(source, path)
  else:
    shutil.copy(source, path)
  return path, path / names[kind].relative_to(source)


def rewrite(file):
  """Writes other numbers through a descriptor, at the same size."""
  data = bytearray(file.read_bytes())
  with open(file, "r+b") as f:
    f.write(data.replace(b"\x3f\x80", b"\x40\x80"))


def replace(file):
  new = file.with_name("new")
  shutil.copy(file, new)
  os.replace(new, file)


def cut(file):
  os.truncate(file, file.stat().st_size // 2)


CHANGES = [rewrite, replace, cut, os.remove]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_between_plan_and_mix(saved, tmp_path, kind, change):
  path, file = copied(saved, kind, tmp_path)
  ingredients = [sj.open_ingredient(path), sj.open_ingredient(saved[0] / kind)]
  change(file)
  pattern = f"last' has changed.*{file}"
  with pytest.raises(ValueError, match=pattern):
    sj.mix(RULE, ingredients, out=tmp_path / "soup")
  assert not (tmp_path / "soup").exists()
  for read in (ingredients[0].load, lambda: ingredients[0].read("c")):
    with pytest.raises(ValueError, match=pattern):
      read()


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_during_the_mix(saved, tmp_path, kind):
  path, file = copied(saved, kind, tmp_path)
  inputs = [path, saved[0] / kind]
  settings = {"out": tmp_path / "soup", "threads": 1, "block_bytes": 999}
  sj.mix(RULE, inputs, **settings)
  shutil.rmtree(tmp_path / "soup")

  def progress(done, total):
    if done < total / 2:
      rewrite(file)
      os.utime(file, ns=(5, done))

  with pytest.raises(ValueError, match=f"last' has changed.*{file}"):
    sj.mix(RULE, inputs, progress=progress, **settings)
  assert not (tmp_path / "soup").exists()


def test_a_change_of_an_index(saved, tmp_path):
  path, _ = copied(saved, "shards", tmp_path)
  ingredient = sj.open_ingredient(path)
  replace(path / "model.safetensors.index.json")
  with pytest.raises(ValueError, match=r"index\.json has been replaced"):
    ingredient.load()


def test_a_change_during_a_search(saved, tmp_path):
  path, file = copied(saved, "safetensors", tmp_path)
  inputs = [path, saved[0] / "npz"]

  def evaluate(params):
    rewrite(file)
    return float(params["a"][0, 0])

  with pytest.raises(ValueError, match="last' has changed"):
    sj.greedy_soup(inputs, evaluate)


def test_other_files_beside_a_checkpoint_may_change(saved, tmp_path):
  path, _ = copied(saved, "orbax", tmp_path)
  (path / "metrics.json").write_text("{}")
  ingredient = sj.open_ingredient(path)
  (path / "metrics.json").write_text('{"a": 1}')
  (path / "log.txt").write_text("step 2")
  assert np.array_equal(ingredient.read("a"), tree(1.0)["a"])


# Files that are not regular.


@pytest.mark.parametrize(
  "kind", ["pipe", "device", "directory", "loop", "socket"]
)
@pytest.mark.parametrize(
  "name",
  [
    "x.safetensors",
    "x.npz",
    "x",
    "d/x.safetensors",
    "d/x.safetensors.index.json",
    "d/metrics.json",
    "d/state/_METADATA",
    "d/state/manifest.ocdbt",
    "d/state/d/0",
  ],
)
def test_what_is_not_a_regular_file(saved, tmp_path, monkeypatch, kind, name):
  monkeypatch.chdir(tmp_path)
  if name.startswith("d/state") or name.endswith("metrics.json"):
    shutil.copytree(saved[0] / "orbax", "d")
    pathlib.Path(name).unlink(missing_ok=True)
  file = pathlib.Path(name)
  file.parent.mkdir(parents=True, exist_ok=True)
  if kind == "pipe":
    os.mkfifo(file)
  elif kind == "device":
    file.symlink_to("/dev/zero")
  elif kind == "directory":
    file.mkdir()
  elif kind == "loop":
    file.symlink_to(file.name)
  else:
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(name)
  top = tmp_path / file.parts[0]
  if name == "d/metrics.json" and kind == "loop":
    return  # Does not exist.
  if name == "d/state/d/0" and kind == "directory":
    return  # An empty directory harms nobody.
  with pytest.raises(ValueError, match=str(top)):
    sj.open_ingredient(top)


def test_a_pipe_beside_the_weights(saved, tmp_path):
  path = tmp_path / "m" / "m.safetensors"
  path.parent.mkdir()
  shutil.copy(saved[0] / "safetensors", path)
  for name in ("config.json", "tokenizer.json"):
    os.mkfifo(path.with_name(name))
    with pytest.raises(ValueError, match=f"{name} is a pipe"):
      sj.mix(RULE, path, out=tmp_path / "soup.npz")
    path.with_name(name).unlink()


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "a\0b"])
def test_names_that_no_file_can_have(name):
  for read in (sj.open_ingredient, sj.find_ingredients, sj.provenance):
    with pytest.raises(ValueError, match="no checkpoint|nothing matches"):
      read(name)


def test_json_is_bounded(tmp_path):
  path = tmp_path / "x.json"
  for text in (b"[" * 200_000, b"{", b"\xff\x00{}"):
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"x\.json"):
      files.read_json(path)
  os.truncate(path, 1 << 40)
  with pytest.raises(ValueError, match=r"x\.json has 1099511627776 bytes"):
    files.read_json(path)


# Many files.


def num_open(folder):
  """Returns how many files in a folder this process has open."""
  links = pathlib.Path("/proc/self/fd").iterdir()
  targets = [os.readlink(link) for link in links if link.is_symlink()]
  return sum(target.startswith(str(folder)) for target in targets)


def shards(folder, count):
  """Writes a checkpoint of many shards."""
  folder.mkdir()
  index = {}
  for k in range(count):
    index[f"w{k}"] = f"{k}.safetensors"
    leaf = {f"w{k}": np.full(3, k, np.float32)}
    sj.save_params(folder / index[f"w{k}"], leaf)
  text = json.dumps({"weight_map": index})
  (folder / "m.safetensors.index.json").write_text(text)


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(input_files, "LOCAL", input_files.OpenFiles(4))
  shards(tmp_path / "m", 12)
  most = []
  mixed = sj.mix(
    RULE,
    [tmp_path / "m"] * 2,
    block_bytes=24,
    threads=2,
    progress=lambda *_: most.append(num_open(tmp_path)),
  )
  assert [int(mixed.params[f"w{k}"][0]) for k in range(12)] == [*range(12)]
  # A thread closes others' files after it has opened its own.
  assert most and 0 < max(most) <= 4 + 2


def test_files_close_with_their_ingredient(tmp_path):
  shards(tmp_path / "m", 2)
  ingredient = sj.open_ingredient(tmp_path / "m")
  ingredient.load()
  assert num_open(tmp_path) == 2
  del ingredient
  assert num_open(tmp_path) == 0


def test_one_file_in_many_threads(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(bytes(range(256)) * 16)
  others = [tmp_path / f"y{k}" for k in range(4)]
  for other in others:
    other.write_bytes(b"y" * 9)
  pool = input_files.OpenFiles(1)
  sources = [byte_ranges.ByteFile(p) for p in (path, *others)]
  errors = []

  def read():
    try:
      for k in range(200):
        source = sources[k % 5]
        with pool.opened(source) as handle:
          data = os.pread(handle.fileno(), 9, 0)
        assert data == (bytes(range(9)) if k % 5 == 0 else b"y" * 9)
    except BaseException as e:
      errors.append(e)

  threads = [threading.Thread(target=read) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors and num_open(tmp_path) <= 9


def test_the_limit_of_open_files_is_raised():
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  most = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, most), hard))
    assert files.open_limit() == min(512, most)
    assert files.raise_open_limit() == files.open_limit() == most
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_of_inputs_than_files_may_be_open(tmp_path, monkeypatch):
  for k in range(30):
    leaves = {f"w{n}": np.full(2, k, np.float32) for n in range(8)}
    sj.mix(
      RULE,
      [sj.Ingredient.from_params("x", leaves)],
      out=tmp_path / f"model_{k:02d}",
      format="safetensors",
      shard_bytes=16,
    )
  shards = len(list(tmp_path.glob("*/*.safetensors")))
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  spare = 40
  assert shards > 2 * spare
  limit = spare + len(os.listdir("/proc/self/fd"))
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    monkeypatch.setattr(files, "raise_open_limit", files.open_limit)
    ingredients = sj.find_ingredients(str(tmp_path / "model_*"))
    sj.mix(RULE, ingredients, out=tmp_path / "soup.safetensors")
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  for leaf in sj.load_params(tmp_path / "soup.safetensors").values():
    np.testing.assert_array_equal(leaf, 14.5)


def test_many_shards_of_an_output(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  leaves = {f"w{k}": np.full(2, k, np.float32) for k in range(90)}
  ingredient = sj.Ingredient.from_params("x", leaves)
  soft = 89
  settings = {"format": "safetensors", "shard_bytes": 8, "overwrite": True}
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    sj.mix(RULE, [ingredient], out=tmp_path / "x", **settings)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  assert len(sj.load_params(tmp_path / "x")) == 90


def test_too_many_open_files(tmp_path, monkeypatch):
  class Source:
    handle, users = None, 0

    def __init__(self, failures):
      self.failures = failures

    def open(self):
      if self.failures:
        self.failures -= 1
        raise OSError(errno.EMFILE, "Too many open files")
      return open(os.devnull, "rb")

  raised = []
  monkeypatch.setattr(files, "raise_open_limit", lambda: raised.append(1) or 99)
  pool = input_files.OpenFiles()
  idle = Source(0)
  with pool.opened(idle):
    pass
  # The limit is raised first, then files that nobody reads are closed.
  with pool.opened(Source(1)):
    assert raised and idle.handle is not None
  with pool.opened(Source(2)):
    assert idle.handle is None
  with pytest.raises(ValueError, match="ulimit -n"), pool.opened(Source(3)):
    pass
