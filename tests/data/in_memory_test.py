# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json

import helpers
import numpy as np
import pytest

from soupjax import data
from soupjax.data import in_memory

TEXT = "resize(6)|value_range(-1, 1)"
STREAM = {"batch_size": 8, "seed": 3, "preprocess": TEXT}


class Jpegs(data.Source):
  """JPEGs of different sizes; some are damaged."""

  def __init__(self, size=21, damaged=()):
    super().__init__("jpegs/train", size, 3)
    self.damaged = damaged

  def _read(self, index):
    image = helpers.encoded_image(index)
    return image[:40] if index in self.damaged else image, index % 3


def assert_same_batches(loader, held, indices):
  for batch in indices:
    expected = next(loader)
    np.testing.assert_array_equal(held.images[batch], expected["images"])
    np.testing.assert_array_equal(held.labels[batch], expected["labels"])
  loader.close()


def test_batches_are_those_of_the_loader():
  source = Jpegs()
  held = in_memory.hold(source, TEXT)
  assert held.name == source.name and len(held) == 21
  assert held.images.dtype == np.float32 and held.labels.dtype == np.int32
  indices = in_memory.IndexLoader(held, **STREAM).next_indices(7)
  assert indices.shape == (7, 8) and indices.dtype == np.int32
  assert_same_batches(data.train_loader(source, **STREAM), held, indices)
  for process in range(2):
    half = data.train_loader(
      source, **STREAM, process_index=process, process_count=2
    )
    block = indices[:, 4 * process : 4 * process + 4]
    assert_same_batches(half, held, block)


def test_either_kind_of_stream_goes_on_from_the_other():
  source = Jpegs()
  held = in_memory.hold(source, TEXT)
  indices = in_memory.IndexLoader(source, **STREAM).next_indices(9)

  loader = data.train_loader(source, **STREAM)
  for _ in range(4):
    next(loader)
  resumed = in_memory.IndexLoader(held, **STREAM)
  resumed.set_state(json.loads(json.dumps(loader.get_state())))
  np.testing.assert_array_equal(resumed.next_indices(2), indices[4:6])
  np.testing.assert_array_equal(resumed.next_indices(1), indices[6:7])

  loader.set_state(json.loads(json.dumps(resumed.get_state())))
  assert_same_batches(loader, held, indices[7:])


@pytest.mark.parametrize(
  "change", [{"seed": 4}, {"batch_size": 16}, {"preprocess": "resize(6)"}]
)
def test_state_of_another_stream_is_refused(change):
  state = in_memory.IndexLoader(Jpegs(), **(STREAM | change)).get_state()
  (name,) = change
  with pytest.raises(ValueError, match=f"{name} "):
    in_memory.IndexLoader(Jpegs(), **STREAM).set_state(state)


@pytest.mark.parametrize("change", [{"seed": -1}, {"batch_size": 0}])
def test_bad_streams(change):
  ((name, value),) = change.items()
  with pytest.raises(ValueError, match=f"{name}.* {value}"):
    in_memory.IndexLoader(Jpegs(), **(STREAM | change))


def test_damaged_images_become_their_neighbours():
  source = Jpegs(damaged=(3, 4, 20))
  with pytest.warns(UserWarning) as caught:
    held = in_memory.hold(source, TEXT, num_threads=1)
  for index in source.damaged:
    assert any(f"example {index} of" in str(w.message) for w in caught)
  assert len(caught) == 3
  for index, neighbour in ((3, 5), (4, 5), (20, 0)):
    np.testing.assert_array_equal(held.images[index], held.images[neighbour])
    assert held.labels[index] == neighbour % 3
  indices = in_memory.IndexLoader(source, **STREAM).next_indices(3)
  with pytest.warns(UserWarning):
    assert_same_batches(data.train_loader(source, **STREAM), held, indices)
  with pytest.warns(UserWarning), pytest.raises(ValueError, match="3 images"):
    in_memory.hold(source, TEXT, max_corrupt=2)


def test_random_operations_are_named():
  in_memory.check_deterministic(TEXT)
  text = "inception_crop(8)|flip_lr|value_range"
  for check in (
    in_memory.check_deterministic,
    lambda text: in_memory.hold(Jpegs(), text),
  ):
    with pytest.raises(ValueError, match="inception_crop, flip_lr.*batch_ops"):
      check(text)


def test_bytes_are_those_that_are_held():
  for text, size in ((TEXT, 4), ("resize((6, 5))", 1)):
    held = in_memory.hold(Jpegs(), text)
    assert held.images.itemsize == size
    count = in_memory.bytes_needed(Jpegs(), text)
    assert count == held.images.nbytes + held.labels.nbytes


def test_images_of_different_sizes_need_a_resize():
  with pytest.raises(ValueError, match=r"\(20, 24, 3\)"):
    in_memory.hold(Jpegs(), "value_range")


def test_everything_is_read_over_several_chunks():
  pixels = np.arange(600, dtype=np.uint16)[:, None, None, None]
  pixels = np.concatenate([pixels >> 8, pixels & 255, 0 * pixels], axis=-1)
  dataset = data.Dataset("many", pixels.astype(np.uint8), np.arange(600) % 7)
  held = in_memory.hold(data.from_dataset(dataset, 7), "")
  np.testing.assert_array_equal(held.images, pixels)
  np.testing.assert_array_equal(held.labels, dataset.labels)
