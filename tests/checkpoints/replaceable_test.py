# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Paths that a soup may and may not replace."""

import os
import shutil

import helpers
import ml_dtypes
import numpy as np
import pytest

import soupjax as sj
from soupjax.checkpoints import destination
from soupjax.soups.engine import plan as planning
from soupjax.soups.engine import run as engine

RULE = sj.rules.linear()


def tree(seed):
  rng = np.random.default_rng(seed)
  return {"a": rng.normal(size=100).astype("f"), "b": np.ones(100, "f")}


def shards(path, k):
  """A model in two shards with an index."""
  model = [sj.Ingredient.from_params("m", tree(k))]
  sj.mix(RULE, model, out=path, format="safetensors", shard_bytes=400)


def everything(folder):
  return {
    str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")
  }


@pytest.fixture
def folder(tmp_path):
  """Runs with checkpoints of all kinds and unrelated files."""
  for k in range(2):
    sj.save_params(tmp_path / f"m{k}.safetensors", tree(k))
    sj.save_params(tmp_path / f"run{k}" / "params", tree(k))
    shards(tmp_path / f"s{k}", k)
  (tmp_path / "notes.txt").write_text("notes")
  (tmp_path / "link").symlink_to(tmp_path / "s1")
  return tmp_path


@pytest.mark.parametrize("inputs", ["base", "statistics"])
def test_nothing_is_put_in_the_folder_of_a_base_or_of_statistics(
  folder, inputs
):
  model, other = folder / "m1.safetensors", folder / "s0"
  rule, settings = RULE, {"base": other, "select": {"b": "keep"}}
  if inputs == "statistics":
    rule, settings = sj.rules.fisher([other]), {}
  with pytest.raises(ValueError, match="soup.npz is in the folder of .*s"):
    sj.mix(rule, model, out=other / "soup.npz", **settings)
  assert not (other / "soup.npz").exists()


def test_nothing_is_put_beside_a_torch_file_that_a_folder_is_opened_for(
  tmp_path,
):
  path = tmp_path / "a" / "pytorch_model.bin"
  path.parent.mkdir()
  sj.save_params(tmp_path / "m.npz", tree(0))  # Known by its content.
  (tmp_path / "m.npz").rename(path)
  with pytest.raises(ValueError, match="is in the folder of the ingredient"):
    sj.mix(RULE, path.parent, out=path.with_name("model.safetensors"))
  # A single file is not a folder.
  sj.save_params(tmp_path / "m.safetensors", tree(0))
  sj.mix(RULE, tmp_path / "m.safetensors", out=tmp_path / "soup.safetensors")


@pytest.mark.parametrize(
  "inputs,out,settings",
  [
    ("m*.safetensors", ".", {}),
    ("m*.safetensors", ".", {"format": "safetensors", "shard_bytes": 400}),
    ("run*", "run0", {}),
    ("run*", "run0/params", {}),
    ("run*", "run0/params/state", {}),
    ("run*", "run0/params/_CHECKPOINT_METADATA", {"format": "npz"}),
    ("s*", "s0", {"format": "safetensors", "shard_bytes": 400}),
    ("s*", "s0", {}),
    ("link", "s1", {}),
    ("link", "link", {}),
    ("s0/model.safetensors.index.json", "s0", {}),
    ("s*", "s0/model-00001-of-00002.safetensors", {}),
    ("link", "s1/model-00001-of-00002.safetensors", {}),
    ("s0/model*index.json", "s0/model-00002-of-00002.safetensors", {}),
    # New files beside what a folder is opened for.
    ("s*", "s0/soup.npz", {}),
    ("s*", "s0/soup.safetensors", {}),
    ("s*", "s0/soups/uniform", {}),
    ("s*", "link/soup.npz", {}),
    ("link", "s1/soup.safetensors", {}),
    ("run*", "run0/soup.safetensors", {}),
    ("run*", "run0/soup", {}),
  ],
)
def test_inputs_are_never_replaced(folder, inputs, out, settings):
  before = everything(folder)
  ingredients = sj.find_ingredients(folder / inputs)
  for dry_run in (True, False):
    with pytest.raises(ValueError, match="replace"):
      sj.mix(
        RULE,
        ingredients,
        out=folder / out,
        overwrite=True,
        dry_run=dry_run,
        **settings,
      )
  assert everything(folder) == before


def test_a_base_is_not_replaced(folder):
  base = sj.open_ingredient(folder / "s0")
  with pytest.raises(ValueError, match="ingredient 's0'"):
    sj.mix(
      RULE,
      folder / "m1.safetensors",
      base=base,
      select={"a": "keep"},
      out=folder / "s0",
      overwrite=True,
    )


