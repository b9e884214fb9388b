# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Flipped bits outside of the weights: in names, shapes, dtypes and lists."""

import json
import pathlib
import struct

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import sharding
from soupjax.checkpoints.formats import leaf_digest

TREE = {
  "head": np.arange(6, dtype=np.float32),
  "norm": np.ones((2, 3), np.float32),
  "tail": np.full(5, 2, np.float32),
}
OUTPUTS = ["x.safetensors", "x.npz", "shards"]


def soup(path):
  kwargs = {"format": "safetensors", "shard_bytes": 30}
  ingredient = sj.Ingredient.from_params("a", TREE)
  kwargs = kwargs if path.name == "shards" else {}
  sj.mix(sj.rules.linear(), [ingredient], out=path, **kwargs)
  return path


def replace(path, old, new):
  """Replaces bytes in all files of a checkpoint."""
  files = [path] if path.is_file() else [p for p in path.rglob("*")]
  count = 0
  for file in files:
    if file.is_file() and old in (data := file.read_bytes()):
      count += data.count(old)
      file.write_bytes(data.replace(old, new))
  assert count


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_leaf_by_another_name_is_noticed(tmp_path, name):
  path = soup(tmp_path / name)
  assert set(sj.load_params(path)) == set(TREE)
  old, new = {
    # Not in the record, where it stands between \\" and \\".
    "x.safetensors": (b'"head":{', b'"heae":{'),
    "shards": (b'"head":{', b'"heae":{'),
    "x.npz": (b"head.npy", b"heae.npy"),
  }[name]
  replace(path, old, new)
  if name == "shards":
    replace(path, b'"head": "model', b'"heae": "model')
  with pytest.raises(ValueError, match="damaged"):
    sj.open_ingredient(path)


def test_a_leaf_that_orbax_no_longer_lists_is_noticed(tmp_path):
  path = soup(tmp_path / "x")
  assert set(sj.load_params(path)) == set(TREE)
  file = path / "state" / "_METADATA"
  text = json.loads(file.read_text())
  del text["tree_metadata"]["('head',)"]
  file.write_text(json.dumps(text))
  with pytest.raises(ValueError, match=r"\['head'\]"):
    sj.open_ingredient(path)


def test_another_dtype_or_shape_of_one_size_is_noticed(tmp_path):
  for old, new in [(b'"F32"', b'"I32"'), (b"[2,3]", b"[3,2]")]:
    path = soup(tmp_path / f"{new[1]}.safetensors")
    replace(path, old, new)
    with pytest.raises(ValueError, match="dtype"):
      sj.open_ingredient(path)


def damage_everywhere(path, start, stop):
  """Flips each bit in turn; every failure must be a ValueError."""
  intact, refused = path.read_bytes(), 0
  record = sj.provenance(path)
  for at in range(start, stop):
    damaged = bytearray(intact)
    damaged[at] ^= 1 << at % 8
    path.write_bytes(damaged)
    try:
      params = sj.load_params(path)
      assert sj.provenance(path) == record, at
    except ValueError as e:
      assert str(path) in str(e)
      refused += 1
    else:
      assert set(params) == set(TREE), at
      for leaf, value in TREE.items():
        assert params[leaf].dtype == value.dtype, at
        assert np.array_equal(params[leaf], value), at
  assert refused > (stop - start) / 5
  path.write_bytes(intact)


def test_flips_in_the_header_of_a_soup(tmp_path):
  path = soup(tmp_path / "x.safetensors")
  (length,) = struct.unpack("<Q", path.read_bytes()[:8])
  damage_everywhere(path, 0, 8 + length)


KEYS = [
  (b'"soupjax"', b'"soupjaw"'),
  (b"soupjax_leaves", b"soupjax_leavez"),
  (b'crc32\\"', b'crc92\\"'),
  (b'"crc32"', b'"crc92"'),
  (b"custom_metadata", b"custom_metadatb"),
  (b"__metadata__", b"__metadatb__"),
  (b"uniform", b"uniforn"),
]


