# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The tasks of the command line, which combine the other subpackages."""

from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
