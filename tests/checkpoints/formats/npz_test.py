# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

import soupjax as sj

TREE = {
  "Transformer/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
  "Transformer/fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  "bias": np.arange(3).astype(ml_dtypes.bfloat16),
  "scalar": np.float32(2),
  "empty": np.zeros((0, 3), np.float32),
  "mask": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path, save):
  with open(tmp_path / "x", "wb") as f:
    save(f, **TREE)
  ingredient = sj.open_ingredient(tmp_path / "x")
  for name, value in TREE.items():
    array = ingredient.read(name)
    assert array.dtype == value.dtype and array.shape == value.shape
    assert np.array_equal(array, value)
  part = ingredient.read("Transformer/kernel", index=(slice(1, 3), slice(0, 2)))
  assert part.tolist() == [[4, 5], [8, 9]]
  assert ingredient.load()["Transformer"]["fortran"].tolist() == [
    [0, 1, 2],
    [3, 4, 5],
  ]


def test_stored_members_are_read_by_ranges(tmp_path):
  np.savez(tmp_path / "x.npz", **TREE)
  ingredient = sj.open_ingredient(tmp_path / "x.npz").storage
  assert set(ingredient.chunks) == {"Transformer/fortran"}
  assert set(ingredient.checksums) == set(TREE) - {"Transformer/fortran"}


def test_numpy_and_zip_read_ours(tmp_path):
  path = tmp_path / "x.npz"
  sj.save_params(path, TREE, metadata={"made": "here"})
  with np.load(path) as ingredient:
    assert set(ingredient) == set(TREE)
    for name, value in TREE.items():
      array = ingredient[name]
      if array.dtype.kind == "V":
        array = array.view(ml_dtypes.bfloat16)
      assert np.array_equal(array, value), name
  with zipfile.ZipFile(path) as archive:
    assert archive.testzip() is None
  assert sj.provenance(path) == {"made": "here"}
  assert sj.open_ingredient(path).storage.checksums.keys() == TREE.keys()


def test_a_flipped_bit_is_found(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, w=np.zeros(1000, "f"))
  data = bytearray(path.read_bytes())
  data[2000] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="'w'.*x.npz.*damaged"):
    sj.load_params(path)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_archives(tmp_path, keep, save):
  path = tmp_path / "x.npz"
  save(path, w=np.arange(500, dtype="f"))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=str(path)):
    sj.open_ingredient(path)


def test_a_damaged_compressed_member(tmp_path):
  path = tmp_path / "x.npz"
  np.savez_compressed(path, w=np.random.default_rng(0).normal(size=5000))
  data = bytearray(path.read_bytes())
  data[20000] ^= 255
  path.write_bytes(data)
  with pytest.raises(ValueError, match="x.npz"):
    sj.load_params(path)


@pytest.mark.parametrize(
  "array,text",
  [
    (np.array([{}]), "object"),
    (np.array(["a"]), "no arrays of numbers.*<U1"),
    (np.ones(2, ">f4"), "big-endian"),
  ],
)
def test_arrays_that_are_not_weights_are_refused(tmp_path, array, text):
  np.savez(tmp_path / "x.npz", w=array)
  with pytest.raises(ValueError, match=text):
    sj.open_ingredient(tmp_path / "x.npz")


@pytest.mark.parametrize("select", [None, {"names": "skip"}, {"w": (1, 3)}])
def test_texts_and_objects_beside_weights_are_named(tmp_path, select):
  for k in range(2):
    names, odd = np.array(["cat", "dog"]), np.array([{}])
    w = np.full(3, k, np.float32)
    np.savez(tmp_path / f"m{k}.npz", w=w, names=names, odd=odd)
  with pytest.warns(UserWarning, match="m0.npz and 1 more: .*'names'.*'odd'"):
    mixed = sj.mix(sj.rules.linear(), str(tmp_path / "m?.npz"), select=select)
  assert (
    mixed.params["w"].tolist() == [0.75 if select == {"w": (1, 3)} else 0.5] * 3
  )
  assert "'names' (dtype <U3)" in mixed.table
  with pytest.raises(ValueError, match="'names'.*not read"):
    sj.mix(
      sj.rules.linear(), str(tmp_path / "m?.npz"), select={"names": (1, 0)}
    )


def archive(path, *members):
  with zipfile.ZipFile(path, "w") as f:
    for name, data in members:
      f.writestr(name, data)
  return path


def npy(array):
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


def test_bad_members(tmp_path):
  whole = npy(np.ones(4))
  with pytest.raises(ValueError, match="no arrays"):
    sj.open_ingredient(archive(tmp_path / "a"))
  with pytest.raises(ValueError, match="'w'"):
    sj.open_ingredient(archive(tmp_path / "b", ("w.npy", b"wrong magic")))
  with pytest.raises(ValueError, match=r"'w'.*\d+ bytes.*\(4,\)"):
    sj.open_ingredient(archive(tmp_path / "c", ("w.npy", whole[:-1])))
  with pytest.warns(UserWarning, match="Duplicate"):
    archive(tmp_path / "d", ("w.npy", whole), ("w.npy", whole))
  with pytest.raises(ValueError, match="'w' twice"):
    sj.open_ingredient(tmp_path / "d")


def test_a_record_that_is_too_long(tmp_path):
  with pytest.raises(ValueError, match="65535"):
    sj.save_params(tmp_path / "x.npz", TREE, metadata={"x": "y" * 70000})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", ["(2147483648, 512)", "(9999999999,)"])
def test_sizes_that_a_member_cannot_have(tmp_path, compressed, shape):
  path = tmp_path / "x.npz"
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    stream, {"descr": "<f4", "fortran_order": False, "shape": eval(shape)}
  )
  content = stream.getvalue()
  claimed = len(content) + 4 * int(np.prod(eval(shape), dtype=object))
  kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
  with zipfile.ZipFile(path, "w", kind) as archive:
    archive.writestr("w.npy", content)
    archive.filelist[0].file_size = claimed
  with pytest.raises(ValueError, match=f"{path}.*w"):
    sj.load_params(path)


def test_members_inside_others(tmp_path):
  inner, path = tmp_path / "inner.npz", tmp_path / "x.npz"
  np.savez(inner, w=np.ones(3, np.float32))
  content = io.BytesIO()
  np.save(content, np.frombuffer(inner.read_bytes(), np.uint8))
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("v.npy", content.getvalue())
    with zipfile.ZipFile(inner) as source:
      info = source.infolist()[0]
    at = content.getvalue().index(b"PK\x03\x04")
    info.header_offset = 30 + len("v.npy") + at
    archive.filelist.append(info)
  with pytest.raises(ValueError, match=f"{path}.*inside another"):
    sj.open_ingredient(path)


def test_an_array_of_zeros_compresses_well(tmp_path):
  path = tmp_path / "x.npz"
  np.savez_compressed(path, w=np.zeros(3_000_000, np.float32))
  assert not sj.load_params(path)["w"].any()
