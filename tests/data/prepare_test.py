# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sources written as TFDS datasets."""

import numpy as np
import pytest

from soupjax import data


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


def test_arrays_are_written_without_loss(tmp_path):
  source = small(6)
  data.write_tfds("written", {"train": source}, tmp_path)
  again = data.open_source("written", "train", data_dir=tmp_path)
  crop = data.Preprocess("")
  result = {
    (int(crop(e["image"]).min()), int(crop(e["image"]).max()), e["label"])
    for e in (again[i] for i in range(6))
  }
  assert result == {(i, i, i % 3) for i in range(6)}
  assert again.num_classes == 3


def test_writing_needs_one_list_of_classes(tmp_path):
  with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
    data.write_tfds("x", {"a": small(6), "b": small(6, 2)}, tmp_path)
  with pytest.raises(ValueError, match="same classes"):
    data.write_tfds("x", {}, tmp_path)
