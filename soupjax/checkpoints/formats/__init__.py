# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats, read leaf by leaf and written block by block."""
