# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Formats of other frameworks: Flax MessagePack, torch DCP, ONNX, torch out."""
