# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFDS datasets are read without TensorFlow."""

import os
import subprocess
import sys

import helpers
import pytest

from soupjax import data


def contents(source):
  return [(source[i]["image"], source[i]["label"]) for i in range(len(source))]


def test_tfds_dataset_is_read_as_it_was_written(tfds_dir):
  source = data.open_source("fake_bugs", "train", data_dir=tfds_dir)
  assert source.name == "fake_bugs/train"
  assert source.num_classes == 3 and source.class_names == helpers.IMAGE_CLASSES
  expected = {(helpers.encoded_image(i), i % 3) for i in range(20)}
  assert set(contents(source)) == expected and len(source) == 20


def test_images_with_several_labels(tmp_path):
  import tensorflow_datasets as tfds

  labels = ([2, 0], [], [1])

  class Real(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
      label = tfds.features.ClassLabel(names=list(helpers.IMAGE_CLASSES))
      features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "original_label": label,
        "real_label": tfds.features.Sequence(label),
      }
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {"validation": self._generate_examples()}

    def _generate_examples(self):
      for k, real in enumerate(labels):
        image = helpers.encoded_image(k)
        yield k, {"image": image, "original_label": 0, "real_label": real}

  Real.name = "fake_real"
  builder = Real(data_dir=os.fspath(tmp_path), file_format="array_record")
  builder.download_and_prepare(file_format="array_record")
  source = data.open_source("fake_real", "validation", data_dir=tmp_path)
  assert source.several and source.class_names == helpers.IMAGE_CLASSES
  right = {source.right_labels(k) for k in range(3)}
  assert right == {(0, 2), (), (1,)}
  with pytest.raises(ValueError, match="fake_real.* several right labels"):
    source.label(0)


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


def test_parts_that_overlap_would_count_twice(tfds_dir):
  for split in ("train[:50%]+train[:5]", "test+test"):
    with pytest.raises(ValueError, match="5 images twice"):
      data.open_source("fake_bugs", split, data_dir=tfds_dir)


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
    ("fake_bug", "train", "'fake_bug'.*'fake_bugs'"),
    ("imagenet2021", "train", "'imagenet2012'"),
    ("qwertyuiop", "train", "'qwertyuiop'"),
    ("cifar10", "train", "cifar10 --file_format"),
    ("fake_bugs", "tran", "'tran'.*'train'"),
    ("fake_bugs", "train[:0]", r"fake_bugs/train\[:0\].*20"),
    ("fake_bugs", "train[9:3]", r"is empty"),
    ("fake_bugs", "train[:x]", r"'train\[:x\]'"),
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
  with pytest.raises(ValueError, match="array_record"):
    data.open_source("fake_bugs", "train", data_dir=tmp_path)


def test_damaged_label_of_a_dataset_is_named(tfds_dir, monkeypatch):
  source = data.open_source("fake_bugs", "train", data_dir=tfds_dir)
  source.num_classes = 1
  with pytest.raises(ValueError, match="fake_bugs/train.*[12]"):
    for i in range(20):
      source[i]
