# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training: optimizers, schedules, losses, the step, and linear probes."""
