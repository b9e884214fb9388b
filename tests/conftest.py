# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: eight fake devices, no silent broadcasting."""

import os
import shutil
import tempfile

# A directory that all workers and all processes that tests start share: what
# one has compiled, and what helpers.py trains once. Set before jax is imported.
_SHARED = None
if "SOUPJAX_TESTS_SHARED" not in os.environ:
  _SHARED = tempfile.mkdtemp(prefix="soupjax_tests_")
  os.environ |= {
    "SOUPJAX_TESTS_SHARED": _SHARED,
    "JAX_COMPILATION_CACHE_DIR": os.path.join(_SHARED, "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }

from absl import flags  # noqa: E402
import jax  # noqa: E402

# Before anything starts the backend.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Grain reads absl flags, which nobody parses under pytest.
if not flags.FLAGS.is_parsed():
  flags.FLAGS.mark_as_parsed()


def pytest_unconfigure():
  """Removes the shared directory, in the process that made it."""
  if _SHARED:
    shutil.rmtree(_SHARED, ignore_errors=True)
