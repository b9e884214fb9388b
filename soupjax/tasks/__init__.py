# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One readable function a job; the only place where packages meet."""

from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