def test_other_directories_are_not_replaced(folder):
  for made in ("home/thesis", "one/thesis", "sharded/thesis"):
    (folder / made).mkdir(parents=True)
  shutil.copy(folder / "m0.safetensors", folder / "one")
  shutil.copytree(folder / "s0", folder / "sharded", dirs_exist_ok=True)
  shutil.rmtree(folder / "run1/params/state")
  before = everything(folder)
  for out in ("home", "one", "sharded", "run0", "run1/params"):
    with pytest.raises(ValueError, match=f"overwrite=True .*{out}"):
      sj.mix(
        RULE,
        sj.find_ingredients(folder / "m*.safetensors"),
        out=folder / out,
        overwrite=True,
      )
  assert everything(folder) == before


def test_checkpoints_and_empty_directories_are_replaced(folder):
  inputs = sj.find_ingredients(folder / "m*.safetensors")
  expected = sj.uniform_soup(inputs)
  (folder / "empty").mkdir()
  shutil.copy(folder / "m0.safetensors", folder / "old.safetensors")
  for out in ("empty", "s0", "run0/params", "empty", "old.safetensors"):
    sj.mix(RULE, inputs, out=folder / out, overwrite=True)
    params = sj.load_params(folder / out)
    np.testing.assert_array_equal(params["a"], expected["a"])


SPECIAL = {
  "pipe": os.mkfifo,
  "link to a checkpoint": lambda path: os.symlink("m1.safetensors", path),
  "link to nothing": lambda path: os.symlink("nowhere", path),
  "link to a pipe": lambda path: os.symlink("/dev/stdout", path),
  "text": lambda path: path.write_text("thesis"),
  "empty file": lambda path: path.write_text(""),
  "directory": lambda path: path.mkdir(),
}


def status(path):
  """What an access leaves as it was."""
  now = os.lstat(path)
  return now.st_mode, now.st_ino, now.st_size, now.st_mtime_ns


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("out", ["o.npz", "o.safetensors", "o"])
def test_nothing_else_is_replaced(tmp_path, kind, out):
  path = tmp_path / out
  sj.save_params(tmp_path / "m1.safetensors", tree(1))
  if (out, kind) == ("o", "directory"):
    path.mkdir()
    path = path / "thesis"
    path.write_text("thesis")
  else:
    SPECIAL[kind](path)
  before, mode = set(os.listdir(tmp_path)), status(path)
  model = [sj.Ingredient.from_params("a", tree(0))]
  for overwrite in (True, False):
    for dry_run in (True, False):
      with pytest.raises(ValueError, match=f"/{out} "):
        sj.mix(
          RULE,
          model,
          out=tmp_path / out,
          overwrite=overwrite,
          dry_run=dry_run,
        )
  with pytest.raises(ValueError, match=f"/{out} "):
    sj.save_params(tmp_path / out, tree(0))
  assert set(os.listdir(tmp_path)) == before and status(path) == mode
  assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("out", ["o.npz", "o"])
@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "text", "thesis"])
def test_a_temporary_name_that_is_taken_is_not_removed(tmp_path, kind, out):
  taken = tmp_path / f".{out}.tmp"
  if kind == "thesis":
    taken.mkdir()
    (taken / "thesis").write_text("thesis")
  else:
    SPECIAL[kind](taken)
  before = status(taken)
  model = [sj.Ingredient.from_params("a", tree(0))]
  with pytest.raises(ValueError, match=f"{out}.tmp is needed"):
    sj.mix(RULE, model, out=tmp_path / out)
  assert status(taken) == before and not (tmp_path / out).exists()


@pytest.mark.parametrize(
  "name",
  [
    *("soup.pt2", "soup.ckpt", "soup.h5"),
    *("soup.msgpack", "soup.onnx", "soup.gguf", "soup.tar.gz", "soup.NPZ"),
    *("soup.safetensor", "soup.safetensors.gz", "soup.Safetensors", "a.npy"),
    "model.safetensors.index.json",
  ],
)
def test_names_of_files_that_are_not_written(tmp_path, name):
  model = [sj.Ingredient.from_params("a", tree(0))]
  for settings in ({}, {"format": "npz"}, {"shard_bytes": 400}):
    with pytest.raises(ValueError, match=rf"{name}: .*\.npz or \.pt"):
      sj.mix(RULE, model, out=tmp_path / name, dry_run=True, **settings)
  with pytest.raises(ValueError, match=rf"{name}: .*\.npz or \.pt"):
    sj.save_params(tmp_path / name, tree(0))
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  "name,format",
  [("a.npz", "orbax"), ("a.npz", "safetensors"), ("a.bin", "npz")],
)
def test_a_suffix_and_a_format_that_disagree(tmp_path, name, format):
  model = [sj.Ingredient.from_params("a", tree(0))]
  with pytest.raises(ValueError, match=f"{name}.*'{format}'"):
    sj.mix(RULE, model, out=tmp_path / name, format=format)


