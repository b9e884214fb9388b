# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Directories that torch.distributed.checkpoint saves, and damaged ones."""

import os
import warnings

import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.checkpoints.formats.foreign import dcp


def _save(path, state):
  torch_models.torch()
  from torch.distributed import checkpoint

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of a save without processes.
    checkpoint.save(state, checkpoint_id=str(path))
  return path


def _model(torch, seed=0):
  torch.manual_seed(seed)
  return torch.nn.Sequential(
    torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1)
  )


def _equal(ingredient, state):
  assert {*ingredient.specs} == {*state}
  for leaf, tensor in state.items():
    array = ingredient.read(leaf)
    assert f"torch.{array.dtype}" == str(tensor.dtype)
    np.testing.assert_array_equal(array, tensor.float().numpy())


@pytest.fixture
def saved(tmp_path):
  torch = torch_models.torch()
  model = _model(torch)
  optimizer = torch.optim.AdamW(model.parameters())
  model(torch.ones(1, 4)).sum().backward()
  optimizer.step()
  state = {
    "model": model.state_dict(),
    "optim": optimizer.state_dict(),
    "step": 7,
  }
  return _save(tmp_path / "run", state), model.state_dict()


def test_the_weights_of_a_train_state_are_read(saved):
  path, state = saved
  model = sj.open_ingredient(path)
  _equal(model, state)
  assert model.storage.checksums.keys() == model.specs.keys()
  assert [i.name for i in sj.find_ingredients(f"{path.parent}/**")] == ["run"]
  moments = sj.open_ingredient(f"{path}#optim")
  assert "state/0/exp_avg" in moments.specs


def test_a_model_alone_has_the_names_of_its_state(tmp_path):
  torch = torch_models.torch()
  state = _model(torch).to(torch.bfloat16).state_dict()
  for name, saved in (("bare", state), ("wrapped", {"model": state})):
    path = _save(tmp_path / name, saved)
    _equal(sj.open_ingredient(path), state)
  mixed = sj.mix(sj.rules.linear(), str(tmp_path / "*"))
  assert "2 of 2 inputs" in mixed.table


