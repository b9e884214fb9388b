# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: a merge rule over many ingredients, block by block."""
