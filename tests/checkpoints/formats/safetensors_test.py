# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import soupjax as sj
from soupjax.checkpoints.formats import safetensors as safetensors_format

TREE = {
  "block/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
  "block/bias": np.ones(3, ml_dtypes.bfloat16),
  "half": np.array([1.5], np.float16),
  "scalar": np.array(2.0, np.float32),
  "counter": np.array([7], np.int64),
  "mask": np.array([True, False, True]),
  "empty": np.zeros((0, 3), np.float32),
}


def equal(actual, expected):
  assert set(actual) == set(expected)
  for name, value in expected.items():
    assert actual[name].dtype == value.dtype, name
    assert actual[name].shape == value.shape, name
    assert actual[name].tobytes() == value.tobytes(), name


def write(path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(struct.pack("<Q", length) + text + data)
  return path


def entry(start=0, stop=8, shape=(2,), dtype="F32"):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_files_of_the_reference_library(tmp_path):
  path = tmp_path / "x"  # The format is known by content.
  safetensors.numpy.save_file(TREE, path)
  ingredient = sj.open_ingredient(path)
  equal({k: ingredient.read(k) for k in ingredient.specs}, TREE)
  assert ingredient.load()["block"]["kernel"].shape == (3, 4)
  part = ingredient.read("block/kernel", index=(slice(1, 3), slice(1, 2)))
  assert part.tolist() == [[5], [9]]
  assert ingredient.storage.checksums == {}


def test_the_reference_library_reads_ours(tmp_path):
  path = tmp_path / "x y:z.safetensors"
  sj.save_params(path, TREE, metadata={"note": "ä"})
  equal(safetensors.numpy.load_file(path), TREE)
  assert sj.provenance(path)["note"] == "ä"
  with open(path, "rb") as f:
    assert (struct.unpack("<Q", f.read(8))[0] + 8) % 64 == 0


def test_names_that_cannot_be_nested_stay_flat(tmp_path):
  tree = {"a": np.ones(1, "f"), "a/b": np.zeros(1, "f")}
  safetensors.numpy.save_file(tree, tmp_path / "x")
  assert set(sj.load_params(tmp_path / "x")) == {"a", "a/b"}


def test_shards(tmp_path):
  for k in range(2):
    tree = {n: v for n, v in TREE.items() if n != "empty"}
    tree["block/kernel"] = tree["block/kernel"] + k
    sj.save_params(tmp_path / f"m{k}.safetensors", tree)
  out = tmp_path / "sharded"
  sj.mix(sj.rules.linear(), str(tmp_path / "m*"), out=out, shard_bytes=20)
  index = json.loads((out / "model.safetensors.index.json").read_text())
  shards = set(index["weight_map"].values())
  assert len(shards) > 2
  assert all(f"-of-{len(shards):05d}.safetensors" in s for s in shards)
  merged = {}
  for shard in shards:
    merged |= safetensors.numpy.load_file(out / shard)
  assert set(index["weight_map"]) == set(merged)
  assert (merged["block/kernel"] == TREE["block/kernel"] + 0.5).all()
  for path in (out, out / "model.safetensors.index.json"):
    ingredient = sj.open_ingredient(path)
    equal({k: ingredient.read(k) for k in ingredient.specs}, merged)
  assert set(sj.provenance(out)["crc32"]) == set(merged)
  gone = sorted(shards)[1]
  (out / gone).unlink()
  with pytest.raises(ValueError, match=f"1.*{gone}"):
    sj.open_ingredient(out)


def test_an_index_that_lies(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  for name, text in [("../x", "'../x'"), ("x", "missing")]:
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=text):
      sj.open_ingredient(tmp_path)
  for name in (5, None, ["x"], {}):
    index.write_text(json.dumps({"weight_map": {"a": name, "b": "x"}}))
    with pytest.raises(ValueError, match="'a' to "):
      sj.open_ingredient(tmp_path)
  index.write_text("{}")
  with pytest.raises(ValueError, match="no weight_map"):
    sj.open_ingredient(tmp_path)
  index.write_text(json.dumps({"weight_map": {"a": "x", "b": "x"}}))
  safetensors.numpy.save_file(
    {"a": np.ones(1), "c": np.ones(1)}, tmp_path / "x"
  )
  with pytest.raises(ValueError, match="2 leaves.*'b'.*'c'"):
    sj.open_ingredient(tmp_path)
  index.write_text(json.dumps({"weight_map": {"a": "x", "c": "y"}}))
  safetensors.numpy.save_file({"c": np.ones(1)}, tmp_path / "y")
  with pytest.raises(ValueError, match="'c'"):
    sj.open_ingredient(tmp_path)


@pytest.mark.parametrize(
  "header,data,text",
  [
    (b"", b"", "8 bytes|header"),
    (b"{nonsense}", b"", "header"),
    (b"[1]      ", b"", "list"),
    ({"a": entry(0, 16, (4,))}, bytes(8), "cut short.*16.*8"),
    ({"a": entry()}, bytes(12), "4 bytes"),
    ({"a": entry(0, 8, (3,))}, bytes(8), "'a'.*8 bytes.*12"),
    ({"a": entry(), "b": entry(4, 12)}, bytes(12), "'a'.*'b'"),
    ({"a": entry(), "b": entry(12, 20)}, bytes(20), "gap between"),
    ({"a": entry(dtype="F31")}, bytes(8), "dtype 'F31'"),
    ({"a": entry(shape=(-2,))}, bytes(8), "'a'"),
    ({"a": entry(shape=(2.0,))}, bytes(8), "'a'"),
    ({"a": {"dtype": "F32"}}, bytes(8), "'a'"),
    ({"a": 3}, bytes(8), "'a'"),
    ({"a": entry(dtype=["F32"])}, bytes(8), r"dtype \['F32'\]"),
    ({"a": entry(), "__metadata__": [1]}, bytes(8), r"__metadata__ .*\[1\]"),
    ({"a": entry(), "__metadata__": 5}, bytes(8), "__metadata__ .*5"),
    ({"a": entry(), "__metadata__": "x"}, bytes(8), "__metadata__ .*'x'"),
    ({"a": entry(), "__metadata__": None}, bytes(8), "__metadata__ .*None"),
    (
      {"a": entry(), "__metadata__": {"format": 5}},
      bytes(8),
      "__metadata__ .*{'format': 5}",
    ),
    (
      {"a": entry(), "__metadata__": {"soupjax": "[" * 100_000}},
      bytes(8),
      "damaged",
    ),
    ({}, b"", "no arrays"),
    (
      b'{"a":'
      + json.dumps(entry()).encode()
      + b',"a":'
      + json.dumps(entry()).encode()
      + b"}",
      bytes(8),
      "'a' twice",
    ),
    # As many colons as without the duplicate, one of them in a name.
    (
      b'{"a":%s,"a":%s,"::\\u003a\\u003A\\u003a\\u003A":%s}'
      % ((json.dumps(entry()).encode(),) * 3),
      bytes(8),
      "'a' twice",
    ),
    (
      b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}',
      bytes(8),
      "'shape' twice",
    ),
    (
      b'{"__metadata__":{"k":"x:y","k":""},"a":%s}'
      % json.dumps(entry()).encode(),
      bytes(8),
      "'k' twice",
    ),
  ],
)
def test_bad_headers(tmp_path, header, data, text):
  path = write(tmp_path / "x.safetensors", header, data)
  with pytest.raises(ValueError, match=text) as e:
    safetensors_format.open_checkpoint(str(path), "x")
  assert str(path) in str(e.value)


