# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Graphs that the package onnx writes, named as torch.onnx names them."""

import numpy as np
import pytest

import soupjax as sj

onnx = pytest.importorskip("onnx", reason="pip install soupjax[test]")
from onnx import helper, numpy_helper  # noqa: E402

WIDTH = 4
VALUES = np.arange(12.0, dtype="f").reshape(WIDTH, 3)  # (inputs, outputs)
CLASS = np.full((1, 1, WIDTH), 5, "f")
PATCHES = np.arange(6.0 * WIDTH, dtype="f").reshape(1, 6, WIDTH)
LINEAR = "vit.encoder.layer.0.attention.query"


def _node(kind, name, *inputs):
  return helper.make_node(kind, inputs, [f"{name}_out"], name=name)


def _write(path, arrays, nodes=(), **options):
  graph = helper.make_graph(
    nodes,
    "graph",
    [],
    [],
    [
      a
      if isinstance(a, onnx.TensorProto)
      else numpy_helper.from_array(np.asarray(a), name)
      for name, a in arrays.items()
    ],
  )
  onnx.save(helper.make_model(graph), str(path), **options)
  return path


@pytest.fixture
def graph(tmp_path):
  arrays = {
    "onnx::MatMul_12": VALUES,
    "onnx::Unsqueeze_3": np.array([1]),
    "onnx::Mul_4": np.float32(0.5),
    f"{LINEAR}.bias": np.ones(3, np.float16),
    "onnx::Concat_7": CLASS,
    "onnx::Reshape_8": PATCHES,
    "vit.count": np.int64(3),
  }
  nodes = [
    _node("Unsqueeze", "/vit/U", "x", "onnx::Unsqueeze_3"),
    _node("Mul", "/vit/Mul", "x", "onnx::Mul_4"),
    _node("Reshape", "/vit/embeddings/Reshape_1", "onnx::Reshape_8", "s"),
    _node("Concat", "/vit/embeddings/Concat_6", "onnx::Concat_7", "p"),
    _node(
      "MatMul",
      "/vit/encoder/encoder.layer.0/attention/query/MatMul",
      "x",
      "onnx::MatMul_12",
    ),
  ]
  return _write(tmp_path / "a.onnx", arrays, nodes)


def test_weights_get_their_names_from_the_graph(graph):
  model = sj.open_ingredient(graph)
  assert {*model.specs} == {
    *(f"{LINEAR}.weight", f"{LINEAR}.bias", "vit.count"),
    "vit.embeddings.position_embeddings",
  }
  weight = model.read(f"{LINEAR}.weight")
  np.testing.assert_array_equal(weight, VALUES.T)
  assert model.read(f"{LINEAR}.bias").dtype == np.float16
  assert model.read("vit.count") == 3
  np.testing.assert_array_equal(
    model.read("vit.embeddings.position_embeddings"),
    np.concatenate([CLASS, PATCHES], axis=1),
  )
  assert {*model.ignored} == {"onnx::Unsqueeze_3", "onnx::Mul_4"}


def test_a_mix_of_graphs(graph, tmp_path):
  out = tmp_path / "soup.safetensors"
  sj.mix(sj.rules.linear(), str(graph), out=out)
  weight = sj.load_params(out)[f"{LINEAR}.weight"]
  np.testing.assert_array_equal(weight, VALUES.T)


def test_numbers_in_another_file(tmp_path):
  w = np.arange(600.0, dtype="f")
  path = _write(
    tmp_path / "a.onnx",
    {"w": w, "b": w[:300] + 1},
    save_as_external_data=True,
    location="a.data",
    size_threshold=0,
  )
  model = sj.open_ingredient(path)
  np.testing.assert_array_equal(model.read("w"), w)
  np.testing.assert_array_equal(model.read("b"), w[:300] + 1)
  (tmp_path / "a.data").write_bytes(bytes(100))
  with pytest.raises(ValueError, match="bytes for float32"):
    sj.open_ingredient(path)
  (tmp_path / "a.data").unlink()
  with pytest.raises(ValueError, match=r"a\.data"):
    sj.open_ingredient(path)


@pytest.mark.parametrize(
  "kind, values",
  [("FLOAT", [1.5, 2]), ("DOUBLE", [1.5, 2])],
)
def test_packed_numbers_are_read(tmp_path, kind, values):
  tensor = helper.make_tensor("w", getattr(onnx.TensorProto, kind), [2], values)
  path = _write(tmp_path / "a.onnx", {"w": tensor})
  assert sj.open_ingredient(path).read("w").tolist() == values


def _tensor(kind, values, shape=(2,)):
  kind = getattr(onnx.TensorProto, kind)
  return helper.make_tensor("w", kind, shape, values)


@pytest.mark.parametrize(
  "tensor, message",
  [
    (_tensor("INT64", [1, 2]), "'w' is not stored as raw_data"),
    (_tensor("FLOAT16", [1, 2]), "'w' is not stored as raw_data"),
    (_tensor("STRING", [b"a", b"b"]), "'w' has the data type 8"),
    (_tensor("INT4", [1, 2]), "'w' has the data type 22"),
  ],
)
def test_numbers_that_are_not_read_by_ranges(tmp_path, tensor, message):
  path = _write(tmp_path / "a.onnx", {"w": tensor})
  with pytest.raises(ValueError, match=f"a.onnx: .*{message}"):
    sj.open_ingredient(path)


def test_damaged_graphs(tmp_path):
  path = _write(
    tmp_path / "a.onnx", {"w": np.arange(3.0), "v": np.ones(2, "f")}
  )
  whole = path.read_bytes()
  expected = sj.load_params(path)
  for size in range(2, len(whole) - 1):
    path.write_bytes(whole[:size])
    try:
      found = sj.load_params(path)
    except ValueError as e:
      assert "a.onnx" in str(e)
      continue
    # Only the fields after the graph are missing.
    assert len(whole) - size < 20
    for leaf, array in expected.items():
      np.testing.assert_array_equal(found[leaf], array)
  for at in range(2, len(whole)):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
    try:
      found = sj.load_params(path)
    except ValueError as e:
      assert "a.onnx" in str(e)
      continue
    assert len(found) <= len(expected)


def test_quantised_weights_are_refused(tmp_path):
  arrays = {
    "q.weight_quantized": np.ones((2, 2), np.int8),
    "q.weight_scale": np.float32(0.5),
    "q.weight_zero_point": np.int8(0),
  }
  for name in "ab":
    _write(tmp_path / f"{name}.onnx", arrays)
  with pytest.raises(ValueError, match="weight_quantized' of 'a.onnx' is qu"):
    sj.uniform_soup(sj.find_ingredients(str(tmp_path / "*.onnx")))
