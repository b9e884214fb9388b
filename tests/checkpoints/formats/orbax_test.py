# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import collections
import gc
import json
import logging
import os
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp_v0
from orbax.checkpoint import v1 as ocp
import pytest
import tensorstore as ts

import soupjax as sj
from soupjax.checkpoints.formats import (
  orbax,
  orbax_arrays,
  orbax_writer,
)
from soupjax.soups.core import slices

P = jax.sharding.PartitionSpec


def make(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "encoder": {"kernel": rng.normal(size=(16, 6)).astype(np.float32)},
    "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
    "scalar": np.float32(rng.normal()),
    "layers": [np.zeros(3, np.float32), {"scale": np.ones(2, np.float16)}],
    "count": np.int64(2**40 + 1),
    "mask": np.array([True, False]),
    "blocks.0.norm": {"weight.raw": np.full(4, 1e-42, np.float32)},
  }


def assert_same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp("saved") / "checkpoint"
  sj.save_params(path, make(), metadata={"recipe": "uniform", "names": ["a"]})
  return path


@pytest.fixture
def copied(saved, tmp_path):
  """A copy that a test may damage."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def test_round_trip_bit_for_bit(saved):
  assert_same_bits(sj.load_params(saved), make())
  assert orbax.custom_metadata(str(saved)) == {
    "recipe": "uniform",
    "names": ["a"],
  }


def test_orbax_restores_saved_checkpoints(saved):
  # For those who read our soups without soupjax.
  assert_same_bits(jax.device_get(ocp.load(saved)), make())


def test_saving_twice_is_refused_and_leaves_the_first(copied):
  with pytest.raises(ValueError, match=f"{copied}"):
    sj.save_params(copied, make(1))
  assert_same_bits(sj.load_params(copied), make())


def test_empty_arrays_are_refused_by_name(tmp_path):
  bad = {"a": np.ones(1), "b": [np.ones((0, 3))]}
  with pytest.raises(ValueError, match=r"'b/0'.*\(0, 3\)"):
    sj.save_params(tmp_path / "x", bad)
  assert not list(tmp_path.iterdir())


def test_specs_are_known_before_reading(saved):
  ingredient = sj.open_ingredient(saved)
  assert ingredient.name == "checkpoint" and ingredient.path == str(saved)
  assert {n: (s.shape, s.dtype.name) for n, s in ingredient.specs.items()} == {
    "blocks.0.norm/weight.raw": ((4,), "float32"),
    "count": ((), "int64"),
    "encoder/kernel": ((16, 6), "float32"),
    "half": ((5,), "bfloat16"),
    "layers/0": ((3,), "float32"),
    "layers/1/scale": ((2,), "float16"),
    "mask": ((2,), "bool"),
    "scalar": ((), "float32"),
  }


@pytest.mark.parametrize(
  "index",
  [
    (slice(3, 7), slice(None)),
    (slice(None), slice(0, 1)),
    (slice(0, 16),),
    (slice(-2, None), slice(1, 100)),
    (slice(5, 5), slice(None)),
    (slice(0, 16, 5), slice(None)),
  ],
)
def test_slices_are_those_of_numpy(saved, index):
  got = sj.open_ingredient(saved).read("encoder/kernel", index=index)
  np.testing.assert_array_equal(got, make()["encoder"]["kernel"][index])


@pytest.mark.parametrize("spec", [P("x"), P("x", "y"), P(None, "y"), P()])
def test_reads_into_a_sharding(saved, spec):
  mesh = jax.make_mesh(
    (4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  sharding = jax.sharding.NamedSharding(mesh, spec)
  want = make()["encoder"]["kernel"]
  array = sj.open_ingredient(saved).read("encoder/kernel", sharding=sharding)
  assert array.sharding == sharding
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, want[shard.index])


def test_loads_into_shardings(saved):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def sharding(leaf, spec):
    axes = P("x") if leaf == "encoder/kernel" else P()
    return jax.sharding.NamedSharding(mesh, axes)

  loaded = sj.load_params(saved, sharding=sharding)
  assert loaded["encoder"]["kernel"].sharding.spec == P("x")
  np.testing.assert_array_equal(loaded["half"], make()["half"])


def test_sharded_trees_are_saved(tmp_path):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, P("x"))
  array = np.arange(16, dtype=np.float32)
  sj.save_params(tmp_path / "x", {"w": jax.device_put(array, sharding)})
  assert_same_bits(sj.load_params(tmp_path / "x"), {"w": array})


def test_averages_from_disk_as_from_memory(tmp_path):
  trees = [{**make(k), "count": np.int32(1)} for k in range(3)]
  for k, tree in enumerate(trees):
    sj.save_params(tmp_path / f"m{k}", tree)
  soup = sj.uniform_soup(sj.find_ingredients(tmp_path / "m*"))
  ingredients = [
    sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(trees)
  ]
  assert_same_bits(soup, sj.uniform_soup(ingredients))


# Other layouts.


def test_a_train_state_is_cut_to_its_params(tmp_path):
  params = {"w": np.ones(3, np.float32)}
  state = {"params": params, "opt_state": [np.zeros(3)], "step": jnp.int32(7)}
  ocp.save(tmp_path / "state", state)
  assert_same_bits(sj.load_params(tmp_path / "state"), params)
  # A tree that has nothing else keeps its only key.
  batch_stats = {"mean": np.zeros(3, np.float32)}
  ocp.save(tmp_path / "bn", {**state, "batch_stats": batch_stats})
  assert_same_bits(
    sj.load_params(tmp_path / "bn"),
    {"params": params, "batch_stats": batch_stats},
  )
  ocp.save(tmp_path / "linen", {"params": params})
  assert_same_bits(sj.load_params(tmp_path / "linen"), {"params": params})


def test_v0_standard_checkpointer(tmp_path):
  with ocp_v0.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "v0", make())
  assert_same_bits(sj.load_params(tmp_path / "v0"), make())


@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_v0_with_scalars_and_empty_nodes(tmp_path, use_ocdbt):
  handler = ocp_v0.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
  with ocp_v0.Checkpointer(handler) as checkpointer:
    params = {"w": np.ones((2, 3), np.float32), "nothing": None, "empty": {}}
    state = {"params": {**params, "n": 3, "t": np.float32(2)}, "step": 3}
    checkpointer.save(tmp_path / "v0", state)
  loaded = sj.load_params(tmp_path / "v0")
  assert loaded["n"] == 3 and loaded["t"] == np.float32(2)
  assert loaded["t"].dtype == np.float32
  np.testing.assert_array_equal(loaded["w"], np.ones((2, 3)))


def test_v0_text_is_refused_by_name(tmp_path):
  with ocp_v0.Checkpointer(ocp_v0.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(tmp_path / "v0", {"w": np.ones(3), "s": {"t": "text"}})
  with pytest.raises(ValueError, match="'s/t'.*v0"):
    sj.open_ingredient(tmp_path / "v0")


def test_a_missing_chunk_is_not_zero(tmp_path):
  handler = ocp_v0.PyTreeCheckpointHandler(use_ocdbt=False)
  with ocp_v0.Checkpointer(handler) as checkpointer:
    checkpointer.save(tmp_path / "v0", {"a": np.zeros(2), "b": np.ones(2)})
  np.testing.assert_array_equal(sj.load_params(tmp_path / "v0")["a"], [0, 0])
  (tmp_path / "v0" / "b" / "0").unlink()
  with pytest.raises(ValueError, match="v0 .*Orbax"):
    sj.load_params(tmp_path / "v0")


def test_steps_of_a_checkpoint_manager(tmp_path):
  params = {"w": np.ones(3, np.float32)}
  with ocp_v0.CheckpointManager(tmp_path / "run") as manager:
    manager.save(1, args=ocp_v0.args.StandardSave(params))
  assert_same_bits(sj.load_params(tmp_path / "run" / "1"), params)


def test_a_checkpoint_of_several_items(tmp_path):
  params = {"w": np.ones(3, np.float32)}
  path = tmp_path / "several"
  ocp.save_checkpointables(path, {"student": params, "teacher": params})
  with pytest.raises(ValueError, match="several/NAME"):
    sj.open_ingredient(path)


@pytest.mark.parametrize("kind", ["manager", "v1"])
def test_the_item_called_params_of_several(tmp_path, kind):
  params = jax.tree.map(np.asarray, make())
  opt = {"mu": np.zeros(3, np.float32)}
  if kind == "v1":
    path = tmp_path / "several"
    ocp.save_checkpointables(path, {"params": params, "opt": opt})
  else:
    path = tmp_path / "run" / "7"
    save = ocp_v0.args.StandardSave
    with ocp_v0.CheckpointManager(tmp_path / "run") as manager:
      items = {"params": save(params), "opt": save(opt)}
      manager.save(7, args=ocp_v0.args.Composite(**items))
  for place in (path, path / "params"):
    assert_same_bits(sj.load_params(place), params)
    assert sj.provenance(place) == {}
  (ingredient,) = sj.find_ingredients(path)
  assert ingredient.specs["encoder/kernel"].shape == (16, 6)
  assert_same_bits(sj.load_params(path / "opt"), opt)
  mixed = sj.mix(sj.rules.linear(), path, out=tmp_path / "soup")
  assert_same_bits(sj.load_params(mixed.path), params)


# What the block writer leaves.


def mixed(tmp_path, params, **settings):
  """Writes a soup of one model and returns its path."""
  one = sj.Ingredient.from_params("one", params)
  return sj.mix(sj.rules.linear(), one, out=tmp_path / "soup", **settings).path


@pytest.mark.parametrize("chunk_bytes", [8, 100, 1 << 20])
def test_orbax_restores_soups_of_any_chunks(tmp_path, monkeypatch, chunk_bytes):
  monkeypatch.setattr(orbax_writer, "CHUNK_BYTES", chunk_bytes)
  params = {
    **make(),
    # Chunks that end before or after the last row, or within a row.
    "rows": np.arange(7 * 5, dtype=np.float32).reshape(7, 1, 5),
    "long": np.arange(3 * 31, dtype=np.int16).reshape(3, 31),
    "cube": np.arange(2 * 3 * 4, dtype=np.float64).reshape(2, 3, 4),
    "complex": np.arange(4, dtype=np.complex64),
  }
  path = mixed(tmp_path, params)
  assert_same_bits(jax.device_get(ocp.load(path)), params)
  assert_same_bits(sj.load_params(path), params)
  opened = sj.open_ingredient(path)
  for leaf, spec in opened.specs.items():
    size = np.prod(opened.storage.chunks[leaf]) * spec.dtype.itemsize
    assert size <= max(chunk_bytes, spec.dtype.itemsize)


def test_the_size_is_not_estimated_too_low(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax_writer, "CHUNK_BYTES", 16)
  name = "a_module_with_a_long_name/" * 4 + "w"
  specs = {name: jax.ShapeDtypeStruct((256, 4), np.float32)}
  chunks = {name: orbax_writer.chunk_shape(specs[name])}
  path = mixed(tmp_path, {name: np.ones((256, 4), np.float32)})
  data = (f for f in pathlib.Path(path).rglob("*") if f.is_file())
  written = sum(file.stat().st_size for file in data)
  assert written <= orbax_writer.num_bytes(specs, chunks)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_orbax_finds_a_flipped_bit_of_any_byte(
  tmp_path, monkeypatch, quiet_asyncio
):
  monkeypatch.setattr(orbax_writer, "CHUNK_BYTES", 12)
  path = mixed(tmp_path, {"w": np.arange(7, dtype=np.float32)})
  (file,) = pathlib.Path(path).glob("state/d/*")
  intact = file.read_bytes()
  # Three chunks of 3 elements, the last one padded by 2, with a checksum each.
  for at in range(0, 3 * (12 + 4), 5):
    file.write_bytes(intact[:at] + bytes([intact[at] ^ 16]) + intact[at + 1 :])
    with pytest.raises(ValueError, match="mismatch"):
      ocp.load(path)


def test_an_index_of_several_levels_is_that_of_tensorstore(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(orbax_arrays, "_NODE_BYTES", 200)
  values = {f"k{i * i}".encode(): b"v" * (i % 7) for i in range(60)}
  places = {f"p{i}".encode(): (3 * i, 3) for i in range(30)}
  (tmp_path / "d").mkdir()
  data = bytes(range(90))
  entries = [*values.items(), *places.items()]
  nodes, manifest = orbax_arrays.index(entries, "d/x", len(data))
  (tmp_path / "d/x").write_bytes(data + nodes)
  (tmp_path / "manifest.ocdbt").write_bytes(manifest)
  base = {"driver": "file", "path": f"{tmp_path}/"}
  store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
  assert sorted(store.list().result()) == sorted([*values, *places])
  for key, value in values.items():
    assert store.read(key).result().value == value
  for key, (at, n) in places.items():
    assert store.read(key).result().value == data[at : at + n]
  # Others may go on writing.
  store.write(b"new", b"1").result()
  assert len(store.list().result()) == 91


def test_many_small_leaves_are_written_and_read_back_together(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(orbax_writer, "_BATCH", 20)
  params = {f"w{k:02d}": np.full(3, k, np.float32) for k in range(60)}
  calls = collections.Counter()

  def counting(name, call):
    def counted(fd, data, offset):
      calls[name] += 1
      return call(fd, data, offset)

    monkeypatch.setattr(os, name, counted)

  counting("pwritev", os.pwritev)
  counting("preadv", os.preadv)
  path = mixed(tmp_path, params)
  # The index is written as well.
  assert calls["pwritev"] == 60 / 20 + 1 and calls["preadv"] == 60 / 20
  assert len(list(pathlib.Path(path).glob("state/d/*"))) == 1
  assert_same_bits(sj.load_params(path), params)


@pytest.mark.parametrize("by", ["orbax", "soupjax"])
def test_opening_describes_leaves_as_orbax_does_without_opening_each(
  tmp_path, monkeypatch, by
):
  tree = make()
  if by == "orbax":
    sj.save_params(tmp_path / "soup", tree)
  else:
    mixed(tmp_path, tree)
  theirs = ocp.metadata(tmp_path / "soup").metadata
  read, opened = [], []
  metadata, open_array = orbax_arrays.metadata, ts.open
  monkeypatch.setattr(
    orbax_arrays, "metadata", lambda file: read.append(file) or metadata(file)
  )
  monkeypatch.setattr(
    ts, "open", lambda *a, **kw: opened.append(a) or open_array(*a, **kw)
  )
  ingredient = sj.open_ingredient(tmp_path / "soup")
  assert not opened
  ours = jax.tree.unflatten(ingredient.treedef, ingredient.specs.values())
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
  ingredient.load()
  # The files of metadata are not read again for every leaf.
  assert len(opened) == len(ingredient.specs) > len(read)


# Damage.


def test_data_is_not_touched_before_it_is_asked_for(copied):
  (ingredient,) = sj.find_ingredients(copied)
  for data in copied.glob("state/**/d"):
    shutil.rmtree(data)
  assert ingredient.specs["half"].shape == (5,)
  with pytest.raises(ValueError, match=f"{copied}"):
    ingredient.load()


@pytest.fixture
def quiet_asyncio(monkeypatch):
  # Orbax drops the tasks that fail on a damaged checkpoint; asyncio says so
  # when they are collected.
  monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
  yield
  gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["delete", "empty", "half", "junk"])
def test_damage_is_a_value_error_or_harmless(copied, damage, quiet_asyncio):
  refused = 0
  for file in sorted(p for p in copied.rglob("*") if p.is_file()):
    intact = file.read_bytes()
    if damage == "delete":
      file.unlink()
    else:
      size = len(intact)
      cut = {"empty": b"", "half": intact[: size // 2], "junk": b"\xff\0" * 99}
      file.write_bytes(cut[damage])
    try:
      loaded = sj.load_params(copied)
    except ValueError as e:
      assert str(copied) in str(e)
      refused += 1
    else:
      assert_same_bits(loaded, make())
    file.write_bytes(intact)
  assert refused >= 3
  assert_same_bits(sj.load_params(copied), make())


def test_a_save_that_was_cut_short_is_refused(tmp_path):
  path = tmp_path / "cut"
  path.mkdir()
  (path / "state").mkdir()
  with pytest.raises(ValueError, match="cut "):
    sj.open_ingredient(path)
  (path / "_CHECKPOINT_METADATA").write_text("{}")
  with pytest.raises(ValueError, match="cut .*Orbax"):
    sj.open_ingredient(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d/*"])
def test_a_damaged_index_is_explained_without_noise(
  copied, name, caplog, quiet_asyncio
):
  (file,) = copied.glob(f"state/{name}")
  intact = file.read_bytes()
  flipped = bytearray(intact)
  flipped[len(intact) // 2] ^= 0xFF
  for cut in (None, intact[: len(intact) // 2], bytes(flipped)):
    file.unlink(missing_ok=True)
    if cut is not None:
      file.write_bytes(cut)
    caplog.clear()
    with pytest.raises(ValueError, match="Orbax"):
      sj.open_ingredient(copied)
    if name != "_METADATA":
      assert not caplog.records


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """A checkpoint of one file per chunk, whose metadata is text."""
  path = tmp_path_factory.mktemp("plain") / "checkpoint"
  handler = ocp_v0.PyTreeCheckpointHandler(use_ocdbt=False)
  with ocp_v0.Checkpointer(handler) as checkpointer:
    tree = {k: np.ones(n, np.float32) for k, n in (("a", 5), ("b", 3))}
    checkpointer.save(path, tree)
  return path


def claim(path, **changes):
  """Changes the metadata of leaf "a", in plain text or in a database."""
  file = path / "a" / ".zarray"
  if file.exists():
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return
  base = {"driver": "file", "path": f"{path}/state/"}
  store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
  key = b"half/.zarray" if b"half/.zarray" in store.list().result() else None
  key = key or b"half/zarr.json"
  text = json.loads(store.read(key).result().value)
  if key.endswith(b"json"):
    shape = changes.get("shape", text["shape"])
    grid = text["chunk_grid"]["configuration"]
    grid["chunk_shape"] = changes.get("chunks", grid["chunk_shape"])
    text["shape"] = shape
  else:
    text.update(changes)
  store.write(key, json.dumps(text).encode()).result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["plain", "database"])
@pytest.mark.parametrize(
  "changes",
  [
    {"shape": [3 * 10**11]},
    {"chunks": [3 * 10**11]},
    {"shape": [3 * 10**11], "chunks": [3 * 10**11]},
    {"shape": [2**62], "chunks": [5]},
    {"shape": [2**62, 2**62], "chunks": [5, 5]},
    {"shape": [1] * 65, "chunks": [1] * 65},
    {"shape": "x"},
    {"chunks": []},
    {"shape": [-5]},
    {"dtype": "|O", "shape": None},
  ],
)
def test_claims_that_no_array_can_keep(
  plain, saved, tmp_path, kind, changes, quiet_asyncio
):
  source = plain if kind == "plain" else saved
  path = shutil.copytree(source, tmp_path / "copy")
  claim(path, **changes)
  with pytest.raises(ValueError, match=str(path)):
    sj.load_params(path)
  with pytest.raises(ValueError, match=str(path)):
    sj.mix(sj.rules.linear(), path)


@pytest.mark.parametrize(
  "text",
  [
    "[" * 200_000,
    "[]",
    "{}",
    '{"tree_metadata": []}',
    '{"tree_metadata": {"a": 3}}',
    '{"tree_metadata": {"(\'a\',)": {"key_metadata": 3}}}',
  ],
)
@pytest.mark.parametrize("name", ["_METADATA", "a/.zarray"])
def test_metadata_of_wrong_types(plain, tmp_path, name, text, quiet_asyncio):
  path = shutil.copytree(plain, tmp_path / "copy")
  (path / name).write_text(text)
  with pytest.raises(ValueError, match=str(path)):
    sj.load_params(path)


@pytest.mark.parametrize(
  "record", [["b"], {"b": 5}, {"b": "zz"}, 3, "x", None, {}]
)
def test_records_of_wrong_types(plain, tmp_path, record):
  soup = tmp_path / "soup"
  sj.mix(sj.rules.linear(), plain, out=soup)
  file = soup / "_CHECKPOINT_METADATA"
  text = json.loads(file.read_text())
  for wrong in ({"crc32": record}, record):
    custom = {**text["custom_metadata"], "soupjax": wrong}
    file.write_text(json.dumps({**text, "custom_metadata": custom}))
    for read in (sj.open_ingredient, sj.provenance):
      with pytest.raises(ValueError, match=str(soup)):
        read(soup)


def test_a_leaf_outside_of_the_checkpoint(plain, tmp_path, quiet_asyncio):
  path = shutil.copytree(plain, tmp_path / "copy")
  shutil.copytree(plain / "b", tmp_path / "b")
  text = (path / "_METADATA").read_text()
  (path / "_METADATA").write_text(
    text.replace("'b'", "'../b'").replace('"b"', '"../b"')
  )
  with pytest.raises(ValueError, match=str(path)):
    sj.load_params(path)


# Trees that Orbax would lose.


@pytest.mark.parametrize(
  "tree,message",
  [
    ({"a.b": 1.0, "a": {"b": 2.0}}, "'a/b'.*'a.b'.*'a.b'"),
    ({"a/b": 1.0, "a": {"b": 2.0}}, "'a/b'"),
    ({"a": {"b": "text"}}, "'a/b'"),
    ({"a": np.array(["x"])}, "'a'.*U1"),
    ({}, "leaves"),
  ],
)
def test_trees_that_cannot_be_saved_are_refused(tmp_path, tree, message):
  with pytest.raises(ValueError, match=message):
    sj.save_params(tmp_path / "x", tree)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x[1]", "x?", "x*"])
def test_paths_that_orbax_takes_for_patterns_are_refused(tmp_path, name):
  path = tmp_path / name / "a"
  with pytest.raises(ValueError, match="pattern"):
    sj.save_params(path, make())
  assert not path.parent.exists()
  sj.save_params(tmp_path / f"{name}.npz", {"w": np.ones(2, np.float32)})


@pytest.mark.parametrize("name", ["x#1", "x%20", "x]"])
def test_other_paths_are_no_addresses(tmp_path, name):
  sj.save_params(tmp_path / name, make())
  assert_same_bits(sj.load_params(tmp_path / name), make())


def test_padding_is_compared_but_not_kept(tmp_path):
  # The second chunk of the ingredients has one element.
  spec = jax.ShapeDtypeStruct((300_001,), np.float32)
  chunks = {"w": orbax_writer.chunk_shape(spec, (300_000,))}
  writer = orbax_writer.OrbaxWriter(
    str(tmp_path), {"w": spec}, ["w"], jax.tree.structure({"w": 0}), chunks
  )
  row = np.ones(spec.size, np.float32)
  span = slices.Span("w", slices.whole(spec.shape), 0, row.size, 0)
  tracemalloc.start()
  writer.write([span], row)
  kept, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert kept < 100_000
  (file,) = (tmp_path / "state" / "d").iterdir()
  with open(file, "r+b") as f:
    f.seek(-100, 2)
    f.write(b"x")
  with pytest.raises(ValueError, match="'w' was not written correctly"):
    writer.finish({})
  writer.close()
