# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT (LoRA, DoRA, IA3) as models of their own, in and out."""

from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
