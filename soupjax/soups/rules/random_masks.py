# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Random masks that depend on seed, leaf, model and place, and nothing else.

Every element has its own number, made from its place in the leaf by Threefry
(Salmon et al., 2011, doi 10.1145/2063384.2063405), so that blocks, threads and
meshes cannot matter.
"""

from collections.abc import Sequence
import hashlib

import jax
from jax.extend import random
import numpy as np


def keys(seed: int, leaf: str, names: Sequence[str]) -> np.ndarray:
  """Returns a key for every ingredient, (K, 2) uint32.

  Args:
    seed: of the rule.
    leaf: its name.
    names: of the ingredients; their order does not matter.
  """
  digests = [
    hashlib.sha256(f"{seed}\0{leaf}\0{name}".encode()).digest()[:8]
    for name in names
  ]
  return np.frombuffer(b"".join(digests), "<u4").reshape(len(names), 2)


def chosen(key: jax.Array, place: jax.Array, share: jax.Array) -> jax.Array:
  """Chooses elements independently, each with its probability.

  Args:
    key: (2,) uint32.
    place: (2, ...) uint32, low and high word.
    share: probability in [0, 1], float32; one, or one an element.

  Returns:
    A mask of shape (...).
  """
  bits = random.threefry_2x32(key, place)[0] >> np.uint32(1)
  # A power of two: exact, and 1 is above all bits.
  return bits < (share * np.float32(2**31)).astype(np.uint32)
