# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Ingredients, trees of leaves, and the arithmetic that all recipes share."""
