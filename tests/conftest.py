# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests, such as eight fake devices, and shared fixtures."""

import os
import pathlib
import shutil
import signal
import tempfile

# A directory shared by all workers and by the processes that tests start, for
# compiled programs and for the models that helpers.py trains once. Variables
# that refer to it must be set before jax is imported.
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
import pytest  # noqa: E402
from stores import bucket, google_bucket, google_store, store  # noqa: E402, F401

HERE = pathlib.Path(__file__).parent
# If a shell starts the tests in the background, they ignore Ctrl-C, and so do
# the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The slowest files run first, so that no core waits for them at the end.
LONG = (
  "tasks/main_job_test.py",
  "tasks/finetune/loop_test.py",
  "docs_commands_test.py",
  "tasks/cook/resume_test.py",
  "notebooks_test.py",
  "tasks/finetune/resume_test.py",
  "tasks/cook/run_test.py",
  "tasks/cook/infer_test.py",
  "doctest_test.py",
  "checkpoints/mix_test.py",
  "models/pretrained/convert_torch_test.py",
  "soups/rules/every_rule_test.py",
)
# Tests in which compilation takes longer than running the programs. Merge rules
# and their engine are not among them: tests must see the bits that users get.
SLOW_TO_COMPILE = (
  "analysis/",
  "docs_commands_test.py",
  "evaluators/",
  "models/",
  "soups/learned/",
  "tasks/",
  "train/",
)

# These must be set before anything starts the backend.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Grain reads absl flags, which pytest does not parse.
if not flags.FLAGS.is_parsed():
  flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
  """Runs the slowest files first."""
  order = {HERE / name: k for k, name in enumerate(LONG)}
  items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="module", autouse=True)
def compile_fast(request):
  """Compiles the files in `SLOW_TO_COMPILE` without most optimizations."""
  path = request.path.relative_to(HERE).as_posix()
  if path.startswith(SLOW_TO_COMPILE):
    jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def pytest_unconfigure():
  """Removes the shared directory, in the process that made it."""
  if _SHARED:
    shutil.rmtree(_SHARED, ignore_errors=True)