@pytest.mark.parametrize("name", ["soup-v1.5", "vit.b16", "2026.11.28", "a b"])
def test_a_dot_in_a_name_is_no_suffix(tmp_path, name):
  model = [sj.Ingredient.from_params("a", tree(0))]
  sj.mix(RULE, model, out=tmp_path / name)
  sj.save_params(tmp_path / f"{name}.x", tree(0))
  for path in (name, f"{name}.x"):
    assert (tmp_path / path / "state").is_dir()


@pytest.mark.parametrize("out", ["notes.txt", "a.npz"])
def test_files_and_directories_do_not_replace_each_other(folder, out):
  (folder / "a.npz").mkdir()
  for dry_run in (True, False):
    with pytest.raises(ValueError, match=f"{out}"):
      sj.mix(
        RULE,
        folder / "m0.safetensors",
        out=folder / out,
        overwrite=True,
        dry_run=dry_run,
      )


KILL = """
import os, signal, sys
import soupjax as sj
from soupjax.checkpoints import destination
rename, stage = os.rename, sys.argv[3]
def renaming(old, new):
  rename(old, new)
  if new.endswith(".old") == (stage == "between"):
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = renaming
sj.mix(sj.rules.linear(), sys.argv[1], out=sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("stage", ["between", "after"])
def test_a_kill_while_a_directory_is_replaced(folder, stage):
  out, left = folder / "orb", folder / ".orb.tmp.old"
  sj.save_params(out, tree(0))
  done = helpers.soupjax(folder / "m1.safetensors", out, stage, code=KILL)
  assert done.returncode == -9, done.stderr
  assert left.exists() and out.exists() == (stage == "after")
  again = {"out": out, "overwrite": True}
  if stage == "between":
    with pytest.raises(ValueError, match="orb.tmp.old"):
      sj.mix(RULE, folder / "m1.safetensors", out=out)
    # If the next run fails, the old one is back.
    bad = sj.Ingredient.from_params("bad", {"a": np.full(3, np.nan, "f")})
    with pytest.raises(ValueError, match="has nan"):
      sj.mix(RULE, [bad], **again)
    np.testing.assert_array_equal(sj.load_params(out)["a"], tree(0)["a"])
  sj.mix(RULE, folder / "m1.safetensors", **again)
  np.testing.assert_array_equal(sj.load_params(out)["a"], tree(1)["a"])
  assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_file_where_a_directory_must_be(folder):
  for out in ("notes.txt/soup.npz", "notes.txt/a/b"):
    with pytest.raises(ValueError, match="notes.txt"):
      sj.mix(RULE, folder / "m0.safetensors", out=folder / out, dry_run=True)


def test_a_record_that_an_npz_cannot_hold(folder, monkeypatch):
  monkeypatch.setattr(engine, "run", None)  # Nothing is read.
  many = [sj.Ingredient.from_params(f"{k:0500d}", tree(0)) for k in range(150)]
  for dry_run in (True, False):
    with pytest.raises(ValueError, match="bytes"):
      sj.mix(RULE, many, out=folder / "o.npz", dry_run=dry_run)


@pytest.mark.parametrize("out", ["o.npz", "o.safetensors"])
def test_a_dtype_that_the_format_cannot_hold(folder, out):
  dtype = {"o.npz": ml_dtypes.float8_e5m2, "o.safetensors": np.complex128}
  ingredient = sj.Ingredient.from_params("m", {"w": np.ones(3, dtype[out])})
  with pytest.raises(ValueError, match="'w'"):
    sj.mix(
      RULE,
      [ingredient],
      base=ingredient,
      select={"": "keep"},
      out=folder / out,
      dry_run=True,
    )


@pytest.mark.parametrize(
  "shapes",
  [[(4,)] * 10, [(4,)] * 300, [(3000, 3000)], [(70, 100, 150), ()]],
)
def test_room_for_an_orbax_checkpoint(tmp_path, shapes):
  params = {f"leaf{i}": np.ones(s, "f") for i, s in enumerate(shapes)}
  ingredient = [sj.Ingredient.from_params("m", params)]
  plan = planning.make(RULE, ingredient)
  target = destination.Destination(tmp_path / "o", None, None, False, plan)
  sj.mix(RULE, ingredient, out=tmp_path / "o")
  used = sum(
    p.stat().st_size for p in (tmp_path / "o").rglob("*") if p.is_file()
  )
  assert used <= target.num_bytes <= 1.1 * used + 400 * len(shapes) + 16_000
