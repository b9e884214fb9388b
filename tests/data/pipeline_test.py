# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import collections
import itertools
import json
import subprocess
import sys
import warnings

import helpers
import numpy as np
import pytest

from soupjax import data

RANDOM = "inception_crop(16)|flip_lr|randaug(2, 10)|value_range(-1, 1)"


class Numbered(data.Source):
  """Images whose pixels are all their index, encoded; some are damaged."""

  def __init__(self, size, damaged=(), num_classes=5):
    super().__init__("numbered", size, num_classes)
    self.damaged = frozenset(damaged)

  def _read(self, index):
    if index in self.damaged:
      return helpers.encoded_image(0)[: 300 if index % 2 else 40], index % 5
    return np.full((8, 8, 3), index, np.uint8), index % 5


class Varied(data.Source):
  """JPEGs of different sizes."""

  def __init__(self, size=30):
    super().__init__("varied", size, 3)

  def _read(self, index):
    return helpers.encoded_image(index), index % 3


def numbers(batches, key="images"):
  """The index of every image of `Numbered`, over batches."""
  return [int(image[0, 0, 0]) for b in batches for image in b[key]]


def take(loader, count):
  return list(itertools.islice(loader, count))


def assert_same(batches, others):
  assert len(batches) == len(others)
  for a, b in zip(batches, others, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


def loader(source, **kwargs):
  options = {"batch_size": 8, "seed": 3, "preprocess": "", **kwargs}
  return data.train_loader(source, **options)


def joint(source, count, batches, **kwargs):
  """Merges the batches of `count` processes."""
  parts = [
    take(
      loader(source, process_index=p, process_count=count, **kwargs), batches
    )
    for p in range(count)
  ]
  return [
    {key: np.concatenate([b[key] for b in bs]) for key in bs[0]}
    for bs in zip(*parts, strict=True)
  ]


# Training


def test_shapes_and_labels():
  batch = next(loader(Numbered(30), preprocess="value_range(0, 255)"))
  assert set(batch) == {"images", "labels"}
  assert batch["images"].shape == (8, 8, 8, 3)
  assert batch["images"].dtype == np.float32
  assert batch["labels"].dtype == np.int32
  np.testing.assert_array_equal(
    batch["labels"], batch["images"][:, 0, 0, 0] % 5
  )
  assert next(loader(Numbered(30)))["images"].dtype == np.uint8


def test_every_image_once_an_epoch_each_in_another_order():
  # 8 does not divide 30: epochs are joined without a gap.
  seen = numbers(take(loader(Numbered(30)), 15))
  epochs = [seen[i : i + 30] for i in range(0, 120, 30)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(30))
  assert len({tuple(e) for e in epochs}) == 4


def test_seed_alone_decides():
  source = Varied()
  first = take(loader(source, preprocess=RANDOM), 6)
  assert_same(first, take(loader(source, preprocess=RANDOM, num_threads=1), 6))
  other = take(loader(source, preprocess=RANDOM, seed=4), 6)
  assert not np.array_equal(first[0]["images"], other[0]["images"])


def test_neighbouring_seeds_do_not_share_epochs():
  # A shuffle by seed + epoch would give one member the other's second epoch.
  a = numbers(take(loader(Numbered(24), seed=5), 9))
  b = numbers(take(loader(Numbered(24), seed=6), 9))
  epochs = [tuple(x[i : i + 24]) for x in (a, b) for i in (0, 24, 48)]
  assert len(set(epochs)) == 6


def test_augmentation_differs_between_epochs_and_examples():
  source = data.from_dataset(
    data.Dataset(
      "same", np.stack([helpers.fake_image(0)] * 4), np.zeros(4, np.int32)
    ),
    1,
  )
  batches = take(
    loader(source, batch_size=4, preprocess="inception_crop(16)"), 3
  )
  images = {image.tobytes() for b in batches for image in b["images"]}
  assert len(images) == 12


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_what_one_sees(count):
  source = Varied()
  alone = take(loader(source, preprocess=RANDOM), 9)
  assert_same(alone, joint(source, count, 9, preprocess=RANDOM))


def test_no_image_twice_in_an_epoch_over_processes():
  together = numbers(joint(Numbered(24), 4, 6))
  counts = (
    collections.Counter(together[:24]),
    collections.Counter(together[24:]),
  )
  assert all(set(c.values()) == {1} and len(c) == 24 for c in counts)


def test_workers_change_nothing_and_leave_the_same_state():
  source = Varied()
  here = loader(source, preprocess=RANDOM)
  there = loader(source, preprocess=RANDOM, num_workers=2)
  try:
    assert_same(take(here, 5), take(there, 5))
    assert here.get_state() == there.get_state()
    state = there.get_state()
  finally:
    there.close()
  resumed = loader(source, preprocess=RANDOM)
  resumed.set_state(state)
  assert_same(take(here, 3), take(resumed, 3))


def test_resumes_bit_for_bit_from_json():
  source = Varied()
  unbroken = take(loader(source, preprocess=RANDOM), 12)
  for stop in (0, 1, 7):
    first = loader(source, preprocess=RANDOM)
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    again = loader(source, preprocess=RANDOM)
    again.set_state(state)
    assert_same(unbroken[stop:], take(again, 12 - stop))


def test_state_can_be_set_in_the_middle_and_on_other_processes():
  source = Numbered(30)
  unbroken = take(loader(source), 10)
  running = loader(source)
  take(running, 4)
  state = running.get_state()
  take(running, 3)
  running.set_state(state)
  assert_same(unbroken[4:6], take(running, 2))
  half = loader(source, process_index=1, process_count=2)
  half.set_state(state)
  np.testing.assert_array_equal(next(half)["images"], unbroken[4]["images"][4:])


@pytest.mark.parametrize(
  "change",
  [{"seed": 4}, {"batch_size": 16}, {"preprocess": "flip_lr"}],
)
def test_state_of_another_stream_is_refused(change):
  state = loader(Numbered(30), **change).get_state()
  (name,) = change
  with pytest.raises(ValueError, match=f"{name}"):
    loader(Numbered(30)).set_state(state)
  with pytest.raises(ValueError, match="30.*31"):
    loader(Numbered(31)).set_state(loader(Numbered(30)).get_state())


@pytest.mark.parametrize(
  "kwargs,message",
  [
    ({"batch_size": 10, "process_count": 4}, "batch_size 10 .* 4 processes"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"process_index": 2, "process_count": 2}, "process_index 2"),
    ({"preprocess": "inception_krop(3)"}, "'inception_crop'"),
    ({"seed": -1}, "seed.*-1"),
  ],
)
def test_training_refuses_before_it_begins(kwargs, message):
  with pytest.raises(ValueError, match=message):
    loader(Numbered(30), **kwargs)


