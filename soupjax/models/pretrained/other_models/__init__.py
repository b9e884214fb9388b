# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Names and options of models other than ViTs."""
