# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
from PIL import Image
import pytest

from soupjax import data
from soupjax.data import corruptions


def image(index, side=96):
  rng = np.random.default_rng(index)
  small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
  return np.asarray(small.resize((side + 20, side), Image.BILINEAR))


def test_the_same_image_always_gets_the_same_word(tmp_path):
  attacked = [corruptions.typographic(image(k), "cat+dog") for k in range(4)]
  again = [corruptions.typographic(image(k), ["cat", "dog"]) for k in range(4)]
  np.testing.assert_array_equal(attacked, again)
  (tmp_path / "words.txt").write_text("cat\n\n dog\n")
  from_file = corruptions.typographic(image(0), str(tmp_path / "words.txt"))
  np.testing.assert_array_equal(attacked[0], from_file)
  changed = [a != image(k) for k, a in enumerate(attacked)]
  # Words are at other places on other images.
  boxes = {tuple(np.argwhere(c.any(-1)).min(0)) for c in changed}
  assert len(boxes) == 4
  for mask in changed:
    assert 0.001 < mask.any(-1).mean() < 0.3
  other = corruptions.typographic(image(0), "cat+dog", seed=1)
  assert (other != attacked[0]).any()


def test_small_images_pictures_and_long_words():
  tiny = np.zeros((8, 8, 3), np.uint8)
  assert corruptions.typographic(tiny, "incomprehensible").shape == (8, 8, 3)
  picture = Image.fromarray(image(0))
  np.testing.assert_array_equal(
    corruptions.typographic(picture, "cat"),
    corruptions.typographic(image(0), "cat"),
  )


def test_it_is_an_image_op_without_random_numbers():
  prepared = data.Preprocess('typographic("iPod+cat")|resize(32)')
  assert not prepared.random_ops
  assert prepared(image(0)).shape == (32, 32, 3)


@pytest.mark.parametrize(
  "words,seed,message",
  [
    ("", 0, r"typographic\(''"),
    ([], 0, r"typographic\(\[\]"),
    ("cat", -1, "seed=-1"),
    ("cat", True, "seed=True"),
  ],
)
def test_invalid_arguments(words, seed, message):
  with pytest.raises(ValueError, match=message):
    corruptions.typographic(image(0), words, seed)
