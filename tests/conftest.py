# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: eight fake devices, no silent broadcasting."""

import os
import shutil
import tempfile

# All workers and all processes that tests start share what one has compiled.
# In the environment before jax is imported; one directory for each run of tests.
_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix="soupjax_tests_")
  os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": _CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
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
  """Removes the shared compilations: here, where they were begun."""
  if _CACHE:
    shutil.rmtree(_CACHE, ignore_errors=True)
