# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import subprocess
import sys

import helpers
import numpy as np
import pytest

from soupjax import data
from soupjax.data import folders
from soupjax.data import open as open_lib
from soupjax.data import source as source_lib


class Encoded(data.Source):
  """JPEGs in memory, with names of classes."""

  def __init__(self, size):
    super().__init__("encoded", size, 3, helpers.IMAGE_CLASSES)

  def _read(self, index):
    return helpers.encoded_image(index), index % 3


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  train = Encoded(20)
  test = data.subset(train, range(5), "test")
  data.write_tfds("fake_bugs", {"train": train, "test": test}, path)
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("bugs")
  helpers.write_image_folder(path / "train", {"ant": 6, "bee": 5, "cat": 4})
  helpers.write_image_folder(path / "val", {"ant": 2, "cat": 2})
  helpers.write_tar(path / "more.tar", path / "train")
  return path


def contents(source):
  return [(source[i]["image"], source[i]["label"]) for i in range(len(source))]


def small(size=12, num_classes=3, labels=None):
  """Images in memory whose pixels are all their index."""
  images = np.broadcast_to(
    np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 4, 4, 3)
  )
  if labels is None:
    labels = np.arange(size) % num_classes
  return data.from_dataset(
    data.Dataset("small/train", images, np.asarray(labels)), num_classes
  )


# TFDS


def test_tfds_dataset_is_read_as_it_was_written(tfds_dir):
  source = data.open_source("fake_bugs", "train", data_dir=tfds_dir)
  assert source.name == "fake_bugs/train"
  assert source.num_classes == 3 and source.class_names == helpers.IMAGE_CLASSES
  expected = {(helpers.encoded_image(i), i % 3) for i in range(20)}
  assert set(contents(source)) == expected and len(source) == 20


def test_tfds_slices_are_disjoint_and_complete(tfds_dir):
  parts = [
    data.open_source("fake_bugs", split, data_dir=tfds_dir)
    for split in ("train[:90%]", "train[90%:]")
  ]
  assert [len(p) for p in parts] == [18, 2]
  whole = data.open_source("fake_bugs:1.0.0", "train", data_dir=tfds_dir)
  assert contents(parts[0]) + contents(parts[1]) == contents(whole)
  both = data.open_source("fake_bugs", "train+test", data_dir=tfds_dir)
  assert len(both) == 25


_READ = """
import sys
from soupjax import data
source = data.open_source("fake_bugs", "train[:8]", data_dir=sys.argv[1])
next(data.train_loader(source, batch_size=4, seed=0, preprocess="resize(8)"))
batches = data.eval_batches(source, batch_size=4, preprocess="resize(8)")
print(len(list(batches)), "tensorflow" in sys.modules)
"""


