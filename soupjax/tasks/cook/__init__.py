# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of a folder of checkpoints: inputs, evaluation, soups, results."""
