# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import fractions
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

import soupjax as sj
from soupjax.checkpoints import open as open_lib


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp("one") / "checkpoint"
  sj.save_params(path, {"w": np.ones(2, np.float32)})
  return path


def place(checkpoint, *paths):
  for path in paths:
    shutil.copytree(checkpoint, path)


def names(pattern):
  return [i.name for i in sj.find_ingredients(pattern)]


def test_natural_order(checkpoint, tmp_path):
  place(checkpoint, *(tmp_path / f"run_{k}" for k in (10, 9, 1, 100, 2)))
  ingredients = sj.find_ingredients(tmp_path / "run_*")
  assert [i.name for i in ingredients] == [
    f"run_{k}" for k in (1, 2, 9, 10, 100)
  ]
  assert [i.path for i in ingredients] == [
    str(tmp_path / i.name) for i in ingredients
  ]


def test_names_are_the_unique_parts_of_paths(checkpoint, tmp_path):
  place(checkpoint, *(tmp_path / k / "ckpt" / "params" for k in ("a", "b")))
  assert names(tmp_path / "*" / "ckpt" / "params") == ["a", "b"]
  assert names(tmp_path / "*" / "ckpt") == ["a", "b"]
  assert names(tmp_path / "a" / "ckpt" / "params") == ["ckpt"]


@pytest.mark.parametrize(
  "paths,expected",
  [
    (["/r/a", "/r/b"], ["a", "b"]),
    (["/r/a/x", "/s/b/x"], ["r/a", "s/b"]),
    (["/r/a/ckpt/1", "/r/a/ckpt/2"], ["1", "2"]),
    (["/r/lr/3/ckpt", "/r/wd/3/ckpt"], ["lr", "wd"]),
    (["/r/ckpt", "/r/1/ckpt"], ["ckpt", "1/ckpt"]),
    (["/r/ckpt", "/r/ckpt/ckpt"], ["ckpt", "ckpt/ckpt"]),
    (["/r/solo/params"], ["solo"]),
  ],
)
def test_short_names(paths, expected):
  assert open_lib.short_names(paths) == expected
  assert len(set(expected)) == len(paths)


def test_natural_sorts_numbers_in_other_scripts():
  assert sorted(["1\u00b22", "1", "\u0663"], key=open_lib._natural)


def test_several_patterns_and_no_path_twice(checkpoint, tmp_path, monkeypatch):
  place(checkpoint, tmp_path / "x1", tmp_path / "y1")
  patterns = [tmp_path / "y*", str(tmp_path / "x*"), tmp_path / "?1"]
  assert names(patterns) == ["y1", "x1"]
  monkeypatch.chdir(tmp_path)
  assert names(["x1", str(tmp_path / "x1"), "y1"]) == ["x1", "y1"]
  assert sj.find_ingredients("x1")[0].path == str(tmp_path / "x1")


def test_recursive_and_home_patterns(checkpoint, tmp_path, monkeypatch):
  place(checkpoint, tmp_path / "a" / "b" / "params", tmp_path / "c" / "params")
  assert names(tmp_path / "**" / "params") == ["a/b", "c"]
  monkeypatch.setenv("HOME", str(tmp_path))
  assert names("~/*/params") == ["c"]
  assert np.array_equal(sj.load_params("~/c")["w"], np.ones(2))


def test_temporary_directories_are_not_matched(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "a", tmp_path / ".b.tmp")
  assert names(tmp_path / "*") == ["a"]


def test_sidecars_are_read(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "a" / "params", tmp_path / "b" / "params")
  (tmp_path / "a" / "metrics.json").write_text('{"val": 0.5}')
  (tmp_path / "a" / "hyperparameters.json").write_text('{"lr": 0.1}')
  a, b = sj.find_ingredients(tmp_path / "*")
  assert (a.metrics, a.hyperparameters) == ({"val": 0.5}, {"lr": 0.1})
  assert (b.metrics, b.hyperparameters) == ({}, {})


