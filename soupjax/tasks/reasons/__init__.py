# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reasons of a diagnosis on request: planes, pairs."""
