# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Optional analyses of a diagnosis: planes, pairs, ensembles and more."""
