# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training: optimizers, schedules, losses, the step, and linear probes."""

from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