def test_tensorflow_is_not_imported_even_where_it_is_there(tfds_dir, tmp_path):
  (tmp_path / "tensorflow.py").write_text("1 / 0")
  path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
  done = subprocess.run(
    [sys.executable, "-c", _READ, str(tfds_dir)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": path},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "2 False"


@pytest.mark.parametrize(
  "name,split,message",
  [
    ("fake_bug", "train", r"Unknown dataset 'fake_bug': did you .*'fake_bugs'"),
    ("imagenet2021", "train", r"did you mean 'imagenet2012'"),
    ("qwertyuiop", "train", r"Unknown dataset 'qwertyuiop': there are .* more"),
    ("cifar10", "train", r"not prepared in .*tfds build cifar10 --file_format"),
    ("fake_bugs", "tran", r"no split 'tran': did you mean 'train'\?"),
    ("fake_bugs", "train[:0]", r"fake_bugs/train\[:0\] is empty: train has 20"),
    ("fake_bugs", "train[9:3]", r"is empty"),
    ("fake_bugs", "train[:x]", r"Cannot read the split 'train\[:x\]'"),
    ("fake_bugs", "train+tost", r"tost"),
  ],
)
def test_tfds_refuses(tfds_dir, name, split, message):
  with pytest.raises(ValueError, match=message):
    data.open_source(name, split, data_dir=tfds_dir)


def copy_changed(tfds_dir, tmp_path, old, new):
  """Copies what describes the dataset, with something replaced."""
  target = tmp_path / "fake_bugs" / "1.0.0"
  target.mkdir(parents=True)
  for file in (tfds_dir / "fake_bugs" / "1.0.0").glob("*.json"):
    (target / file.name).write_text(file.read_text().replace(old, new))


def test_tfds_without_images_is_refused(tfds_dir, tmp_path):
  # Both the name and the kind are "image"; the name comes first.
  start = '"features": {\n            "'
  copy_changed(tfds_dir, tmp_path, f'{start}image"', f'{start}picture"')
  with pytest.raises(ValueError, match=r"features \['label', 'picture'\]"):
    data.open_source("fake_bugs", "train", data_dir=tmp_path)


def test_tfds_in_another_format_says_how_to_write_it(tfds_dir, tmp_path):
  copy_changed(tfds_dir, tmp_path, "array_record", "tfrecord")
  with pytest.raises(ValueError, match=r"holds tfrecord .*=array_record"):
    data.open_source("fake_bugs", "train", data_dir=tmp_path)


# Folders and tar files


def test_folder_has_classes_in_order_and_every_image_once(folder):
  source = data.open_source(f"folder:{folder}", "train")
  assert source.class_names == ("ant", "bee", "cat")
  labels = [0] * 6 + [1] * 5 + [2] * 4
  expected = {(helpers.encoded_image(i), k) for i, k in enumerate(labels)}
  assert set(contents(source)) == expected and len(source) == 15
  assert source.name == f"{folder.name}/train"
  assert source.describe(0).endswith(".jpg")


def test_missing_class_does_not_shift_the_others(folder):
  source = data.open_source(f"folder:{folder}", "val")
  assert source.num_classes == 3
  assert sorted(source.label(i) for i in range(4)) == [0, 0, 2, 2]


def test_tar_holds_the_same_in_the_same_order(folder):
  assert contents(data.open_source(f"folder:{folder}", "more")) == contents(
    data.open_source(f"folder:{folder}", "train")
  )
  tar = data.open_source(f"folder:{folder}/more.tar", "all[:7]")
  tar[0]  # So that the file is open.
  again = pickle.loads(pickle.dumps(tar))
  assert contents(again) == contents(tar)
  assert len(tar) == 7 and tar.describe(0).startswith(f"{folder}/more.tar/")


def test_folder_of_classes_has_the_split_all(folder):
  source = data.open_source(f"folder:{folder}/train", "all")
  assert len(source) == 15
  # Not sorted by class: a part has images of each.
  part = data.open_source(f"folder:{folder}/train", "all[:60%]")
  assert {part.label(i) for i in range(9)} == {0, 1, 2}


def test_other_files_are_left_alone(tmp_path):
  helpers.write_image_folder(tmp_path, {"ant": 1, "bee": 1})
  (tmp_path / "ant" / "notes.txt").write_text("no image")
  (tmp_path / "ant" / "._00.jpg").write_text("of a Mac")
  (tmp_path / ".git").mkdir()
  (tmp_path / "empty").mkdir()
  source = data.open_source(f"folder:{tmp_path}", "all")
  assert len(source) == 2 and source.class_names == ("ant", "bee")


@pytest.mark.parametrize(
  "split,message",
  [
    ("vall", "no split 'vall': did you mean 'val'"),
    ("train[3:3]", r"train\[3:3\] is empty: it would go from 3 to 3 of 15"),
    ("train[:1%]", "is empty"),
    ("train[", "Cannot read the split"),
    ("train[:98percent]", "Cannot read the split"),
    ("", "Cannot read the split"),
  ],
)
def test_folder_refuses_splits(folder, split, message):
  with pytest.raises(ValueError, match=message):
    data.open_source(f"folder:{folder}", split)


def test_bad_folders_and_tar_files(folder, tmp_path):
  with pytest.raises(ValueError, match="no image folder"):
    data.open_source(f"folder:{tmp_path / 'not_there'}", "all")
  with pytest.raises(ValueError, match="no images in it"):
    data.open_source(f"folder:{tmp_path}", "all")
  helpers.write_tar(tmp_path / "small.tar", folder / "train", "w:gz")
  with pytest.raises(ValueError, match=r"small.tar .* not compressed"):
    data.open_source(f"folder:{tmp_path}", "small")


# Memory, digits


def test_digits_are_a_source():
  source = data.open_source("digits", "minival[:10]")
  digits = data.load_digits().minival
  assert len(source) == 10 and source.num_classes == 10
  for i in range(10):
    image = source[i]["image"]
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    scaled = image.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(scaled[..., 1:2], digits.images[i], atol=4e-3)
    assert source[i]["label"] == digits.labels[i]
  with pytest.raises(ValueError, match="did you mean 'minival'"):
    data.open_source("digits", "minivall")


def test_bad_labels_and_shapes_are_refused():
  with pytest.raises(ValueError, match=r"example 2 .*label 3, .*only 3 class"):
    small(4, 3, [0, 1, 3, 2])
  with pytest.raises(ValueError, match="label -1"):
    small(4, 3, [0, 1, 2, -1])
  flat = data.Dataset("flat", np.zeros((2, 4, 4), "f"), np.zeros(2))
  with pytest.raises(ValueError, match=r"shape \(2, 4, 4\)"):
    data.from_dataset(flat, 3)


def test_index_out_of_range():
  source = small(4)
  for index in (4, -1):
    with pytest.raises(IndexError, match=f"no example {index}"):
      source[index]


def test_subset_of_a_subset():
  source = data.subset(data.subset(small(), [8, 5, 2], "a"), [2, 0], "b")
  assert [int(source[i]["image"][0, 0, 0]) for i in range(2)] == [2, 8]
  assert source.name == "b" and source.describe(0) == "example 2 of small/train"
  with pytest.raises(ValueError, match="nothing is empty"):
    data.subset(source, [], "nothing")


@pytest.mark.parametrize(
  "text,size,index",
  [
    ("98%", 1000, 980),
    ("50%", 5, 2),
    ("-2%", 1000, 980),
    ("-3", 10, 7),
    ("70", 50, 50),
    ("-70", 50, 0),
    ("100%", 7, 7),
  ],
)
def test_bounds(text, size, index):
  assert open_lib._bound(text, size) == index


@pytest.mark.parametrize(
  "one,other,count",
  [
    ("train", "train", 20),
    ("train", "train[90%:]", 2),
    ("train[:90%]", "train[90%:]", 0),
    ("train[:-3]", "train[16:]", 1),
    ("train", "test", 0),
    ("train+test", "test[1:]", 4),
  ],
)
def test_examples_that_two_parts_share_are_counted(
  tfds_dir, tmp_path, one, other, count
):
  a, b = (
    data.open_source("fake_bugs", split, data_dir=tfds_dir)
    for split in (one, other)
  )
  assert data.shared_examples(a, b) == data.shared_examples(b, a) == count
  if "+" not in one:
    helpers.write_image_folder(tmp_path / "train", {"ant": 12, "bee": 8})
    helpers.write_image_folder(tmp_path / "test", {"ant": 5})
    a, b = (
      data.open_source(f"folder:{tmp_path}", split) for split in (one, other)
    )
    assert data.shared_examples(a, b) == count


# Minival


def test_minival_has_so_many_of_each_class_and_no_image_is_in_both():
  labels = np.random.default_rng(0).permutation([0] * 9 + [1] * 20 + [2] * 5)
  source = small(34, 3, labels)
  train, minival = data.split_minival(source, per_class=4, seed=1)
  pixels = [
    [int(s[i]["image"][0, 0, 0]) for i in range(len(s))]
    for s in (train, minival)
  ]
  assert np.bincount([minival.label(i) for i in range(12)]).tolist() == [4] * 3
  assert sorted(pixels[0] + pixels[1]) == list(range(34))
  assert pixels[0] == sorted(pixels[0]) and pixels[1] == sorted(pixels[1])
  # The rule, in other words.
  order = np.random.default_rng(1).permutation(34)
  first = [i for k in range(3) for i in order[labels[order] == k][:4]]
  assert sorted(first) == pixels[1]
  assert train.name == "small/train-train"
  _, other = data.split_minival(source, per_class=4, seed=2)
  assert contents(other)[0][0].tolist() != contents(minival)[0][0].tolist() or (
    len({int(other[i]["image"][0, 0, 0]) for i in range(12)} & set(pixels[1]))
    < 12
  )


def test_minival_does_not_read_all_labels():
  class Counting(source_lib.Source):
    reads = 0

    def _label(self, index):
      self.reads += 1
      return index % 2

  source = Counting("many", 10_000, 2)
  data.split_minival(source, per_class=5)
  assert source.reads < 100


def test_minival_needs_more_images_than_it_takes():
  with pytest.raises(ValueError, match=r"no more than 4 images of class 0"):
    data.split_minival(small(12), per_class=4)
  with pytest.raises(ValueError, match="positive"):
    data.split_minival(small(12), per_class=0)


def test_damaged_label_of_a_dataset_is_named(tfds_dir, monkeypatch):
  source = data.open_source("fake_bugs", "train", data_dir=tfds_dir)
  source.num_classes = 1
  with pytest.raises(ValueError, match=r"of fake_bugs/train has label [12]"):
    for i in range(20):
      source[i]


def test_order_of_folders_is_that_of_a_hash(folder):
  # Fixed for good: parts of a folder must not change between versions.
  source = folders.open_split(folders.splits_of(folder)["val"])
  names = ["/".join(source.describe(i).rsplit("/", 2)[1:]) for i in range(4)]
  assert names == ["ant/00.jpg", "cat/01.jpg", "cat/00.jpg", "ant/01.jpg"]


# Writing


def test_arrays_are_written_without_loss(tmp_path):
  source = small(6)
  data.write_tfds("written", {"train": source}, tmp_path)
  again = data.open_source("written", "train", data_dir=tmp_path)
  crop = data.Preprocess("")
  found = {
    (int(crop(e["image"]).min()), int(crop(e["image"]).max()), e["label"])
    for e in (again[i] for i in range(6))
  }
  assert found == {(i, i, i % 3) for i in range(6)}
  assert again.num_classes == 3


def test_writing_needs_one_list_of_classes(tmp_path):
  with pytest.raises(ValueError, match=r"splits \['a', 'b'\] .*same classes"):
    data.write_tfds("x", {"a": small(6), "b": small(6, 2)}, tmp_path)
  with pytest.raises(ValueError, match="same classes"):
    data.write_tfds("x", {}, tmp_path)


@pytest.mark.parametrize("kind", ["tfds", "tar"])
def test_worker_processes_read_the_same(kind, tfds_dir, folder):
  source = (
    data.open_source("fake_bugs", "train", data_dir=tfds_dir)
    if kind == "tfds"
    else data.open_source(f"folder:{folder}", "more")
  )
  source[0]  # So that files are open here.
  here, there = (
    data.train_loader(
      source, batch_size=5, seed=1, preprocess="resize(8)", num_workers=n
    )
    for n in (0, 1)
  )
  for _ in range(3):
    a, b = next(here), next(there)
    np.testing.assert_array_equal(a["images"], b["images"])
    np.testing.assert_array_equal(a["labels"], b["labels"])
  there.close()
