# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learned soups: coefficients by gradient descent on held-out data."""
