# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixes of files into files and onto a mesh."""

import dataclasses
import fcntl
import os
import subprocess
import sys

import helpers
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

import soupjax as sj
from soupjax import buckets, files, sharding
from soupjax.checkpoints import destination, save
from soupjax.checkpoints import provenance as provenance_lib
from soupjax.checkpoints.formats import (
  block_writer,
  orbax_writer,
)
from soupjax.soups.engine import plan as planning
from soupjax.soups.engine import run as engine

OUTPUTS = ["soup.safetensors", "soup.npz", "soup", "soup.pt"]
RULE = sj.rules.linear()
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def tree(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
    "encoder": {
      "kernel": rng.normal(size=(40, 16, 8)).astype(dtype),
      "bias": rng.normal(size=(8,)).astype(dtype),
    },
    "head": rng.normal(size=(8, 5)).astype(dtype),
    "scale": np.asarray(rng.normal(), dtype),
    "counter": np.int32(4),
    "mask": np.array([True, False, True]),
  }


def equal(actual, expected):
  actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three models, each in every format."""
  path = tmp_path_factory.mktemp("in")
  for k in range(3):
    for name in (f"m{k}.safetensors", f"m{k}.npz", f"m{k}"):
      sj.save_params(path / name, tree(k))
  return path


@pytest.fixture(scope="module")
def soup(folder):
  return sj.uniform_soup(sj.find_ingredients(folder / "m?"))


def paths(folder, *names):
  return [str(folder / name) for name in names]


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize(
  "names",
  [
    ("m0.safetensors", "m1.safetensors", "m2.safetensors"),
    ("m0.npz", "m1.npz", "m2.npz"),
    ("m0", "m1", "m2"),
    ("m0", "m1.npz", "m2.safetensors"),
  ],
)
def test_every_format_in_and_out(folder, tmp_path, soup, names, out):
  mixed = sj.mix(RULE, paths(folder, *names), out=tmp_path / out)
  assert mixed.path == str(tmp_path / out) and mixed.params is None
  equal(sj.load_params(tmp_path / out), soup)
  assert os.listdir(tmp_path) == [out]
  assert mixed.report.bytes_read == 3 * mixed.report.bytes_written


@settings(deadline=None, max_examples=25)
@given(
  st.integers(1, 100_000),
  st.integers(1, 5),
  st.sampled_from(["m?.safetensors", "m?.npz", "m?"]),
  st.sampled_from([None, 1, 300, 20_000]),
)
def test_the_file_does_not_depend_on_blocks_and_threads(
  folder, block_bytes, threads, pattern, shard_bytes
):
  out = folder / "cut"
  mixed = sj.mix(
    RULE,
    sj.find_ingredients(folder / pattern),
    out=out,
    block_bytes=block_bytes,
    threads=threads,
    format="safetensors",
    shard_bytes=shard_bytes,
    overwrite=True,
  )
  assert mixed.report.bytes_read == 3 * mixed.report.bytes_written
  sums = sj.provenance(out)["crc32"]
  expected = sj.uniform_soup(sj.find_ingredients(folder / pattern))
  equal(sj.load_params(out), expected)
  assert len(sums) == 6
  destination.remove(str(out))


def test_two_runs_give_one_file(folder, tmp_path):
  for out in ("a.safetensors", "b.safetensors"):
    sj.mix(RULE, paths(folder, "m0", "m1"), out=tmp_path / out)
  a, b = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "ab")
  assert a == b


@pytest.mark.parametrize(
  "axes,spec",
  [
    ({"x": 8}, jax.P("x")),
    ({"x": 8}, jax.P(None, "x")),
    ({"x": 8}, jax.P(None, None, "x")),
    ({"x": 4, "y": 2}, jax.P("y", "x")),
    ({"x": 4, "y": 2}, jax.P(("x", "y"))),
    ({"x": 4, "y": 2}, jax.P()),
  ],
)
@pytest.mark.parametrize("pattern", ["m?.safetensors", "m?"])
def test_onto_a_mesh(folder, soup, axes, spec, pattern):
  mesh = sharding.make_mesh(axes)
  place = sharding.by_rules(mesh, [("kernel", spec), ("", jax.P())])
  mixed = sj.mix(
    RULE, sj.find_ingredients(folder / pattern), sharding=place, block_bytes=999
  )
  equal(mixed.params, soup)
  kernel = mixed.params["encoder"]["kernel"]
  assert kernel.sharding == jax.sharding.NamedSharding(mesh, spec)
  total = sj.open_ingredient(folder / "m0.npz").num_bytes
  assert mixed.report.bytes_read == 3 * total


def test_result_on_the_mesh_is_its_own_memory(folder):
  # Arrays that alias a staging buffer would change with the next block.
  mixed = sj.mix(RULE, paths(folder, "m0", "m1"), block_bytes=64)
  before = jax.tree.map(lambda x: np.array(x), mixed.params)
  sj.mix(RULE, paths(folder, "m1", "m2"), block_bytes=64)
  equal(mixed.params, before)


@pytest.mark.parametrize("out", OUTPUTS)
def test_writing_from_a_mesh(tmp_path, out):
  mesh = sharding.make_mesh({"x": 8})
  place = sharding.by_rules(mesh, [("kernel", jax.P(None, "x")), ("", jax.P())])
  spread = sj.Ingredient.from_params("m", tree(0)).load(sharding=place)
  sj.save_params(tmp_path / out, spread, metadata={"a": 1})
  equal(sj.load_params(tmp_path / out), tree(0))


def test_orbax_restores_what_is_written(folder, tmp_path, soup, monkeypatch):
  monkeypatch.setattr(orbax_writer, "CHUNK_BYTES", 2000)
  inputs = paths(folder, "m0.npz", "m1.npz", "m2.npz")
  sj.mix(RULE, inputs, out=tmp_path / "o")
  equal(ocp.load(tmp_path / "o"), soup)
  mesh = sharding.make_mesh({"x": 8})

  def target(leaf):
    spec = jax.P(None, "x") if len(leaf.shape) == 3 else jax.P()
    where = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  targets = jax.tree.map(target, ocp.metadata(tmp_path / "o").metadata)
  equal(ocp.load(tmp_path / "o", targets), soup)
  chunks = sj.open_ingredient(tmp_path / "o").storage.chunks
  assert chunks["encoder/kernel"] == (3, 16, 8)


def test_a_flipped_bit_in_an_orbax_soup_is_found(folder, tmp_path):
  sj.mix(RULE, paths(folder, "m0", "m1"), out=tmp_path / "o")
  kernel = sj.load_params(tmp_path / "o")["encoder"]["kernel"].tobytes()
  for file in (tmp_path / "o").rglob("d/*"):
    data = file.read_bytes()
    if kernel in data:
      at = data.index(kernel) + 1000
      file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
  with pytest.raises(ValueError, match="mismatch"):
    sj.load_params(tmp_path / "o")


@pytest.mark.parametrize("out", OUTPUTS)
def test_provenance(folder, tmp_path, out):
  rule = sj.rules.linear([1.0, 3.0])
  inputs = paths(folder, "m0.safetensors", "m1")
  mixed = sj.mix(
    rule,
    inputs,
    base=folder / "m2",
    out=tmp_path / out,
    dtype="bfloat16",
    select={"head": "keep"},
    hash_inputs=True,
  )
  record = sj.provenance(tmp_path / out)
  sums = record.pop("crc32", None)
  assert out.endswith("npz") or len(sums) == 6
  assert record == mixed.provenance
  assert record["rule"] == "weighted" and record["settings"]["weights"] == [
    1,
    3,
  ]
  assert [i["path"] for i in record["ingredients"]] == inputs
  assert [i["bytes"] for i in record["ingredients"]][0] == os.path.getsize(
    inputs[0]
  )
  assert record["base"]["name"] == "m2"
  assert record["select"] == {"head": "keep"}
  assert "bfloat16" in record["dtype_policy"]["output"]
  assert record["soupjax"] == sj.__version__
  # The head of the ingredients was not read, so it may be damaged.
  assert [i["content_hash"] for i in record["ingredients"]] == [None, None]
  mixed = sj.mix(rule, inputs, out=tmp_path / f"all_{out}", hash_inputs=True)
  record = sj.provenance(tmp_path / f"all_{out}")
  # The hash of the same content is the same in every format.
  ingredient = sj.open_ingredient(folder / "m0.npz")
  expected = provenance_lib.content_hash(
    ingredient.specs, ingredient.storage.checksums
  )
  assert record["ingredients"][0]["content_hash"] == expected


def test_plan_and_record_tell_what_is_verified(folder, tmp_path):
  inputs = paths(folder, "m0.npz", "m1.safetensors", "m2")
  models = [*map(sj.open_ingredient, inputs), tree(3)]
  mixed = sj.mix(RULE, models, out=tmp_path / "o.safetensors")
  files = [sj.open_ingredient(i).storage.checksums for i in inputs]
  verified = ["verified" if file else "not verified" for file in files]
  assert "verified" in verified
  count = verified.count("verified")
  assert f"checks  checksums of {count} of 3 inputs" in mixed.table
  entries = sj.provenance(mixed.path)["ingredients"]
  assert [entry["checksums"] for entry in entries] == [*verified, None]


def test_twins_are_found_by_content(folder, tmp_path):
  inputs = paths(folder, "m0", "m0.safetensors", "m1")
  with pytest.warns(UserWarning, match="m0.safetensors.*'m0'"):
    sj.mix(RULE, inputs, out=tmp_path / "o.npz", hash_inputs=True)
  # Formats that carry checksums need no reading.
  inputs = paths(folder, "m0.npz", "m0.safetensors")
  with pytest.warns(UserWarning, match="same content"):
    mixed = sj.mix(RULE, inputs, dry_run=True)
  assert "same content" in mixed.table


def test_an_output_is_not_overwritten(folder, tmp_path):
  for out in OUTPUTS:
    path = tmp_path / out
    sj.mix(RULE, paths(folder, "m0"), out=path)
    with pytest.raises(ValueError, match=f"{out} exists.*overwrite=True"):
      sj.mix(RULE, paths(folder, "m1"), out=path)
    equal(sj.load_params(path), tree(0))
    sj.mix(RULE, paths(folder, "m1"), out=path, overwrite=True)
    equal(sj.load_params(path), tree(1))
  assert sorted(os.listdir(tmp_path)) == sorted(OUTPUTS)


def test_a_soup_cannot_replace_its_ingredient(tmp_path):
  path = tmp_path / "m.npz"
  sj.save_params(path, tree(0))
  with pytest.raises(ValueError, match="'m.npz'"):
    sj.mix(RULE, path, out=path, overwrite=True)


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_failed_mix_leaves_nothing(folder, tmp_path, out):
  bad = tree(1)
  bad["encoder"]["kernel"][39, 15, 7] = np.nan
  sj.save_params(tmp_path / "bad.npz", bad)
  inputs = [*paths(folder, "m0"), tmp_path / "bad.npz"]
  with pytest.raises(ValueError, match="bad.npz.*nan.*kernel"):
    sj.mix(RULE, inputs, out=tmp_path / out, block_bytes=4000)
  assert os.listdir(tmp_path) == ["bad.npz"]


def calls_of_system(path, monkeypatch, count):
  """Returns the reads and writes for a soup of models of `count` leaves."""
  for seed, name in enumerate("ab"):
    leaves = {f"{k:03}": W + seed for k in range(count)}
    save.write(path / f"{name}.safetensors", leaves)
  models = sj.find_ingredients(path / "?.safetensors")
  calls = []
  with monkeypatch.context() as patch:
    for name in ("preadv", "pwrite"):
      call = getattr(os, name)
      patch.setattr(os, name, lambda *a, f=call: calls.append(f) or f(*a))
    sj.mix(RULE, models, out=path / "soup.safetensors")
  return len(calls)


def test_leaves_that_follow_one_another_are_read_and_written_at_once(
  tmp_path, monkeypatch
):
  counts = []
  for count in (5, 500):
    path = tmp_path / str(count)
    path.mkdir()
    counts.append(calls_of_system(path, monkeypatch, count))
  assert counts[0] == counts[1]


@pytest.mark.parametrize("out", OUTPUTS)
def test_an_output_that_differs_on_disk_is_not_published(
  folder, tmp_path, out, monkeypatch
):
  finish = block_writer.BlockWriter.finish

  def flip(self, provenance):
    if isinstance(self, block_writer.RangeWriter):
      fd, offset = self.places["encoder/kernel"]
      os.pwrite(fd, b"\xff\xfe\xfd", offset + 7)
    else:
      for spans, checksums in self._written:
        for k, span in enumerate(spans):
          checksums[k] ^= span.leaf == "encoder/kernel"
    finish(self, provenance)

  monkeypatch.setattr(block_writer.BlockWriter, "finish", flip)
  with pytest.raises(ValueError, match="encoder/kernel"):
    sj.mix(RULE, paths(folder, "m0"), out=tmp_path / out)
  assert not os.listdir(tmp_path)


KILL = """
import os, signal, sys
import soupjax as sj
from soupjax.checkpoints import destination
from soupjax.checkpoints.formats.block_writer import BlockWriter
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
stage, folder, out = sys.argv[1:]
if stage == "written": BlockWriter.finish = die
if stage == "finished": destination.Destination._publish = die
if stage == "half":
  write, blocks = BlockWriter.write, []
  def counting(self, *args):
    write(self, *args)
    blocks.append(args)
    if len(blocks) >= 5: die()
  BlockWriter.write = counting
