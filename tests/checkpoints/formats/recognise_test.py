# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of other kinds are called by their names, with a way out."""

import gzip
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

import soupjax as sj


def tar():
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("storages"))
  return stream.getvalue()


def array():
  stream = io.BytesIO()
  np.save(stream, np.ones(3))
  return stream.getvalue()


LEGACY = pickle.dumps(119547037146038801333356, protocol=2)
POINTER = (
  b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
)
FILES = [
  ("model.safetensors", POINTER, "LFS.*git lfs pull"),
  ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.*safetensors"),
  ("m.pt", gzip.compress(b"weights", mtime=0), "gzip.*Unpack"),
  ("m.pth.tar", tar(), "tar archive.*state_dict"),
  ("m.onnx", b"\x08\x07\x12\x07pytorch", "ONNX.*initialisers"),
  ("frozen.pb", b"\x0a\x40\x0a\x05input", "TensorFlow graph.*npz"),
  ("model.ckpt.index", b"\x00\x00\x00", "TensorFlow checkpoint.*npz"),
  ("model.ckpt.data-00000-of-00001", b"\x00", "TensorFlow checkpoint.*npz"),
  ("flax_model.msgpack", b"\xde\x00\x20\xa6params", "Flax.*again"),
  ("weights", b"\x82\xa6params\x81\xa1w\x01", "Flax.*cut short"),
  ("m.pt", LEGACY + b"\x80\x02M\xe9\x03.", "torch before version 1.6.*again"),
  ("clf.pkl", pickle.dumps({"a": 1}, protocol=5), "pickle.*programs.*npz"),
  ("m.gguf", b"GGUF\x03\x00\x00\x00", "GGUF.*made from"),
  ("w.npy", array(), "single NumPy array.*savez"),
  ("m.pth", b"<!DOCTYPE html>\n<html><head>", "web page.*login"),
  ("m.pth", b'<?xml version="1.0"?>\n<html>', "web page.*login"),
  ("m.safetensors", b"", "empty.*again"),
  ("config.json", b'{"model_type": "vit"}', "begins with.*model_type.*weights"),
  ("README.md", "# Modèle\n".encode(), "begins with '# Modèle'.*weights"),
  ("m.pt", bytes(range(128, 256)), "begins with.*cut short"),
]


@pytest.mark.parametrize("name,content,text", FILES, ids=lambda x: str(x)[:20])
def test_a_file_of_another_kind_is_called_by_its_name(
  tmp_path, name, content, text
):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=rf"{name} (?s:.*){text}") as e:
    sj.open_ingredient(tmp_path / name)
  assert ("cut short" in str(e.value)) == ("cut short" in text)


@pytest.mark.parametrize(
  "name,member,text",
  [
    ("m.keras", "config.json", "Keras.*npz"),
    ("all.zip", "run/model.safetensors", "run/model.safetensors.*Unpack"),
  ],
)
def test_archives_of_other_files(tmp_path, name, member, text):
  with zipfile.ZipFile(tmp_path / name, "w") as archive:
    archive.writestr(member, "{}")
  with pytest.raises(ValueError, match=f"{name} (?s:.*){text}"):
    sj.open_ingredient(tmp_path / name)


@pytest.mark.parametrize(
  "names,text",
  [
    (["saved_model.pb", "variables"], "SavedModel.*npz"),
    (["m.index", "m.data-00000-of-00001"], "TensorFlow checkpoint.*npz"),
    (["config.json", "tf_model.h5"], "tf_model.h5.*HDF5.*npz"),
    (["model.onnx"], "model.onnx.*ONNX.*npz"),
    (["notes.txt"], "notes.txt"),
    ([], "empty"),
  ],
)
def test_directories_of_other_files(tmp_path, names, text):
  for name in names:
    (tmp_path / name).write_bytes(b"x")
  with pytest.raises(ValueError, match=text):
    sj.open_ingredient(tmp_path)


def test_the_prefix_of_a_tensorflow_checkpoint(tmp_path):
  (tmp_path / "model.ckpt.index").write_bytes(b"x")
  with pytest.raises(ValueError, match="TensorFlow checkpoint"):
    sj.open_ingredient(tmp_path / "model.ckpt")


def weights(path, **params):
  path.parent.mkdir(exist_ok=True)
  sj.save_params(path, params or {"w": np.ones(2, np.float32)})


@pytest.mark.parametrize(
  "other",
  [
    "open_clip_model.safetensors",
    "adapter_model.safetensors",
    "model.fp16.safetensors",
    "model-00001-of-00002.safetensors",
  ],
)
def test_two_models_in_a_directory_are_named(tmp_path, other):
  weights(tmp_path / "model.safetensors")
  weights(tmp_path / other, v=np.ones(3, np.float32))
  with pytest.raises(ValueError, match=rf"2 models.*{other}.*{tmp_path}/m"):
    sj.open_ingredient(tmp_path)
  # The advice works.
  assert set(sj.load_params(tmp_path / "model.safetensors")) == {"w"}


def test_shards_without_an_index_are_one_model(tmp_path):
  first = tmp_path / "model-00001-of-00002.safetensors"
  weights(first, a=np.ones(2, np.float32))
  with pytest.raises(ValueError, match="1 shards.*00001-of-00002"):
    sj.open_ingredient(tmp_path)
  weights(tmp_path / "model-00002-of-00002.safetensors", b=np.ones(2, "f"))
  assert set(sj.load_params(tmp_path)) == {"a", "b"}


@pytest.mark.parametrize(
  "other",
  ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "optimizer.pt"],
)
def test_copies_of_a_model_in_other_formats_are_not_read(tmp_path, other):
  weights(tmp_path / "model.safetensors")
  (tmp_path / other).write_bytes(b"x")
  assert set(sj.load_params(tmp_path)) == {"w"}


def test_torch_models_in_a_directory(tmp_path):
  training = ("optimizer.bin", "training_args.bin", "rng_state_0.pth")
  for name in (*training, "sampler.bin", "dl_state_dict_1.bin"):
    (tmp_path / name).write_bytes(b"x")
  for name in ("pytorch_model.bin", "adapter_model.bin"):
    (tmp_path / name).write_bytes(b"x")
  with pytest.raises(ValueError, match="adapter_model.bin.*pytorch_model.bin"):
    sj.open_ingredient(tmp_path)
  (tmp_path / "adapter_model.bin").unlink()
  with pytest.raises(ValueError, match="pytorch_model.bin is a text"):
    sj.open_ingredient(tmp_path)
