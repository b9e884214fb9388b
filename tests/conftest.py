# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: eight fake devices, no silent broadcasting."""

from absl import flags
import jax

# Before anything starts the backend.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Grain reads absl flags, which nobody parses under pytest.
if not flags.FLAGS.is_parsed():
  flags.FLAGS.mark_as_parsed()
