# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np

from soupjax.soups.rules import random_masks


def place(count, first=0):
  return np.stack([first + np.arange(count), np.zeros(count)]).astype("u4")


def test_masks_are_those_of_version_0_1():
  # Bits of a Threefry-2x32 of 20 rounds that was written out by hand.
  (key,) = random_masks.keys(3, "w", ["m0"])
  mask = random_masks.random_mask(key, place(64), np.float32(0.5))
  assert np.packbits(mask).tobytes().hex() == "e87cd62ae957b13c"


def test_an_element_has_its_bit_in_blocks_of_any_size():
  (key,) = random_masks.keys(0, "w", ["m0"])
  chosen = jax.jit(random_masks.random_mask)
  whole = chosen(key, place(63), np.float32(0.3))
  parts = [chosen(key, place(7, i), np.float32(0.3)) for i in range(0, 63, 7)]
  assert np.array_equal(np.concatenate(parts), whole)
  square = chosen(key, place(63).reshape(2, 9, 7), np.float32(0.3))
  assert np.array_equal(square.reshape(-1), whole)


def test_shares_of_nothing_and_of_all():
  (key,) = random_masks.keys(0, "w", ["m0"])
  share = np.repeat(np.float32([0, 1]), 50)
  mask = random_masks.random_mask(key, place(100), share)
  assert np.array_equal(mask, share == 1)