@pytest.mark.parametrize("old,new", KEYS)
@pytest.mark.parametrize("name", [*OUTPUTS, "orbax"])
def test_the_loss_of_a_record_is_noticed(tmp_path, name, old, new):
  path = soup(tmp_path / name)
  files = [path] if path.is_file() else [*path.rglob("*")]
  for file in files:
    data = file.read_bytes() if file.is_file() else b""
    # Weights have no checksum once the record is lost.
    for k in range(data.count(old)):
      first, *rest = data.split(old)
      parts = [old] * (len(rest) - 1)
      parts.insert(k, new)
      damaged = first + b"".join(a + b for a, b in zip(parts, rest))
      file.write_bytes(damaged)
      for read in (sj.load_params, sj.provenance):
        with pytest.raises(ValueError, match=str(path)):
          read(path)
      file.write_bytes(data)
  assert sj.load_params(path).keys() == TREE.keys()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_the_loss_of_a_metadata_file_is_noticed(tmp_path, name):
  path = soup(tmp_path / "orbax")
  data = json.loads((path / name).read_text())
  (path / name).write_text(json.dumps({**data, "custom_metadata": None}))
  with pytest.raises(ValueError, match=f"{path} is damaged"):
    sj.load_params(path)
  (path / name).unlink()
  with pytest.raises(ValueError, match=str(path)):
    sj.load_params(path)


def test_soups_with_digests_of_leaves_alone_are_read(tmp_path):
  # As in the first version, whose digest did not cover the record.
  for name in ("x.safetensors", "x.npz", "orbax"):
    path = soup(tmp_path / name)
    record = sj.provenance(path)
    folder = path if path.is_dir() else None
    if folder:
      inner = folder / "state" / "_METADATA"
      text = json.loads(inner.read_text())
      inner.write_text(json.dumps({**text, "custom_metadata": None}))
    file = folder / "_CHECKPOINT_METADATA" if folder else path
    key = leaf_digest.KEY.encode() + b'": "'
    key = key.replace(b" ", b"") if name == "x.safetensors" else key
    data = file.read_bytes()
    at = data.index(key) + len(key) + 64
    file.write_bytes(data[:at] + data[at + 64 :])
    if name == "x.safetensors":
      (length,) = struct.unpack("<Q", data[:8])
      shorter = struct.pack("<Q", length - 64)
      file.write_bytes(shorter + file.read_bytes()[8:])
    elif name == "x.npz":
      data = file.read_bytes()
      at = data.rindex(b"PK\x05\x06") + 20
      (length,) = struct.unpack("<H", data[at : at + 2])
      shorter = struct.pack("<H", length - 64)
      file.write_bytes(data[:at] + shorter + data[at + 2 :])
    assert sj.load_params(path).keys() == TREE.keys()
    assert sj.provenance(path) == record


@pytest.mark.parametrize("soup_file", [True, False])
def test_flips_in_the_list_of_an_archive(tmp_path, soup_file):
  path = tmp_path / "x.npz"
  if soup_file:
    soup(path)
  else:
    np.savez(path, **TREE)
  data = path.read_bytes()
  damage_everywhere(path, data.index(b"PK\x01\x02"), len(data))


def test_flips_in_the_headers_of_arrays(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, **TREE)
  damage_everywhere(path, 0, 260)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz"])
@pytest.mark.parametrize("axes", [("x",), (None, "x"), ("x", "y"), ()])
def test_damage_is_found_on_the_way_to_a_mesh(tmp_path, name, axes):
  array = np.random.default_rng(0).normal(size=(16, 24)).astype("f")
  path = pathlib.Path(tmp_path / name)
  sj.save_params(path, {"w": array})
  mesh = sharding.make_mesh({"x": 4, "y": 2})
  place = sharding.NamedSharding(mesh, jax.P(*axes))
  params = sj.load_params(path, sharding=place)["w"]
  assert params.sharding == place and np.array_equal(params, array)
  data = path.read_bytes()
  at = data.index(array.tobytes()) + 700
  path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
  with pytest.raises(ValueError, match="'w'.*damaged"):
    sj.load_params(path, sharding=place)
