# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Random masks that depend on seed, leaf, model and index alone.

Every element has its own random number, made from its index in the leaf by
Threefry (Salmon et al., 2011, doi 10.1145/2063384.2063405), so that masks do
not depend on blocks, threads or meshes.
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
    leaf: name of the leaf.
    names: of the ingredients; a key does not depend on their order.
  """
  digests = [
    hashlib.sha256(f"{seed}\0{leaf}\0{name}".encode()).digest()[:8]
    for name in names
  ]
  return np.frombuffer(b"".join(digests), "<u4").reshape(len(names), 2)


def random_mask(
  key: jax.Array, index: jax.Array, share: jax.Array
) -> jax.Array:
  """Draws independent elements of a mask, each with its probability.

  Args:
    key: (2,) uint32.
    index: (2, ...) uint32, low and high word.
    share: probability in [0, 1], float32; one, or one per element.

  Returns:
    A mask of shape (...).
  """
  bits = random.threefry_2x32(key, index)[0] >> np.uint32(1)
  # Exact, since the factor is a power of two; share 1 exceeds all bits.
  return bits < (share * np.float32(2**31)).astype(np.uint32)
