# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups and greedy ensembles."""

from soupjax.soups.greedy.decisions import Trial as Trial
