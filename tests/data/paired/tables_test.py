# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images that CSV files list."""

import pickle

import helpers
import numpy as np
import pytest

from soupjax import data
from soupjax.data import paired


def write(folder, name, text):
  """Writes a CSV file, and images 0.jpg to 7.jpg beside it."""
  (folder / "images").mkdir(exist_ok=True)
  for k in range(8):
    (folder / f"images/{k}.jpg").write_bytes(helpers.encoded_image(k))
  (folder / f"{name}.csv").write_text(text)


def rows(*fields, header="path,label"):
  lines = [f"images/{k}.jpg,{field}" for k, field in enumerate(fields)]
  return "\n".join([header, *lines, ""])


@pytest.fixture
def place(tmp_path):
  write(tmp_path, "train", "\ufeff" + rows("cat", "ant", "cat", "bee", "ant"))
  write(tmp_path, "val", rows("bee", "bee"))
  text = rows("an ant", '"a cat,\nasleep"', "an ant", header="path,caption")
  write(tmp_path, "captions", text)
  return tmp_path


def test_classes_are_numbered_over_all_splits(place):
  train = data.open_source(f"csv:{place}", "train")
  assert train.class_names == ("ant", "bee", "cat")
  examples = [train[k] for k in range(5)]
  assert [e["label"] for e in examples] == [2, 0, 2, 1, 0]
  assert [e["image"] for e in examples] == [
    helpers.encoded_image(k) for k in range(5)
  ]
  assert train.name == f"{place.name}/train" and train.captions == ()
  assert train.describe(1) == f"{place}/train.csv, line 3 (images/1.jpg)"
  val = data.open_source(f"csv:{place}", "val")
  assert val.num_classes == 3 and val.label(1) == 1
  # A file by itself has the classes that are in it.
  alone = data.open_source(f"csv:{place}/val.csv", "all[:1]")
  assert alone.class_names == ("bee",) and len(alone) == 1
  again = pickle.loads(pickle.dumps(train))
  assert again[4] == train[4]
  with pytest.raises(ValueError, match="no split 'tran'.*'train'"):
    data.open_source(f"csv:{place}", "tran")


def test_numbers_are_the_numbers_of_classes(tmp_path):
  write(tmp_path, "train", rows("3", "0", "10"))
  source = data.open_source(f"csv:{tmp_path}/train.csv", "all")
  assert source.num_classes == 11 and source.class_names is None
  assert [source.label(k) for k in range(3)] == [3, 0, 10]


def test_captions_are_labels_on_request(place):
  source = data.open_source(f"csv:{place}", "captions")
  assert source.captions == ("an ant", "a cat,\nasleep")
  part = data.subset(source, [1, 2], "part")
  by_caption = paired.by_caption(part)
  assert by_caption[0] == {"image": helpers.encoded_image(1), "label": 1}
  assert by_caption.label(1) == 0 and by_caption.num_classes == 2
  with pytest.raises(ValueError, match="captions.csv, line 5.*no class"):
    source.label(2)


def test_batches_are_the_same_on_any_hosts_and_after_a_restart(place):
  source = data.open_source(f"csv:{place}", "train")

  def loader(**kwargs):
    return data.train_loader(
      source, batch_size=4, seed=0, preprocess="resize(8)|flip_lr", **kwargs
    )

  whole = loader()
  first = [next(whole) for _ in range(3)]
  state = first and whole.get_state()
  rest = next(whole)
  whole.close()
  for p in range(2):
    half = loader(process_index=p, process_count=2)
    half.set_state(state)
    batch = next(half)
    half.close()
    for key in ("images", "labels"):
      np.testing.assert_array_equal(batch[key], rest[key][2 * p : 2 * p + 2])


@pytest.mark.parametrize(
  "text, message",
  [
    (
      "images/0.jpg,cat\n",
      "first line of .*train.csv is 'images/0.jpg', 'cat'",
    ),
    ("", "first line of .*train.csv is : it must name"),
    ("path,name\nimages/0.jpg,cat\n", "'path', and 'label' or 'caption'"),
    ("path,label,label\nimages/0.jpg,a,b\n", "train.csv has 'label' twice"),
    (rows("cat", ""), "train.csv, line 3 has no label"),
    (rows("a", " ", header="path,caption"), "line 3 has no caption"),
    ("path,label\n,cat\n", "line 2 has no path"),
    (rows("cat") + "images/9.jpg,cat\n", "line 3: there is no image .*9.jpg"),
    ("path,label\nphotos/0.jpg,cat\n", "line 2: there is no image .*photos/0"),
    (rows("a", "b, c", header="path,caption"), "line 3 .*2 columns"),
    (rows("cat") + "images/1.jpg\n", "line 3 .*2 columns"),
    (rows("1", "-1"), "line 3 has the label '-1'"),
    (rows("1", "2.0"), "line 3 has the label '2.0'"),
    (rows("Bee", "cat"), "class 'Bee' and .* a class 'bee'"),
    ("path,label\n", "train is empty"),
    (rows('"cat'), "Cannot read .*train.csv as CSV"),
  ],
)
def test_rows_that_cannot_be_read_are_named(text, message, tmp_path):
  write(tmp_path, "val", rows("bee") if "Bee" in text else "path,label\n")
  write(tmp_path, "train", text)
  with pytest.raises(ValueError, match=message):
    data.open_source(f"csv:{tmp_path}", "train")


def test_a_folder_without_tables_is_named(tmp_path):
  with pytest.raises(ValueError, match="a folder without .csv files"):
    data.open_source(f"csv:{tmp_path}", "train")
