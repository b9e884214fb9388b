# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning one model, or all members of a sweep from one start."""