def test_crop_that_does_not_fit_the_images_shows_at_once():
  with pytest.raises(ValueError, match="numbered.*random_crop"):
    loader(Numbered(30), preprocess="random_crop(16)")


def test_images_of_different_sizes_need_a_resize():
  with pytest.raises(ValueError, match=r"resize\(224\)"):
    take(loader(Varied()), 2)


def test_label_out_of_range_is_named():
  with pytest.raises(ValueError, match="4.*4 classes.*0.*3"):
    take(loader(Numbered(30, num_classes=4)), 4)


# Corrupt images


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_images_are_replaced_counted_and_named(num_workers):
  source = Numbered(16, damaged=(3, 6, 7))
  stream = loader(source, num_workers=num_workers, max_corrupt=3)
  with pytest.warns(UserWarning) as caught:
    seen = numbers(take(stream, 2))
  stream.close()
  # 4 and 8 stand in for their neighbours.
  expected = [4 if i == 3 else 8 if i in (6, 7) else i for i in range(16)]
  assert sorted(seen) == sorted(expected)
  text = "\n".join(str(w.message) for w in caught)
  for i in (3, 6, 7):
    assert f"Cannot decode example {i} of numbered: skipped" in text
  assert "(3 of at most 3)" in text


def test_each_corrupt_image_counts_once():
  stream = loader(Numbered(16, damaged=(3,)), max_corrupt=1)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    take(stream, 8)
  assert len(caught) == 1


