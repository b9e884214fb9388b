# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files that flax.serialization writes, and damaged ones."""

import json
import tracemalloc

from flax import serialization
import jax.numpy as jnp
import msgpack as library
import numpy as np
import pytest

import soupjax as sj
from soupjax.checkpoints.formats.foreign import msgpack

TREE = {
  "Dense_0": {
    "kernel": np.arange(6.0, dtype="f").reshape(2, 3),
    "bias": jnp.ones(3, jnp.bfloat16),
  },
  "half": np.ones((2, 1), np.float16),
  "wide": np.arange(3.0),
  "count": np.int32(7),
  "mask": np.array([True, False]),
  "empty": np.zeros((0, 2), "f"),
  "f8": jnp.ones(3, jnp.float8_e4m3fn),
}


def _write(path, tree):
  path.write_bytes(serialization.msgpack_serialize(tree))
  return path


def test_every_leaf_is_read_by_ranges(tmp_path):
  path = _write(tmp_path / "flax_model.msgpack", TREE)
  model = sj.open_ingredient(path)
  expected = serialization.msgpack_restore(path.read_bytes())
  read = model.load()
  for leaf in model.specs:
    a, b = read, expected
    for key in leaf.split("/"):
      a, b = a[key], b[key]
    assert a.dtype == b.dtype and a.shape == b.shape, leaf
    assert a.tobytes() == b.tobytes(), leaf
  part = model.read("Dense_0/kernel", index=np.s_[:, 1:])
  np.testing.assert_array_equal(part, TREE["Dense_0"]["kernel"][:, 1:])


def test_a_mix_of_flax_files(tmp_path):
  for k in range(2):
    _write(tmp_path / f"{k}.msgpack", {"w": np.full(4, 2 * k, "f")})
  out = tmp_path / "soup.safetensors"
  mixed = sj.mix(sj.rules.linear(), str(tmp_path / "*.msgpack"), out=out)
  assert sj.load_params(out)["w"].tolist() == [1, 1, 1, 1]
  assert "not verified: 0.msgpack, 1.msgpack" in mixed.table


def test_arrays_in_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
  w = np.arange(210.0, dtype="f").reshape(5, 6, 7)
  path = _write(tmp_path / "a.msgpack", {"w": w, "b": np.ones(2, "f")})
  assert path.read_bytes().count(b"__msgpack_chunked_array__") == 1
  model = sj.open_ingredient(path)
  for index in (None, np.s_[1:3,], np.s_[:, 2:4, 3:], np.s_[4:, 5:, 6:]):
    expected = w if index is None else w[index]
    np.testing.assert_array_equal(model.read("w", index=index), expected)
  mixed = sj.mix(sj.rules.linear(), [model], block_bytes=256)
  np.testing.assert_array_equal(mixed.params["w"], w)


def test_train_states_are_cut_to_their_weights(tmp_path):
  state = {
    "step": 3,
    "params": {"w": np.ones(2, "f")},
    "opt_state": {"0": {"mu": {"w": np.zeros(2, "f")}}},
  }
  path = _write(tmp_path / "checkpoint_3", state)
  assert [*sj.open_ingredient(path).specs] == ["w"]
  # As `restore_checkpoint` takes a directory.
  assert [*sj.open_ingredient(tmp_path).specs] == ["w"]
  _write(tmp_path / "checkpoint_10", state)
  with pytest.raises(ValueError, match="checkpoint_10.*Give the path of one"):
    sj.open_ingredient(tmp_path)
  found = sj.find_ingredients(str(tmp_path / "checkpoint_*"))
  assert [i.name for i in found] == ["checkpoint_3", "checkpoint_10"]


def test_shards_with_an_index(tmp_path):
  names = {}
  for k in range(2):
    name = f"flax_model-0000{k + 1}-of-00002.msgpack"
    _write(tmp_path / name, {f"layer{k}": {"w": np.full(2, k, "f")}})
    names[f"layer{k}/w"] = name
  index = tmp_path / "flax_model.msgpack.index.json"
  index.write_text(json.dumps({"weight_map": names}))
  for path in (tmp_path, index):
    model = sj.open_ingredient(path)
    assert [*model.specs] == ["layer0/w", "layer1/w"]
    assert model.read("layer1/w").tolist() == [1, 1]
  index.write_text(json.dumps({"weight_map": {"layer0/w": name}}))
  with pytest.raises(ValueError, match=r"index\.json"):
    sj.open_ingredient(tmp_path)