def test_usual_headers_are_parsed_without_a_call_for_every_leaf(
  tmp_path, monkeypatch
):
  def unique(pairs):
    raise AssertionError(f"a call for {pairs}")

  monkeypatch.setattr(safetensors_format, "_unique", unique)
  tree = {f"a:{k}": np.full(3, k, np.float32) for k in range(9)}
  sj.save_params(tmp_path / "ours.safetensors", tree)
  metadata = {"url": 'https://x "y":', "format": "pt"}
  safetensors.numpy.save_file(tree, tmp_path / "theirs", metadata)
  for name in ("ours.safetensors", "theirs"):
    assert sj.open_ingredient(tmp_path / name).specs.keys() == tree.keys()


@pytest.mark.parametrize("length", [1 << 62, 100, 10**8 + 1])
def test_a_flipped_header_length(tmp_path, length):
  path = write(tmp_path / "x", {"a": entry()}, bytes(8), length=length)
  with pytest.raises(ValueError, match=f"{length}"):
    safetensors_format.open_checkpoint(str(path), "x")


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 60, -1])
def test_truncated_files(tmp_path, keep):
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(TREE, path)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=str(path)):
    sj.open_ingredient(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
  path = tmp_path / "x"
  safetensors.numpy.save_file(TREE, path)
  ingredient = sj.open_ingredient(path)
  with open(path, "r+b") as f:
    f.truncate(path.stat().st_size - 1)
  with pytest.raises(ValueError, match="cut short"):
    ingredient.load()


def test_every_flipped_bit_of_a_soup_is_found(tmp_path):
  path = tmp_path / "soup.safetensors"
  sj.save_params(path, {"a": np.arange(64, dtype="f"), "b": np.ones(9, "f")})
  whole = path.read_bytes()
  start = struct.unpack("<Q", whole[:8])[0] + 8
  for at in (start, start + 100, len(whole) - 1):
    damaged = bytearray(whole)
    damaged[at] ^= 16
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="'[ab]'"):
      sj.load_params(path)
    with pytest.raises(ValueError, match="'[ab]'"):
      sj.mix(sj.rules.linear(), path, out=tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["soup.safetensors"]


def test_dtypes_without_a_name_are_refused(tmp_path):
  tree = {"w": np.zeros(2, ml_dtypes.float8_e4m3b11fnuz)}
  with pytest.raises(ValueError, match="'w'.*float8_e4m3b11fnuz"):
    sj.save_params(tmp_path / "x.safetensors", tree)
  assert not list(tmp_path.iterdir())


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
  "header",
  [
    {"/".join("a" * 3000): ONE},
    {"a": {**ONE, "shape": [1] * 65}},
    {"a": {**ONE, "shape": [0, 2**70], "data_offsets": [0, 0]}, "b": ONE},
    {
      "a": {**ONE, "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]},
      "b": ONE,
    },
    {"a": {**ONE, "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
    {"\ud800": ONE},
  ],
)
def test_claims_that_no_array_can_keep(tmp_path, header):
  path = tmp_path / "x.safetensors"
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
  with pytest.raises(ValueError, match=str(path)):
    sj.open_ingredient(path)


@pytest.mark.parametrize(
  "shard",
  ["..", ".", "", "x" * 5000, "/etc/passwd", "a/../b", "a\0b", "a\nb", 3, None],
)
def test_names_of_shards_that_are_not_files_beside_the_index(tmp_path, shard):
  index = tmp_path / "m.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"w": shard}}))
  with pytest.raises(ValueError, match=f"{index} maps 'w'"):
    sj.open_ingredient(tmp_path)


@pytest.mark.parametrize("lost", ["leaf", "index", "shard"])
def test_a_shard_that_is_lost_with_its_leaves(tmp_path, lost):
  tree = {k: np.full(9, k, np.float32) for k in range(3)}
  ingredient = sj.Ingredient.from_params("x", tree)
  path, settings = tmp_path / "x", {"format": "safetensors", "shard_bytes": 40}
  sj.mix(sj.rules.linear(), [ingredient], out=path, **settings)
  index = path / "model.safetensors.index.json"
  content = json.loads(index.read_text())
  shard = content["weight_map"].pop("1")
  if lost == "leaf":  # In the index, not in its file.
    index.write_text(json.dumps(content))
  elif lost == "shard":
    (path / shard).unlink()
  else:
    index.unlink()
    assert len(sj.load_params(path)) == 3
    (path / shard).unlink()
  with pytest.raises(ValueError, match=f"{path}.*missing"):
    sj.open_ingredient(path)