def test_too_many_corrupt_images_are_an_error():
  stream = loader(Numbered(16, damaged=(3, 6, 7)), max_corrupt=2)
  with pytest.warns(UserWarning), pytest.raises(ValueError) as error:
    take(stream, 4)
  assert "3 images cannot be decoded" in str(error.value)
  assert "of numbered: repair or remove" in str(error.value)
  assert "max_corrupt=2" in str(error.value)


def test_a_dataset_of_corrupt_images_is_an_error_at_once():
  with pytest.raises(ValueError, match="decoded"):
    loader(Numbered(40, damaged=range(40)))


# Evaluation


def test_evaluation_goes_through_everything_once_in_order():
  batches = data.eval_batches(Numbered(21), batch_size=8, preprocess="")
  assert len(batches) == 3
  for _ in range(2):
    seen = list(batches)
    assert [len(b["labels"]) for b in seen] == [8, 8, 8]
    mask = np.concatenate([b["mask"] for b in seen])
    assert mask.dtype == bool and mask.sum() == 21
    assert numbers(seen)[:21] == list(range(21)) and mask[:21].all()
    labels = np.concatenate([b["labels"] for b in seen])
    assert labels.dtype == np.int32
    assert labels.tolist() == [i % 5 for i in range(21)] + [0, 0, 0]


@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_in_processes(count):
  # The last process has nothing but padding at the end.
  kwargs = {"batch_size": 8, "preprocess": "resize(12)|value_range"}
  alone = list(data.eval_batches(Varied(17), **kwargs))
  parts = [
    list(
      data.eval_batches(
        Varied(17), process_index=p, process_count=count, **kwargs
      )
    )
    for p in range(count)
  ]
  assert {len(p) for p in parts} == {3}
  together = [
    {key: np.concatenate([b[key] for b in bs]) for key in bs[0]}
    for bs in zip(*parts, strict=True)
  ]
  assert_same(alone, together)
  assert not parts[-1][-1]["mask"].any()


def test_evaluation_masks_corrupt_images_up_to_a_limit():
  source = Numbered(16, damaged=(3, 6))
  batches = data.eval_batches(
    source, batch_size=8, preprocess="", max_corrupt=2
  )
  for expected_warnings in (2, 0):  # Each is named once, not once a pass.
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      mask = np.concatenate([b["mask"] for b in batches])
    assert np.flatnonzero(~mask).tolist() == [3, 6]
    assert len(caught) == expected_warnings
  strict = data.eval_batches(source, batch_size=8, preprocess="", max_corrupt=0)
  with pytest.raises(ValueError, match="3 .*numbered.*repair"):
    list(strict)


def test_evaluation_refuses_randomness():
  with pytest.raises(ValueError, match="random"):
    data.eval_batches(Varied(), batch_size=4, preprocess=RANDOM)


# A real one


def test_corrupt_file_of_a_folder(tmp_path):
  helpers.write_image_folder(tmp_path, {"ant": 5, "bee": 5})
  path = tmp_path / "bee" / "02.jpg"
  path.write_bytes(path.read_bytes()[:200])
  source = data.open_source(f"folder:{tmp_path}", "all")
  stream = loader(source, batch_size=10, preprocess="resize(8)")
  with pytest.warns(UserWarning, match=f"{path}"):
    batch = next(stream)
  assert batch["images"].shape == (10, 8, 8, 3)


def test_nothing_heavy_is_imported_before_it_is_used():
  code = (
    "import sys, soupjax\n"
    "heavy = ('PIL', 'grain', 'tensorflow_datasets', 'tensorflow')\n"
    "print([m for m in heavy if m in sys.modules])\n"
    "import soupjax.data\n"
    "print([m for m in heavy[1:] if m in sys.modules])\n"
  )
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout.split("\n")[:2] == ["[]", "[]"]