@pytest.mark.parametrize("text", [b'{"val": ', b"", b"\xff\xfe", b"[1, 2]"])
@pytest.mark.parametrize("name", ["metrics.json", "hyperparameters.json"])
def test_a_damaged_sidecar_is_named(checkpoint, tmp_path, name, text):
  place(checkpoint, tmp_path / "a" / "params")
  (tmp_path / "a" / name).write_bytes(text)
  with pytest.raises(ValueError, match=str(tmp_path / "a" / name)):
    sj.find_ingredients(tmp_path / "*")


def test_nothing_found(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "a")
  pattern = str(tmp_path / "b*")
  for patterns in (pattern, [tmp_path / "a", pattern]):
    with pytest.raises(ValueError, match=r"b\*") as e:
      sj.find_ingredients(patterns)
    assert os.getcwd() in str(e.value)
  with pytest.raises(ValueError, match="No ingredients"):
    sj.find_ingredients([])


def test_files_that_are_not_checkpoints_are_named(tmp_path):
  with pytest.raises(ValueError, match="nowhere"):
    sj.open_ingredient(tmp_path / "nowhere")
  (tmp_path / "file").write_text("x")
  (tmp_path / "directory" / "params").mkdir(parents=True)
  for name in ("file", "directory"):
    with pytest.raises(ValueError, match=f"{name}"):
      sj.find_ingredients(tmp_path / name)


def test_metrics_rank_ingredients(checkpoint, tmp_path):
  for k, score in enumerate([0.2, 0.9, 0.4]):
    place(checkpoint, tmp_path / f"m{k}" / "params")
    text = json.dumps({"minival/prec@1": score})
    (tmp_path / f"m{k}" / "metrics.json").write_text(text)
  ranked = sj.rank_by(sj.find_ingredients(tmp_path / "m*"), "minival/prec@1")
  assert [i.name for i in ranked] == ["m1", "m2", "m0"]


def test_sidecars_are_read_beside_params(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "a" / "params", tmp_path / "b" / "params")
  (tmp_path / "a" / "metrics.json").write_text('{"val": 0.5}')
  (tmp_path / "b" / "metrics.json").write_text('{"val": 0.6}')
  (tmp_path / "b" / "params" / "metrics.json").write_text('{"val": 0.7}')
  a, b = sj.find_ingredients(tmp_path / "*" / "params")
  assert (a.name, b.name) == ("a", "b")
  assert (a.metrics, b.metrics) == ({"val": 0.5}, {"val": 0.7})


def test_params_is_not_used_as_a_name(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "x" / "a" / "params", tmp_path / "x" / "params")
  assert sj.open_ingredient(tmp_path / "x" / "params").name == "x"
  patterns = [tmp_path / "x" / "params", tmp_path / "x" / "a" / "params"]
  assert names(patterns) == ["x", "x/a"]


def test_one_checkpoint_is_opened_once(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "a" / "params", tmp_path / "b" / "params")
  assert names([tmp_path / "*", tmp_path / "*" / "params"]) == ["a", "b"]


def test_two_stars_find_only_checkpoints(checkpoint, tmp_path):
  place(checkpoint, tmp_path / "a" / "b" / "params", tmp_path / "c")
  (tmp_path / "a" / "metrics.json").write_text("{}")
  np.savez(tmp_path / "a" / "d.npz", w=np.ones(2, np.float32))
  assert names(tmp_path / "**") == ["a/b", "a/d.npz", "c"]
  (tmp_path / "a" / "d.npz").write_bytes(b"PK")
  with pytest.raises(ValueError, match="d.npz"):
    sj.find_ingredients(tmp_path / "**")
  (tmp_path / "none" / "deep").mkdir(parents=True)
  with pytest.raises(ValueError, match="No ingredients"):
    sj.find_ingredients(tmp_path / "none" / "**")


def test_two_stars_find_files_of_timm(tmp_path):
  for folder in "ab":
    path = tmp_path / folder / "model_best.pth.tar"
    path.parent.mkdir()
    np.savez(path.with_name("m.npz"), w=np.ones(2, np.float32))
    path.with_name("m.npz").rename(path)
  assert names(tmp_path / "**") == ["a", "b"]


