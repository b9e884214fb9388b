# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Residency of the ingredients of learned soups, which changes no bit."""

import collections
import dataclasses
import gc
import os
import weakref

from helpers import COUNT, POOL, TREES, loss_of
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import crc32
from soupjax.soups.core import ingredient as soup_inputs
from soupjax.soups.learned import offload, streamed_passes

BYTES = POOL[0].num_bytes
MESH = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
COLUMNS = jax.sharding.NamedSharding(
  MESH, jax.sharding.PartitionSpec(None, "x")
)
COPIES = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec())
ROWS = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec("x"))
residencies = pytest.mark.parametrize("place", offload.CHOICES)


def rows(leaf, spec):
  return ROWS if spec.shape and spec.shape[0] == 8 else COPIES


def columns(leaf, spec):
  wide = len(spec.shape) == 2 and spec.shape[1] == 8
  return COLUMNS if wide else rows(leaf, spec)


def on_disk(count=COUNT, told=None):
  """Ingredients that make a new array with every read, like files."""

  def ingredient(k):
    inside = sj.Ingredient.from_params(f"m{k}", TREES[k % COUNT])

    def read(leaf, index):
      value = np.array(inside.reader(leaf, index))
      if told:
        told(k, leaf, value)
      return value

    return dataclasses.replace(inside, reader=read, path=f"/nowhere/{k}")

  return [ingredient(k) for k in range(count)]


@pytest.mark.parametrize(
  "sharding", [None, rows, columns], ids=["one", "mesh", "columns"]
)
@pytest.mark.parametrize("base", [None, 0], ids=["softmax", "base"])
def test_residency_changes_no_bit(sharding, base):
  def learn(place):
    models = on_disk()
    return sj.learned_soup(
      models if base is None else models[1:],
      loss_of,
      base=None if base is None else models[base],
      steps=4,
      optimizer=sj.CoefficientOptimizer(learning_rate=0.1),
      sharding=sharding,
      residency=place,
    )

  soups = {place: learn(place) for place in (*offload.CHOICES, 1.5 * BYTES)}
  first = soups["disk"]
  for place, soup in soups.items():
    assert soup.residency == (place if isinstance(place, str) else "disk")
    assert soup.history == first.history and soup.beta == first.beta
    for group, alphas in first.alphas.items():
      np.testing.assert_array_equal(soup.alphas[group], alphas)
    for a, b in zip(*map(jax.tree.leaves, (soup.params, first.params))):
      assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def reads_of(**settings):
  """Learns three steps; returns {chunk: {ingredient: reads}}."""
  reads = {leaf: collections.Counter() for leaf in LAST_LEAVES}

  def told(k, leaf, value):
    del value
    if leaf in reads:
      reads[leaf][k] += 1

  sj.learned_soup(on_disk(told=told), loss_of, steps=3, **settings)
  return [dict(reads[leaf]) for leaf in LAST_LEAVES]


# One of each layer, in their order. The first layer has most of the bytes, so
# its ingredients are read one by one; those of the others are read together.
LAST_LEAVES = ("blocks/dense/kernel", "embed/kernel", "head/kernel")


@residencies
def test_one_pass_a_step_where_layers_have_their_own_coefficients(place):
  reads = reads_of(residency=place)
  if place != "disk":
    assert reads == [dict.fromkeys(range(COUNT), 1)] * 3
    return
  # The check, the first mixture, and the steps: once for layers that are read
  # together. Others are read twice, except where the first pass ends. The layer
  # that ends a step begins the next one.
  assert reads == [
    {0: 1, 1: 5, 2: 8, 3: 7},
    {0: 1, 1: 5, 2: 5, 3: 5},
    {0: 1, 1: 3, 2: 3, 3: 3},
  ]


