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
  for out in ("empty", "s0", "link", "run0/params", "empty"):
    sj.mix(RULE, inputs, out=folder / out, overwrite=True)
    params = sj.load_params(folder / out)
    np.testing.assert_array_equal(params["a"], expected["a"])
  # Next to its input in one directory is harmless.
  sj.mix(RULE, folder / "s1", out=folder / "s1" / "soup.npz")
  sj.load_params(folder / "s1")


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
