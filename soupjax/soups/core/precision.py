# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Leaves of 64 bits, which JAX cuts to 32 unless jax_enable_x64 is set.

Their soups are computed with all bits, on the CPU, and stay on the host as
NumPy arrays if JAX would cut them.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
from typing import Any, TypeVar

import jax
import numpy as np

Result = TypeVar("Result")


def is_cut(leaf: Any) -> bool:
  """Whether JAX would store a leaf, given as array or spec, in fewer bits."""
  return jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype


@contextlib.contextmanager
def kept(leaves: Iterable[Any]) -> Iterator[None]:
  """Lets JAX compute with all bits of these leaves, in this thread.

  Has no effect if JAX does so anyway. After the block, pass 64-bit results
  through `placed`.

  Args:
    leaves: arrays or specs.
  """
  if not any(map(is_cut, leaves)):
    yield
    return
  # On accelerators, 64-bit arithmetic is slow or missing.
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.enable_x64(True), jax.default_device(cpu):
    yield


def placed(leaf: Any, sharding: Any = None) -> Any:
  """Puts a float leaf on devices, or on the host if JAX would cut it."""
  if is_cut(leaf):
    return np.asarray(leaf)
  if sharding is not None:
    return jax.device_put(leaf, sharding)
  return jax.numpy.asarray(leaf)


def inherited(function: Callable[..., Result]) -> Callable[..., Result]:
  """Makes a function run in the caller's x64 mode, even in another thread.

  The context manager `jax.enable_x64` applies to one thread only.
  """
  enabled = jax.config.jax_enable_x64

  @functools.wraps(function)
  def run(*args, **kwargs):
    if jax.config.jax_enable_x64 == enabled:
      return function(*args, **kwargs)
    with jax.enable_x64(enabled):
      return function(*args, **kwargs)

  return run
