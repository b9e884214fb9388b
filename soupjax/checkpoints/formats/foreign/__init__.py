# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads Flax MessagePack, torch DCP and ONNX files, and writes torch files."""
