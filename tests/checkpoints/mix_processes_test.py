# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes of four devices each, on one machine."""

import json
import pathlib

import helpers
import jax
import numpy as np
import pytest
import safetensors.numpy
import stores

import soupjax as sj
from soupjax import buckets, sharding
from soupjax.soups.engine import first_pass

WORKER = pathlib.Path(__file__).with_name("mix_processes_worker.py")


BUCKET = "s3://processes"


def run_processes(count, argument, logs, **variables) -> None:
  helpers.run_workers(
    WORKER, logs, argument, count=count, seconds=120, HARD="110", **variables
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
  path = tmp_path_factory.mktemp("processes")
  for k in range(2):
    rng = np.random.default_rng(k)
    tree = {
      "rows": rng.normal(size=(4096, 128)).astype(np.float32),
      "columns": rng.normal(size=(64, 8192)).astype(np.float32),
      "small": rng.normal(size=(7,)).astype(np.float32),
      "counter": np.int32(3),
    }
    # Without a record: what it holds shows only when it is read.
    arrays = {name: np.asarray(leaf) for name, leaf in tree.items()}
    safetensors.numpy.save_file(arrays, path / f"in_{k}.safetensors")
    # Orbax stores what one device held in one chunk, which is read at once.
    mesh = sharding.make_mesh({"x": 8})
    axes = {"rows": jax.P("x"), "columns": jax.P(None, "x")}
    spread = {
      name: jax.device_put(leaf, sharding.NamedSharding(mesh, axes[name]))
      if name in axes
      else leaf
      for name, leaf in tree.items()
    }
    sj.save_params(path / f"orbax_{k}", spread)
    # A checksum of every leaf, one of which is damaged in the second file.
    np.savez(path / f"sum_{k}.npz", **arrays)
  data = bytearray((path / "sum_1.npz").read_bytes())
  data[data.index(arrays["columns"].tobytes()) + 123_457] ^= 1
  (path / "sum_1.npz").write_bytes(data)
  variables = {}
  if not stores.MISSING:
    client = request.getfixturevalue("store").client
    client.create_bucket(Bucket=BUCKET[5:])
    for name in ("in_0.safetensors", "in_1.safetensors"):
      client.upload_file(str(path / name), BUCKET[5:], f"in/{name}")
    client.put_object(Bucket=BUCKET[5:], Key="in/config.json", Body=b"{}")
    variables["BUCKET"] = BUCKET
  run_processes(2, str(path), path, **variables)
  return path


def results(folder, key="results"):
  return [
    json.loads((folder / f"results_{i}.json").read_text())[key]
    for i in range(2)
  ]


@pytest.fixture(scope="module")
def expected(folder):
  ingredients = sj.find_ingredients(folder / "in_*.safetensors")
  return sj.mix(sj.rules.linear(), ingredients).params


@pytest.mark.parametrize("kind", ["*", "o"])
def test_shards_are_those_of_one_process(folder, expected, kind):
  def gather(name, axis):
    files = sorted(
      folder.glob(f"{kind if kind == 'o' else '[*]'}_{name}_*.npy"),
      key=lambda f: int(f.stem.split("_")[-1]),
    )
    assert len(files) == 8
    return [np.load(f) for f in files], axis

  for name, axis in [("rows", 0), ("columns", 1)]:
    shards, axis = gather(name, axis)
    assert np.array_equal(np.concatenate(shards, axis), expected[name])
  for name in ("small", "counter"):
    for shard in gather(name, 0)[0]:
      assert np.array_equal(shard, expected[name])


@stores.needed
def test_a_bucket(folder, store, expected):
  params = sj.load_params(f"{BUCKET}/soup")
  for leaf, value in expected.items():
    assert np.array_equal(params[leaf], value), leaf
  first, other = results(folder)
  total = 2 * (4096 * 128 + 64 * 8192) * 4
  for process in (first, other):
    assert process["bucket"]["read"] <= 1.1 * total / 2
  for message in results(folder, "refused"):
    assert f"{BUCKET}/soup.npz" in message and "Orbax" in message
  names = store.names(BUCKET[5:])
  # Each process has written the chunks of its devices.
  assert len([name for name in names if "/rows/c/" in name]) == 8
  assert "soup/config.json" in names and ".soup.lock" not in names
  assert f"soup/{buckets.UNFINISHED}" not in names
  record = sj.provenance(f"{BUCKET}/soup")
  assert [entry["name"] for entry in record["ingredients"]] == [
    "in_0.safetensors",
    "in_1.safetensors",
  ]


def test_each_process_reads_its_share(folder):
  total = 2 * (4096 * 128 + 64 * 8192) * 4
  for process in results(folder):
    process.pop("bucket", None)
    for kind, counts in process.items():
      assert counts["read"] <= 1.1 * total / 2, kind
    for kind in ("*.safetensors", "orbax_*"):
      # Also what the system says, not only what we count.
      assert process[kind]["rchar"] <= 1.1 * total / 2, (kind, process[kind])


@pytest.mark.parametrize(
  "name",
  ["soup.safetensors", "soup.npz", "soup_orbax", "from_mesh.safetensors"],
)
def test_outputs_are_those_of_one_process(folder, expected, name):
  params = sj.load_params(folder / name)
  assert set(params) == set(expected)
  for leaf, value in expected.items():
    assert np.array_equal(params[leaf], value), leaf


def test_the_file_is_the_same_for_any_number_of_processes(folder):
  sj.mix(
    sj.rules.linear(),
    sj.find_ingredients(folder / "*[0-9].safetensors"),
    out=folder / "alone.safetensors",
    hash_inputs=True,
  )
  alone, shared = (
    (folder / name).read_bytes()
    for name in ("alone.safetensors", "soup.safetensors")
  )
  assert alone == shared


@pytest.mark.parametrize("name", ["soup.safetensors", "soup.npz", "soup_orbax"])
def test_hashes_are_those_of_one_process(folder, name):
  record = sj.provenance(folder / name)
  alone = sj.provenance(folder / "alone.safetensors")
  hashes = [entry["content_hash"] for entry in record["ingredients"]]
  assert None not in hashes
  assert hashes == [entry["content_hash"] for entry in alone["ingredients"]]
  if "crc32" in record:
    assert record["crc32"] == alone["crc32"]


def test_columns_are_compared_with_checksums_and_hashed(folder):
  alone = sj.provenance(folder / "alone.safetensors")["ingredients"][0]
  for process in range(2):
    assert results(folder, "hashes")[process] == [alone["content_hash"]]
    message = results(folder, "message")[process]
    assert "'columns' of 'sum_1.npz'" in message and "is damaged" in message


def test_first_passes_are_shared_too(folder):
  num_bytes = 64 * 8192 * 4  # "columns", cut to more units than processes.
  for process in results(folder, "rules"):
    # Two models and a base three times; two models twice.
    assert 0.4 * 9 * num_bytes < process["ties"] < 0.6 * 9 * num_bytes
    assert 0.4 * 4 * num_bytes < process["karcher"] < 0.6 * 4 * num_bytes


@pytest.mark.parametrize("name", ["ties", "karcher", "dare", "iso_c"])
def test_rules_that_measure_draw_or_see_whole_leaves(folder, name, monkeypatch):
  monkeypatch.setattr(first_pass, "_UNIT_ELEMENTS", 1 << 14)
  monkeypatch.setattr(first_pass, "_UNIT_BYTES", 0)
  rule = getattr(sj.rules, name)
  alone = sj.mix(
    rule(0.3) if name in ("ties", "dare") else rule(),
    sj.find_ingredients(folder / "in_*.safetensors"),
    base=folder / "in_0.safetensors",
    select={"rows": "skip"},
  ).params
  params = sj.load_params(folder / f"rule_{name}.safetensors")
  for leaf, value in alone.items():
    assert np.asarray(params[leaf]).tobytes() == np.asarray(value).tobytes()
