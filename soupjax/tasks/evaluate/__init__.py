# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of any checkpoints, or of their saved logits, without soups."""