def test_copies_of_transformers_are_passed_over(tmp_path):
  sj.save_params(tmp_path / "m/model.safetensors", {"w": np.ones(2, "f")})
  _write(tmp_path / "m/flax_model.msgpack", {"w": np.ones(2, "f")})
  _write(tmp_path / "n.msgpack", TREE)
  found = sj.find_ingredients(str(tmp_path / "**"))
  assert [i.name for i in found] == ["m/model.safetensors", "n.msgpack"]


def test_arrays_that_several_processes_wrote_are_refused(tmp_path):
  tree = {"params": {"w": "//GDAPlaceholder:params.w", "b": np.ones(2, "f")}}
  path = _write(tmp_path / "checkpoint_1", tree)
  with pytest.raises(ValueError, match="'params/w' is in .*checkpoint_1_gda"):
    sj.open_ingredient(path)


def test_values_that_are_not_arrays_are_told(tmp_path):
  path = _write(tmp_path / "a.msgpack", {"w": np.ones(2, "f"), "note": "hi"})
  with pytest.warns(UserWarning, match="'note' .not an array"):
    sj.open_ingredient(path)


def test_opening_reads_no_numbers(tmp_path):
  path = _write(tmp_path / "a.msgpack", {"w": np.ones(8 << 20, "f")})
  tracemalloc.start()
  sj.open_ingredient(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2 << 20


def _array(shape=(2,), dtype="float32", data=bytes(8)):
  packed = library.packb((shape, dtype, data), use_bin_type=True)
  return library.ExtType(1, packed)


def _chunks(shape, *sizes):
  arrays = [_array((n,), data=bytes(4 * n)) for n in sizes]
  return {
    "__msgpack_chunked_array__": True,
    "shape": {str(k): n for k, n in enumerate(shape)},
    "chunks": {str(k): a for k, a in enumerate(arrays)},
  }


def _deep(levels):
  tree = {"w": _array()}
  for _ in range(levels):
    tree = {"a": tree}
  return tree


@pytest.mark.parametrize(
  "content, message",
  [
    ({"w": _array(shape=(3,))}, r"float32\[3\] has 8 bytes"),
    ({"w": _array(shape=(-2,))}, r"shape \[-2\]"),
    ({"w": _array(shape=(1 << 62, 1 << 62))}, "has 8 bytes"),
    ({"w": _array(dtype="object")}, "dtype 'object'"),
    ({"w": _array(dtype="S4")}, "dtype 'S4'"),
    ({"w": _array(dtype=">f4")}, "dtype '>f4'"),
    ({"w": _array(dtype="nonsense")}, "dtype 'nonsense'"),
    ({"w": _chunks((5,), 3, 3)}, "chunks of .3, 3. elements"),
    ({"w": _chunks((5,), 2, 3)}, "chunks of .2, 3. elements"),
    ({"w": {"__msgpack_chunked_array__": True}}, "not complete"),
    ({"w": library.ExtType(1, b"\x01")}, "no shape, dtype and bytes"),
    (_deep(101), "nested more than 100 times"),
    ({"text": "only"}, "nothing to average"),
  ],
)
def test_damaged_files(tmp_path, content, message):
  path = tmp_path / "a.msgpack"
  path.write_bytes(library.packb(content, use_bin_type=True))
  with pytest.raises(ValueError, match=f"a.msgpack .*{message}"):
    sj.open_ingredient(path)


def test_every_cut_and_added_byte_is_found(tmp_path):
  path = _write(tmp_path / "a.msgpack", {"a": {"w": np.ones(3, "f")}, "b": 1})
  whole = path.read_bytes()
  for size in range(1, len(whole)):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"a\.msgpack"):
      sj.open_ingredient(path)
  path.write_bytes(whole + b"\x01")
  with pytest.raises(ValueError, match="1 bytes follow"):
    sj.open_ingredient(path)
  path.write_bytes(b"\x82" + 2 * (library.packb("w") + library.packb(_array())))
  with pytest.raises(ValueError, match="'w' twice"):
    sj.open_ingredient(path)


def test_a_claim_of_entries_is_compared_with_the_file(tmp_path):
  path = tmp_path / "a.msgpack"
  path.write_bytes(b"\xdf\xff\xff\xff\xff\xa1w" + bytes(20))
  with pytest.raises(ValueError, match="4294967295 entries"):
    msgpack.open_checkpoint(str(path), "a")