WORKER = """
import os
import sys
import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, place, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group(
  "gloo", init_method="file://" + place, rank=rank, world_size=2
)
mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
def of(shape, placement):
  count = torch.Size(shape).numel()
  whole = torch.arange(float(count)).reshape(shape)
  return distribute_tensor(whole, mesh, [placement])
checkpoint.save({
  "rows": of((5, 4), Shard(0)),
  "columns": of((6, 7, 2), Shard(1)),
  "copies": of((3,), Replicate()),
  "one": of((1, 2), Shard(0)),
}, checkpoint_id=out)
distributed.barrier()
# A thread of gloo that is still running at a normal exit aborts the process.
os._exit(0)
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
  """A checkpoint of two processes, each of which wrote its own file."""
  import subprocess
  import sys

  torch_models.torch()
  place = tmp_path_factory.mktemp("sharded")
  environment = {**os.environ, "OMP_NUM_THREADS": "1"}
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, str(k), f"{place}/store", f"{place}/out"],
      env=environment,
      stderr=subprocess.PIPE,
    )
    for k in range(2)
  ]
  for worker in workers:
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors.decode()[-2000:]
  return place / "out"


SHAPES = {"rows": (5, 4), "columns": (6, 7, 2), "copies": (3,), "one": (1, 2)}


def _expected(leaf):
  shape = SHAPES[leaf]
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_tensors_that_two_processes_cut(sharded):
  assert len(dcp.files_of(str(sharded))) == 2
  model = sj.open_ingredient(sharded)
  assert {k: s.shape for k, s in model.specs.items()} == SHAPES
  for leaf in SHAPES:
    np.testing.assert_array_equal(model.read(leaf), _expected(leaf))
  for index in (np.s_[2:4,], np.s_[:, 3:5], np.s_[1:6, 2:6, 1:]):
    part = model.read("columns", index=index)
    np.testing.assert_array_equal(part, _expected("columns")[index])
  # Cut along the first axis: its chunks follow one another.
  assert {*model.storage.checksums} == {"rows", "copies", "one"}
  mixed = sj.mix(sj.rules.linear(), [model], block_bytes=64)
  for leaf, array in mixed.params.items():
    np.testing.assert_array_equal(array, _expected(leaf))


def _flip(file, value):
  """Flips a bit of the first float32 with a value."""
  data = bytearray(file.read_bytes())
  at = data.find(np.float32(value).tobytes() + np.float32(value + 1).tobytes())
  data[at] ^= 1
  file.write_bytes(data)


def test_a_flipped_bit_is_found(tmp_path):
  torch = torch_models.torch()
  path = _save(tmp_path / "a", {"w": torch.arange(10.0)})
  _flip(path / "__0_0.distcp", 4.0)
  with pytest.raises(ValueError, match="'w'"):
    sj.load_params(path)


def test_missing_and_cut_files(saved):
  path, _ = saved
  with pytest.raises(
    ValueError, match=r"__0_0\.distcp is part of .* directory"
  ):
    sj.open_ingredient(path / "__0_0.distcp")
  (path / "__1_0.distcp").write_bytes(b"")
  data = path / "__0_0.distcp"
  whole = data.read_bytes()
  data.write_bytes(whole[:-9000])
  with pytest.raises(ValueError, match="cut short"):
    sj.open_ingredient(path)
  data.write_bytes(whole)
  (path / ".metadata").rename(path / "metadata")
  with pytest.raises(ValueError, match=r"run has files of .*\.metadata"):
    sj.open_ingredient(path)
  (path / "metadata").rename(path / ".metadata")
  data.unlink()
  with pytest.raises(ValueError, match="__0_0.distcp"):
    sj.open_ingredient(path)


def test_every_damaged_byte_of_the_metadata(tmp_path):
  torch = torch_models.torch()
  path = _save(tmp_path / "a", {"w": torch.arange(6.0), "b": torch.ones(2)})
  whole = (path / ".metadata").read_bytes()
  for at in range(0, len(whole), 3):
    damaged = bytearray(whole)
    damaged[at] ^= 0x41
    (path / ".metadata").write_bytes(damaged)
    try:
      params = sj.load_params(path)
    except ValueError as e:
      assert str(path) in str(e)
      continue
    # Names are not checked by anything.
    arrays = sorted(params.values(), key=len)
    assert [a.tolist() for a in arrays] == [[1, 1], [0, 1, 2, 3, 4, 5]]


def _write_metadata(path, change):
  """Saves one tensor, and changes its metadata by torch's own classes."""
  import pickle

  torch = torch_models.torch()
  _save(path, {"w": torch.arange(6.0)})
  metadata = pickle.loads((path / ".metadata").read_bytes())
  change(metadata)
  (path / ".metadata").write_bytes(pickle.dumps(metadata))
  return path


def _grow(metadata):
  tensor = metadata.state_dict_metadata["w"]
  tensor.size = type(tensor.size)((8,))


def _twice(metadata):
  tensor = metadata.state_dict_metadata["w"]
  tensor.chunks = tensor.chunks * 2


def _elsewhere(metadata):
  for info in metadata.storage_data.values():
    info.relative_path = "../a/__0_0.distcp"


def _transformed(metadata):
  for info in metadata.storage_data.values():
    info.transform_descriptors = ["zstd"]


def _not_stored(metadata):
  metadata.storage_data.clear()


@pytest.mark.parametrize(
  "change, message",
  [
    (_grow, "'w' have 6 elements .*shape .8."),
    (_twice, "'w' have 12 elements"),
    (_elsewhere, r"refers to the file '\.\./a/__0_0"),
    (_transformed, "zstd"),
    (_not_stored, "chunk of 'w' is not stored"),
  ],
)
def test_metadata_that_does_not_fit(tmp_path, change, message):
  path = _write_metadata(tmp_path / "a", change)
  with pytest.raises(ValueError, match=f"{path}.*{message}"):
    sj.open_ingredient(path)


def test_a_tensor_in_another_order_is_refused(tmp_path):
  torch = torch_models.torch()
  path = _save(tmp_path / "a", {"w": torch.ones(3, 2).T})
  with pytest.raises(ValueError, match="'w' .*contiguous"):
    sj.open_ingredient(path)
