# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The version, in its own module so that building a wheel imports no other."""

__version__ = "0.1.0"