@pytest.mark.parametrize("name", ["x[1]", "x?", "x*", "x#", "x%20"])
def test_an_existing_path_is_not_a_pattern(checkpoint, tmp_path, name):
  place(checkpoint, tmp_path / name, tmp_path / "x1")
  (ingredient,) = sj.find_ingredients(tmp_path / name)
  assert ingredient.name == name
  np.testing.assert_array_equal(ingredient.load()["w"], np.ones(2))


def test_no_patterns_in_an_iterator():
  with pytest.raises(ValueError, match="No ingredients"):
    sj.find_ingredients(iter([]))


def torch_file(path, content):
  """A file as torch.save writes it, without tensors."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


def test_two_stars_pass_over_files_without_a_model(tmp_path, caplog):
  for k in (500, 1000):
    folder = tmp_path / f"checkpoint-{k}"
    folder.mkdir()
    w = {"w": np.full(2, k, np.float32)}
    sj.save_params(folder / "model.safetensors", w)
    torch_file(folder / "scheduler.pt", {"base_lrs": [0.1], "last_epoch": 3})
    torch_file(folder / "training_args.bin", fractions.Fraction(1, 3))
    (folder / "random_states_0.pkl").write_bytes(b"x")
    # Copies of the model by transformers and DeepSpeed.
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / f"global_step{k}").mkdir()
    copy = f"global_step{k}/mp_rank_00_model_states.pt"
    (folder / copy).write_bytes(b"x")
  found = names(tmp_path / "**")
  assert found == ["checkpoint-500", "checkpoint-1000"]
  assert "4 files without a model" in caplog.text
  assert "training_args.bin" in caplog.text
  (tmp_path / "checkpoint-500" / "model.safetensors").unlink()
  (tmp_path / "checkpoint-500" / "pytorch_model.bin").unlink()
  pattern = str(tmp_path / "checkpoint-500" / "*.bin")
  with pytest.raises(ValueError, match="training_args.bin.*Fraction"):
    sj.find_ingredients(pattern)
  with pytest.raises(ValueError, match="1 files without a model.*args.bin"):
    sj.find_ingredients(str(tmp_path / "checkpoint-500" / "**" / "*.bin"))


def test_two_stars_find_directories_of_shards(tmp_path):
  for folder in "ab":
    (tmp_path / folder).mkdir()
    for k, leaf in enumerate("vw", start=1):
      shard = tmp_path / folder / f"model-0000{k}-of-00002.safetensors"
      sj.save_params(shard, {leaf: np.ones(2, np.float32)})
  a, b = sj.find_ingredients(tmp_path / "**")
  assert (a.name, b.name, set(a.specs)) == ("a", "b", {"v", "w"})


@pytest.mark.parametrize(
  "folder", ["lr=0.1,wd=0.01", "a, b", "run[1]", "{x,y}", "two words", "a#b,c"]
)
def test_commas_and_brackets_in_paths(tmp_path, monkeypatch, folder):
  monkeypatch.chdir(tmp_path)
  for place in (folder, "lr=0.1", "other"):
    os.makedirs(place)
    for k in range(2):
      sj.save_params(f"{place}/m{k}.npz", {"w": np.ones(2, np.float32)})
  first, second = f"{folder}/m0.npz", "other/m1.npz"
  assert open_lib.split_patterns(f"{first},{second}") == [first, second]
  assert open_lib.split_patterns(f"{second}, {first}") == [second, first]
  pattern = f"{folder}/*.npz"
  assert open_lib.split_patterns(pattern) == [pattern]
  assert names(open_lib.split_patterns(pattern)) == ["m0.npz", "m1.npz"]
  entry = f"{second}#model"
  assert open_lib.split_patterns(f"{entry},{first}") == [entry, first]
  nowhere = "gone/a.npz, gone/b.npz,"
  assert open_lib.split_patterns(nowhere) == ["gone/a.npz", "gone/b.npz"]
  assert open_lib.split_patterns("gs://a/b,gs://a/c") == [
    "gs://a/b",
    "gs://a/c",
  ]