@pytest.mark.parametrize(
  "settings",
  [{"granularity": "model"}, {"optimizer": "lbfgs"}],
  ids=["model", "lbfgs"],
)
def test_two_passes_a_step_where_layers_wait_for_each_other(settings):
  reads = reads_of(residency="disk", **settings)
  # Passes alternate in direction: at every turn one read is saved.
  turns = 2 * 3
  assert reads == [
    {0: 1, 1: 8 - turns // 2, 2: 8, 3: 8},
    {0: 1, 1: 8, 2: 8, 3: 8},
    {0: 1} | dict.fromkeys((1, 2, 3), 8 - turns // 2),
  ]


def test_what_fits_is_read_once():
  most = 1.5 * BYTES
  reads = collections.Counter()

  def told(k, leaf, value):
    if k and leaf != "count":
      reads[k, leaf] += value.nbytes

  sj.learned_soup(on_disk(told=told), loss_of, steps=3, residency=most)
  sizes = {k: s.size * s.dtype.itemsize for k, s in POOL[0].specs.items()}
  stay = [sizes[leaf] for (_, leaf), n in reads.items() if n == sizes[leaf]]
  assert BYTES < sum(stay) <= most


def test_disk_holds_no_more_models_when_there_are_more():
  def most_bytes(count):
    alive, most = {}, 0
    gc.collect()
    before = sum(x.nbytes for x in jax.live_arrays())

    def told(k, leaf, value):
      nonlocal most
      key = object()
      alive[key] = value.nbytes
      weakref.finalize(value, alive.pop, key)
      arrays = sum(x.nbytes for x in jax.live_arrays()) - before
      most = max(most, sum(alive.values()) + arrays)

    sj.learned_soup(on_disk(count, told), loss_of, steps=2, residency="disk")
    return most

  # The soup, its gradient, the first model, the current and the next block, and
  # what the threads hold for a moment.
  assert most_bytes(24) <= 8 * BYTES


def test_many_models_have_the_bits_of_a_uniform_soup():
  models = on_disk(24)  # Some layers of 24 models are in one block.
  still = sj.CoefficientOptimizer(learning_rate=1e-30)
  soup = sj.learned_soup(
    models, loss_of, steps=1, optimizer=still, residency="disk"
  )
  (weights, *_) = soup.alphas.values()
  want = sj.uniform_soup(models, weights)
  for a, b in zip(*map(jax.tree.leaves, (soup.params, want))):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_equal_layers_share_their_programs():
  def compiled(depth):
    """Counts the programs for a model of `depth` equal layers."""
    layer = {"w": np.ones((3, depth), np.float32), "b": np.ones(depth + 3)}
    models = [
      {f"block_{k}": jax.tree.map(np.copy, layer) for k in range(depth)}
      for _ in range(3)
    ]
    mixed, dots = streamed_passes._means, streamed_passes._dots
    before = mixed._cache_size(), dots._cache_size()
    sj.learned_soup(
      models, lambda p, beta: p["block_0"]["w"].sum(), steps=1, residency="disk"
    )
    return mixed._cache_size() - before[0], dots._cache_size() - before[1]

  assert compiled(2) == compiled(7) == (1, 1)


def test_memory_is_filled_again_when_its_arrays_are_gone():
  memory = offload.Memory(1000)

  def filled():
    with memory.filled():
      return [memory.array(n, np.dtype(np.float32)) for n in (3, 100)]

  arrays = filled()
  places = [x.ctypes.data for x in arrays]
  assert all(place % 64 == 0 for place in places)
  part = arrays.pop()[50:].reshape(2, 25)
  del arrays
  part[:] = 7
  assert all(x.ctypes.data not in places for x in filled())
  assert (part == 7).all()
  del part
  assert [x.ctypes.data for x in filled()] == places


def test_checksums_are_compared_with_every_read(tmp_path):
  paths = [tmp_path / f"{k}.safetensors" for k in range(2)]
  for path, tree in zip(paths, TREES):
    sj.save_params(path, tree)
  status = paths[1].stat()

  def damage(entry):
    """Changes the last byte and hides it: the file seems to be the same."""
    with open(paths[1], "r+b") as f:
      f.seek(-1, 2)
      last = f.read(1)[0]
      f.seek(-1, 2)
      f.write(bytes([last ^ 1]))
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))

  with pytest.raises(ValueError, match="1.safetensors.*checksum"):
    sj.learned_soup(paths, loss_of, steps=3, residency="disk", on_step=damage)


def test_checksums_over_leaves_that_stay_and_leaves_that_do_not(tmp_path):
  path = tmp_path / "a.safetensors"
  sj.save_params(path, {"a": np.arange(10.0), "b": np.arange(20.0)})
  (model,) = soup_inputs.as_ingredients([path])
  # As in torch files, where tensors may be views of one array.
  shared = crc32.Shared(12345, {"a": 80, "b": 160})
  storage = dataclasses.replace(model.storage, checksums={}, shared=(shared,))
  (model,) = offload.cached_on_host(
    [dataclasses.replace(model, storage=storage)], 80, offload.Memory(1000)
  )
  model.read("a")
  with pytest.raises(ValueError, match="a or b.*damaged"):
    model.read("b")


@pytest.mark.parametrize(
  "memory,place",
  [
    (0, "disk"),
    (3 * BYTES - 1, "disk"),
    (3 * BYTES, "host"),  # Eight devices hold eight copies.
    (8 * 3 * BYTES - 1, "host"),
    (8 * 3 * BYTES, "device"),
  ],
)
def test_takes_the_first_that_has_room(memory, place, caplog):
  with caplog.at_level("INFO", logger="soupjax"):
    soup = sj.learned_soup(
      on_disk(), loss_of, steps=1, residency=memory, sharding=COPIES
    )
  assert soup.residency == place
  assert f"3 ingredients stay on {place}" in caplog.text


def test_takes_half_of_what_is_free(monkeypatch):
  for free, place in ((6 * BYTES, "device"), (6 * BYTES - 2, "disk")):
    monkeypatch.setattr(offload, "_free_on_host", lambda free=free: free)
    assert offload.choose(None, on_disk(3), None).place == place


def test_asks_the_devices_where_they_know(monkeypatch):
  class Device:
    def __init__(self, used):
      self.used = used

    def memory_stats(self):
      return {"bytes_limit": 10 * BYTES, "bytes_in_use": self.used}

  class Halves:
    def __init__(self, used):
      self.addressable_devices = [Device(0), Device(used)]

    def shard_shape(self, shape):
      return (0.5, *shape)

  def choose(used):
    halves = Halves(used)
    return offload.choose(None, on_disk(3), lambda *_: halves).place

  monkeypatch.setattr(offload, "_free_on_host", lambda: 6 * BYTES)
  # Half of 10 * BYTES on each device, of which each takes 1.5; then less.
  assert choose(0) == choose(7 * BYTES) == "device"
  assert choose(7 * BYTES + 1) == "host"
  monkeypatch.setattr(offload, "_free_on_host", lambda: 0)
  assert choose(7 * BYTES + 1) == "disk"


def test_free_memory_is_measured():
  assert 2**20 < offload._free_on_host() < 2**50


def test_trees_in_memory_take_no_more_room_on_the_host():
  soup = sj.learned_soup(POOL, loss_of, steps=1, residency=0)
  assert soup.residency == "host"


@pytest.mark.parametrize(
  "arguments,message",
  [
    ({"residency": "gpu"}, "residency .*'gpu'"),
    ({"residency": -1}, "residency .*-1"),
    ({"residency": "8GB"}, "residency .*'8GB'"),
  ],
)
def test_refuses_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    sj.learned_soup(
      POOL, lambda *_: pytest.fail("called"), steps=1, **arguments
    )
