# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Torch files, made by hand in the format of torch.save; torch is not needed.

With torch installed, files that it writes are read too.
"""

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

import soupjax as sj


class Ref:
  """Pickles as a reference to a storage, or to a name in a module."""

  def __init__(self, key, count, kind="FloatStorage"):
    self.pid = ("storage", Name("torch", kind), key, "cpu", count)


class Name:
  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments


class Pickler(pickle._Pickler):
  """Writes names of modules that are not here."""

  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, Ref) else None

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Name):
      self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
    elif isinstance(obj, Call):
      self.save(obj.function)
      self.save(obj.arguments)
      self.write(pickle.REDUCE)
    else:
      super().save(obj, save_persistent_id)


V2 = Name("torch._utils", "_rebuild_tensor_v2")


def tensor(key, count, offset, shape, strides, kind="FloatStorage"):
  ref = Ref(key, count, kind)
  return Call(V2, ref, offset, shape, strides, False, {})


def save(path, found, storages, compress=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compress) as archive:
    with archive.open("archive/data.pkl", "w") as f:
      Pickler(f, protocol=2).dump(found)
    for key, array in storages.items():
      archive.writestr(f"archive/data/{key}", np.asarray(array).tobytes())
  return path


NUMBERS = np.arange(60, dtype=np.float32)


def test_tensors_and_views(tmp_path):
  bf = NUMBERS.astype(ml_dtypes.bfloat16)
  found = {
    "w": tensor("0", 60, 0, (6, 10), (10, 1)),
    "t": tensor("0", 60, 0, (10, 6), (1, 10)),
    "part": tensor("0", 60, 12, (2, 3), (10, 1)),
    "scalar": tensor("0", 60, 7, (), ()),
    "empty": tensor("0", 60, 0, (0, 3), (3, 1)),
    "bf": tensor("1", 60, 0, (60,), (1,), "BFloat16Storage"),
  }
  path = save(tmp_path / "x.bin", found, {"0": NUMBERS, "1": bf})
  one = sj.open_ingredient(path)
  base = NUMBERS.reshape(6, 10)
  expected = {
    "w": base,
    "t": base.T,
    "part": base[1:3, 2:5],
    "scalar": NUMBERS[7],
    "empty": np.zeros((0, 3), "f"),
    "bf": bf,
  }
  assert set(one.specs) == set(expected)
  for name, value in expected.items():
    assert one.read(name).dtype == value.dtype
    assert np.array_equal(one.read(name), value), name
  part = one.read("t", index=(slice(2, 4), slice(1, 3)))
  assert np.array_equal(part, base.T[2:4, 1:3])
  sj.mix(sj.rules.linear(), one.path, out=tmp_path / "o.npz", block_bytes=99)
  with np.load(tmp_path / "o.npz") as mixed:
    assert np.array_equal(mixed["t"], base.T)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_out_of_a_training_checkpoint(tmp_path, key):
  weights = {"w": tensor("0", 60, 0, (60,), (1,))}
  found = {"epoch": 3, "optimizer": [{"m": weights["w"]}], key: weights}
  path = save(tmp_path / "x", found, {"0": NUMBERS})
  assert list(sj.open_ingredient(path).specs) == ["w"]


def bomb(function, *arguments):
  return Call(Name(function.__module__, function.__name__), *arguments)


@pytest.mark.parametrize("place", ["leaf", "top", "setstate"])
def test_a_pickle_bomb_is_refused_and_nothing_runs(tmp_path, place):
  target = tmp_path / "boom"
  evil = bomb(os.system, f"touch {target}")
  found = {
    "leaf": {"w": tensor("0", 60, 0, (60,), (1,)), "x": evil},
    "top": evil,
    "setstate": {"x": bomb(eval, f"open({str(target)!r}, 'w')")},
  }[place]
  path = save(tmp_path / "x.pt", found, {"0": NUMBERS})
  with pytest.raises(ValueError, match="x.pt is refused.*(system|eval)"):
    sj.open_ingredient(path)
  assert not target.exists()


@pytest.mark.parametrize(
  "arguments,text",
  [
    ((0, (61,), (1,)), "reaches byte 244 of its 240"),
    ((50, (11,), (1,)), "reaches byte 244"),
    ((0, (10**12,), (0,)), "repeats 1 numbers"),
    ((-1, (3,), (1,)), "refused"),
    ((0, (3,), (1, 1)), "refused"),
    ((0, ("3",), (1,)), "refused"),
  ],
)
def test_tensors_outside_their_storage(tmp_path, arguments, text):
  path = save(
    tmp_path / "x", {"w": tensor("0", 60, *arguments)}, {"0": NUMBERS}
  )
  with pytest.raises(ValueError, match=text):
    sj.open_ingredient(path)


def test_damaged_files(tmp_path):
  found = {"w": tensor("0", 60, 0, (60,), (1,))}
  with pytest.raises(ValueError, match="numbers of 'w' are missing"):
    sj.open_ingredient(save(tmp_path / "a", found, {}))
  path = save(tmp_path / "b", found, {"0": NUMBERS}, zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match="compressed"):
    sj.open_ingredient(path)
  path = save(tmp_path / "c", found, {"0": NUMBERS})
  data = path.read_bytes()
  path.write_bytes(data[:-30])
  with pytest.raises(ValueError, match="not a sound archive"):
    sj.open_ingredient(path)
  at = data.index(NUMBERS.tobytes()) + 9
  path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
  with pytest.raises(ValueError, match="'w' of .*damaged"):
    sj.load_params(path)
  with pytest.raises(ValueError, match="no arrays"):
    sj.open_ingredient(save(tmp_path / "d", {"epoch": 3}, {}))


def test_an_old_pickle_is_refused(tmp_path):
  (tmp_path / "x.pt").write_bytes(pickle.dumps({"w": [1.0]}, protocol=2))
  with pytest.raises(ValueError, match="is a pickle.*safetensors"):
    sj.open_ingredient(tmp_path / "x.pt")


def test_a_program_that_never_ends_is_cut(tmp_path):
  nested = [1]
  for _ in range(60):
    nested = [nested, nested]
  with pytest.raises(ValueError, match="more than 10000000 parts"):
    sj.open_ingredient(save(tmp_path / "x", nested, {}))


def test_files_that_torch_writes(tmp_path):
  torch = pytest.importorskip("torch")
  base = torch.arange(60.0).reshape(6, 10)
  state = {
    "w": base,
    "t": base.T,
    "bf": base.bfloat16(),
    "half": base.half(),
    "mask": base > 3,
    "n": torch.tensor(5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(base * 2),
    "f8": base.to(torch.float8_e4m3fn),
  }
  torch.save(state, tmp_path / "x.pt")
  found = sj.open_ingredient(tmp_path / "x.pt")
  assert set(found.specs) == set(state)
  for name, value in state.items():
    expected = value.detach().float().numpy()
    assert np.array_equal(found.read(name).astype("f"), expected), name
  torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
  with pytest.raises(ValueError, match="refused.*Linear"):
    sj.open_ingredient(tmp_path / "module.pt")
