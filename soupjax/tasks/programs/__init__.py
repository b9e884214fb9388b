# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of tasks: memory, arithmetic and communication."""
