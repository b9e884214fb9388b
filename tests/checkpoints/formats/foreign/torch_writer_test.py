# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.checkpoints.formats import torch as reader

VALUES = np.array([[0, 1, 2], [3, 1, 0]])
DTYPES = (
  *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn"),
  *("float8_e5m2", "complex64", "int64", "int32", "int16", "int8"),
  *("uint64", "uint32", "uint16", "uint8", "bool"),
)
TREE = {
  **{f"x.{name}": VALUES.astype(np.dtype(name)) for name in DTYPES},
  "nested": {"w": np.arange(70_000.0, dtype="f").reshape(7, 10_000)},
  "scalar": np.float32(2.5),
  "empty": np.zeros((0, 3), "f"),
  "näme": np.ones(1, ml_dtypes.bfloat16),
}


def test_a_file_of_every_dtype_comes_back(tmp_path):
  sj.save_params(tmp_path / "a.pt", TREE, metadata={"note": 1})
  model = sj.open_ingredient(tmp_path / "a.pt")
  read = model.load()
  for name in DTYPES:
    assert read[f"x.{name}"].dtype == np.dtype(name)
    np.testing.assert_array_equal(read[f"x.{name}"], TREE[f"x.{name}"])
  np.testing.assert_array_equal(read["nested"]["w"], TREE["nested"]["w"])
  assert sj.provenance(tmp_path / "a.pt")["note"] == 1
  assert model.storage.checksums.keys() == model.specs.keys()


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_the_file(tmp_path, mmap):
  torch = torch_models.torch()
  path = str(tmp_path / "a.pt")
  sj.save_params(path, TREE)
  loaded = torch.load(path, weights_only=True, mmap=mmap)
  assert {*loaded} == {*sj.open_ingredient(path).specs}
  for name in DTYPES:
    tensor = loaded[f"x.{name}"]
    assert str(tensor.dtype) == f"torch.{name}" and tensor.is_contiguous()
    bits = tensor.view(torch.uint8).numpy()
    assert bits.tobytes() == TREE[f"x.{name}"].tobytes()
  assert loaded["scalar"].shape == () and loaded["scalar"].item() == 2.5
  assert loaded["empty"].shape == (0, 3)
  w = loaded["nested/w"]
  np.testing.assert_array_equal(w.numpy(), TREE["nested"]["w"])


def test_a_soup_of_torch_files_loads_into_the_module(tmp_path):
  torch = torch_models.torch()
  layer = torch.nn.Linear(3, 2).to(torch.bfloat16)
  for k in range(2):
    state = {
      n: torch.full_like(t, 1 + 2 * k) for n, t in layer.state_dict().items()
    }
    torch.save(state, tmp_path / f"{k}.pt")
  sj.mix(sj.rules.linear(), str(tmp_path / "?.pt"), out=tmp_path / "soup.pt")
  layer.load_state_dict(torch.load(tmp_path / "soup.pt", weights_only=True))
  assert layer.weight.dtype == torch.bfloat16
  assert (layer.weight == 2).all() and (layer.bias == 2).all()


def test_the_record_is_compared_with_its_digest(tmp_path):
  path = tmp_path / "a.pt"
  sj.save_params(path, {"w": np.ones(3, "f")})
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  name = f"soup/{reader.RECORD}"
  record = json.loads(members[name])
  for damage, message in (
    ({**record, "soupjax": {**record["soupjax"], "rule": "x"}}, "record has"),
    ({"soupjax": record["soupjax"]}, "keys are wrong"),
    ([], "keys are wrong"),
  ):
    with zipfile.ZipFile(path, "w") as archive:
      for member, data in members.items():
        new = json.dumps(damage) if member == name else data
        archive.writestr(member, new)
    with pytest.raises(ValueError, match=f"a.pt .*{message}"):
      sj.open_ingredient(path)


def test_a_dtype_that_torch_lacks(tmp_path):
  tree = {"w": np.ones(3, ml_dtypes.float8_e3m4)}
  with pytest.raises(ValueError, match="'w' has dtype float8_e3m4"):
    sj.save_params(tmp_path / "a.pt", tree)
