# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The only package that touches files of weights."""
