# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The core: ingredients, merge rules and recipes. jax and numpy only."""
