# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PEFT adapters (LoRA, DoRA, IA3): opened as full models, averaged, written."""

from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
