# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches on a folder of checkpoints: tasks with heads, methods, results."""
