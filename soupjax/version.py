# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The version, alone, so that building a wheel imports nothing else."""

__version__ = "0.1.0"