sj.mix(sj.rules.linear(), folder + "/m?.npz", out=out, block_bytes=4000)
"""


@pytest.mark.parametrize("out", ["soup.safetensors", "soup"])
@pytest.mark.parametrize("stage", ["half", "written", "finished"])
def test_a_kill_leaves_nothing_and_a_rerun_cleans_up(
  folder, tmp_path, soup, stage, out
):
  path = tmp_path / out
  done = helpers.soupjax(stage, folder, path, code=KILL)
  assert done.returncode == -9, done.stderr
  assert os.listdir(tmp_path) == [f".{out}.tmp"]
  sj.mix(RULE, str(folder / "m?.npz"), out=path)
  equal(sj.load_params(path), soup)
  assert os.listdir(tmp_path) == [out]


def test_two_runs_at_once_do_not_mix(folder, tmp_path):
  busy = tmp_path / ".soup.npz.tmp"
  with open(busy, "w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="soup.npz"):
      sj.mix(RULE, paths(folder, "m0"), out=tmp_path / "soup.npz")
    assert busy.exists()


@pytest.fixture
def small_disk(tmp_path):
  path = tmp_path / "disk"
  path.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(path)]
  if subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip("mounting a small disk needs privileges")
  yield path
  # Lazily: after an error, tensorstore closes its files in threads of its own.
  subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_full_disk(folder, small_disk, out, monkeypatch):
  with pytest.raises(ValueError, match="0.000 GB"):
    sj.mix(RULE, paths(folder, "m0"), out=small_disk / out)
  # Others may fill it in the meantime.
  monkeypatch.setattr(files, "free_bytes", lambda path: 1 << 40)
  with pytest.raises(ValueError, match="No space left"):
    sj.mix(RULE, paths(folder, "m0"), out=small_disk / out)
  assert not os.listdir(small_disk)


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_read_only_directory(folder, small_disk, out, monkeypatch):
  monkeypatch.setattr(files, "free_bytes", lambda path: 1 << 40)
  command = ["mount", "-o", "remount,ro", str(small_disk)]
  subprocess.run(command, check=True)
  for dry_run in (True, False):
    with pytest.raises(ValueError, match=f"{out}"):
      sj.mix(
        RULE,
        paths(folder, "m0"),
        out=small_disk / out,
        overwrite=True,
        dry_run=dry_run,
      )


def test_saving_from_memory_to_a_bad_disk(small_disk, monkeypatch, caplog):
  params = {"w": np.random.default_rng(0).normal(size=10_000).astype("f")}
  with pytest.raises(ValueError, match="s .*0.000 GB"):
    sj.save_params(small_disk / "s", params)
  monkeypatch.setattr(files, "free_bytes", lambda path: 1 << 40)
  with pytest.raises(ValueError, match="No space left for .*s,"):
    sj.save_params(small_disk / "s", params)
  assert not caplog.records  # Orbax would log pages.
  assert not os.listdir(small_disk)
  command = ["mount", "-o", "remount,ro", str(small_disk)]
  subprocess.run(command, check=True)
  with pytest.raises(ValueError, match="s cannot be written"):
    sj.save_params(small_disk / "s", params)


def test_dry_run_and_limits(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(engine, "run", None)  # Nothing is read.
  out = tmp_path / "o.npz"
  mixed = sj.mix(RULE, str(folder / "m?"), out=out, dry_run=True)
  for text in ("m0", "m2", "soup", "float32", "memory", "free", str(out)):
    assert text in mixed.table
  assert mixed.report is None and not os.listdir(tmp_path)
  with pytest.raises(ValueError, match="max_host_bytes=1000.*block_bytes"):
    sj.mix(RULE, str(folder / "m?"), out=out, max_host_bytes=1000)
  assert not os.listdir(tmp_path)


def test_projected_memory_does_not_grow_with_ingredients(folder):
  lines = []
  for count in (2, 30):
    ingredients = [
      sj.Ingredient.from_params(str(k), {"w": np.zeros(1_000_000, "f")})
      for k in range(count)
    ]
    table = sj.mix(RULE, ingredients, dry_run=True, block_bytes=100_000).table
    line = next(x for x in table.splitlines() if x.startswith("memory"))
    lines.append(float(line.split()[1]))
  assert lines[1] <= 1.1 * lines[0]


@pytest.mark.parametrize(
  "settings,text",
  [
    ({"out": "x", "format": "zip"}, "format='zip'"),
    ({"out": "x.npz", "shard_bytes": 10}, "shard_bytes=10"),
    ({"out": "x.safetensors", "shard_bytes": 10}, "shard_bytes=10"),
    ({"out": "ftp://b/x.npz"}, "ftp://"),
    ({"out": "x", "sharding": lambda leaf, spec: None}, "not both"),
    ({"base": "nowhere"}, "'nowhere'"),
  ],
)
def test_bad_settings(folder, tmp_path, monkeypatch, settings, text):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=text):
    sj.mix(RULE, str(folder / "m?"), **settings)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  "source",
  ["m.safetensors", "one", "many", "many/model.safetensors.index.json"],
)
def test_the_format_of_the_source_is_kept_in_the_metadata(tmp_path, source):
  text = {"format": "pt"}
  (tmp_path / "one").mkdir()
  for name in ("m.safetensors", "one/model.safetensors"):
    save.write(tmp_path / name, tree(0), text=text)
  mixed = [sj.open_ingredient(tmp_path / "m.safetensors")]
  many = {"format": "safetensors", "shard_bytes": 10_000}
  sj.mix(RULE, mixed, out=tmp_path / "many", **many)
  sj.mix(RULE, tmp_path / source, out=tmp_path / "o.safetensors")
  soup = sj.open_ingredient(tmp_path / "o.safetensors")
  assert soup.text == {"format": "pt"}


def test_texts_that_are_equal_in_all_ingredients_go_into_the_soup(tmp_path):
  for k in range(3):
    text = {"format": "pt", "ss_network_dim": "8", "ss_seed": str(k)}
    save.write(tmp_path / f"m{k}.safetensors", tree(k), text=text)
  pattern = str(tmp_path / "m?.safetensors")
  for shard_bytes in (None, 10_000):
    out = tmp_path / ("o" if shard_bytes else "o.safetensors")
    mixed = sj.mix(RULE, pattern, out=out, shard_bytes=shard_bytes)
    soup = sj.open_ingredient(out)
    assert soup.text == {"format": "pt", "ss_network_dim": "8"}
    assert "'ss_seed'" in mixed.table


def test_an_empty_leaf_in_a_file_without_its_checksum(tmp_path):
  ingredients = []
  for k in range(2):
    params = {"w": np.full(1000, k, "f"), "e": np.ones((0, 3), "f")}
    sj.save_params(tmp_path / f"m{k}.npz", params)
    ingredient = sj.open_ingredient(tmp_path / f"m{k}.npz")
    # As in torch files: a view of a larger tensor has no checksum.
    sums = {"w": ingredient.storage.checksums["w"]}
    storage = dataclasses.replace(ingredient.storage, checksums=sums)
    ingredients.append(dataclasses.replace(ingredient, storage=storage))
  out = tmp_path / "o.safetensors"
  mixed = sj.mix(RULE, ingredients, out=out)
  entries = sj.provenance(out)["ingredients"]
  assert [len(entry["content_hash"]) for entry in entries] == [64, 64]
  assert mixed.provenance["ingredients"] == entries


@pytest.mark.parametrize(
  "settings,text",
  [
    ({"max_host_bytes": "4GB"}, "max_host_bytes.*'4GB'"),
    ({"threads": 2.5}, "threads.*2.5"),
    ({"block_bytes": 1e6}, "block_bytes"),
    ({"shard_bytes": "1GB"}, "shard_bytes"),
    ({"rule": "uniform"}, "rules.linear.*got 'uniform'"),
    ({"sharding": 1}, "sharding"),
  ],
)
def test_arguments_of_the_wrong_type(folder, settings, text):
  arguments = {"rule": RULE, "ingredients": str(folder / "m?"), **settings}
  with pytest.raises(TypeError, match=text):
    sj.mix(**arguments)


def test_a_sharding_that_does_not_fit(folder):
  mesh = sharding.make_mesh({"x": 8})
  rows = jax.sharding.NamedSharding(mesh, jax.P("x"))
  with pytest.raises(ValueError, match="cannot be sharded"):
    sj.mix(RULE, str(folder / "m?"), sharding=rows, dry_run=True)


def test_empty_leaves(tmp_path):
  sj.save_params(
    tmp_path / "m.npz", {"w": np.ones(2, "f"), "e": np.ones((0, 2), "f")}
  )
  for out in ("o.safetensors", "o.npz"):
    sj.mix(
      RULE,
      tmp_path / "m.npz",
      out=tmp_path / out,
      select={"w": "skip"},
      dtype="bfloat16",
    )
    leaf = sj.load_params(tmp_path / out)["e"]
    assert leaf.shape == (0, 2) and leaf.dtype == ml_dtypes.bfloat16
  mixed = sj.mix(RULE, tmp_path / "o.npz")
  assert mixed.params["e"].shape == (0, 2)
  with pytest.raises(ValueError, match="'e'"):
    sj.mix(RULE, tmp_path / "o.npz", out=tmp_path / "o")


def test_a_scheme_without_its_package_is_explained(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  monkeypatch.setattr(buckets, "_CHECKED", set())
  with pytest.raises(ValueError, match=r"gs://b/x.*soupjax\[gs\]"):
    sj.open_ingredient("gs://b/x")
  with pytest.raises(ValueError, match="ftp"):
    sj.open_ingredient("ftp://b/x")
  with pytest.raises(ValueError, match=r"soupjax\[gs\]"):
    sj.find_ingredients("gs://b/*/ckpt")


def test_the_public_names():
  assert sj.mix is not engine and callable(sj.mix)
  assert jax.tree.leaves(sj.rules.linear().values(2))


def test_odd_paths(folder, tmp_path, soup):
  odd = tmp_path / "a b:c%20#d?é"
  odd.mkdir()
  for out in OUTPUTS:
    sj.mix(RULE, str(folder / "m?"), out=odd / out)
    again = odd / f"again {out}"
    sj.mix(RULE, [sj.open_ingredient(odd / out)], out=again)
    equal(sj.load_params(again), soup)


def _median(stack, base, values):
  del base, values
  stack = [stack[k].astype(np.float32) for k in range(len(stack))]
  return jnp.median(jnp.stack(stack), axis=0)


def test_one_rule_serves_files_and_meshes(folder, tmp_path):
  rule = sj.rules.Rule(name="median", combine=_median, values=lambda count: {})
  inputs = paths(folder, "m0.npz", "m1", "m2.safetensors")
  sj.mix(rule, inputs, out=tmp_path / "o.npz", block_bytes=3000)
  mesh = sharding.make_mesh({"x": 8})
  place = sharding.by_rules(mesh, [("kernel", jax.P("x")), ("", jax.P())])
  mixed = sj.mix(rule, inputs, sharding=place)
  equal(mixed.params, sj.load_params(tmp_path / "o.npz"))
  expected = np.median([tree(k)["head"] for k in range(3)], axis=0)
  assert np.array_equal(mixed.params["head"], expected)


def test_progress_goes_to_stderr_in_bytes(tmp_path, capsys):
  inputs = [sj.Ingredient.from_params(f"m{k}", tree(k)) for k in range(2)]
  sj.mix(RULE, inputs, out=tmp_path / "o.npz", block_bytes=999, progress=True)
  out, err = capsys.readouterr()
  assert not out and "GB/s" in err.splitlines()[-1]
  calls = []
  sj.mix(RULE, inputs, progress=lambda *numbers: calls.append(numbers))
  assert calls[-1][0] == calls[-1][1] > 0


def test_one_hot_weights_give_that_model():
  big = sj.Ingredient.from_params("big", {"w": np.float32([1e8, np.nan])})
  ingredient = sj.Ingredient.from_params(
    "one", {"w": np.float32([1.2345e-3, 1e-5])}
  )
  for mixed in (
    sj.mix(sj.rules.linear([0, 2]), [big, ingredient]),
    sj.mix(sj.rules.linear(), [big, ingredient], select={"w": (0, 1)}),
  ):
    assert mixed.params["w"].tolist() == ingredient.load()["w"].tolist()
  soup = sj.uniform_soup([big, ingredient], [0, 1])
  assert soup["w"].tolist() == ingredient.load()["w"].tolist()


def test_integers_from_one_ingredient():
  trees = [{"n": np.arange(3) + k, "w": np.ones(2, "f")} for k in range(2)]
  ingredients = [
    sj.Ingredient.from_params(str(k), t) for k, t in enumerate(trees)
  ]
  with pytest.raises(ValueError, match="disagree"):
    sj.mix(sj.rules.linear(), ingredients)
  mixed = sj.mix(sj.rules.linear(), ingredients, select={"n": (0, 1)})
  assert mixed.params["n"].tolist() == [1, 2, 3]


def test_wide_integers_are_not_cut():
  ingredient = {"n": np.array(2**40 + 5), "w": np.ones(8, np.float32)}
  ingredient = sj.Ingredient.from_params("one", ingredient)
  mesh = sharding.make_mesh({"x": 8})
  for where in (None, sharding.by_rules(mesh, [("", jax.P())])):
    leaf = sj.mix(sj.rules.linear(), [ingredient], sharding=where).params["n"]
    assert leaf.dtype == np.int64 and leaf == 2**40 + 5


def test_differences_that_float32_cannot_hold():
  models = [{"w": np.float32([x])} for x in (2e38, -2e38, 6e37)]
  mean = sj.mix(sj.rules.linear(), models).params["w"]
  np.testing.assert_allclose(mean, 2e37, rtol=1e-7)
  with pytest.raises(ValueError, match="float32.*'dare' cannot merge"):
    sj.mix(sj.rules.dare(0.5), models[1:], base=models[0])


def test_rules_and_bases_of_the_wrong_type():
  models = [sj.Ingredient.from_params(n, {"w": np.ones(2, "f")}) for n in "ab"]
  with pytest.raises(TypeError, match=r"sj.rules.linear\(\), got 'ties'"):
    sj.mix("ties", models)
  with pytest.raises(TypeError, match="function ties"):
    sj.mix(sj.rules.ties, models)
  with pytest.raises(TypeError, match="int.*3"):
    sj.mix(sj.rules.linear(), models, base=3)


def line_of(table, word):
  line = next(x for x in table.splitlines() if x.startswith(word))
  return float(line.split()[1])


def test_projected_memory_includes_decoded_leaves(tmp_path):
  params = {"w": np.zeros((1000, 1000), "f")}
  np.savez(tmp_path / "plain.npz", **params)
  np.savez_compressed(tmp_path / "packed.npz", **params)
  needed = {}
  for name in ("plain", "packed"):
    settings = {"dry_run": True, "threads": 2, "block_bytes": 16_000_000}
    mixed = sj.mix(RULE, tmp_path / f"{name}.npz", **settings)
    needed[name] = line_of(mixed.table, "memory")
  # The packed bytes, the array, and what is made of it, for each thread.
  assert needed["packed"] >= needed["plain"] + 2 * 3 * 4.0
  # The first passes of a rule as well.
  ingredient = [sj.open_ingredient(tmp_path / "packed.npz")]
  two = [*ingredient, sj.open_ingredient(tmp_path / "plain.npz")]
  mixed = sj.mix(sj.rules.karcher(), two, dry_run=True, threads=2)
  assert line_of(mixed.table, "memory") >= 2 * (3 + 9) * 4.0


def test_a_small_orbax_checkpoint_needs_little_memory(tmp_path):
  ingredient = [sj.Ingredient.from_params("m", {"w": np.zeros(4000, "f")})]
  mixed = sj.mix(RULE, ingredient, out=tmp_path / "o", max_host_bytes=2_000_000)
  assert line_of(mixed.table, "memory") < 2


def test_bytes_read_are_those_of_whole_chunks(tmp_path):
  params = {"w": np.ones((6, 10), "f"), "v": np.ones(3, "f")}
  np.savez_compressed(tmp_path / "m.npz", **params)
  sj.save_params(tmp_path / "m", params)
  sj.save_params(tmp_path / "n.npz", params)
  sources = sj.find_ingredients([tmp_path / n for n in ("m.npz", "m", "n.npz")])
  plan = planning.make(RULE, sources)
  # One process of several gets part of a leaf.
  pieces = [("w", (slice(0, 2), slice(0, 10)))]
  report = engine.run(plan, pieces, engine.Arrays(plan))
  assert report.bytes_read == (60 + 60 + 20) * 4
