# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""HTML documents with interactive figures and tables."""
