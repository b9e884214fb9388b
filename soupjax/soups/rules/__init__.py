# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Merge rules: pure functions of the same block of every ingredient.

A rule sees a stack of K blocks, one an ingredient, and perhaps the block of a
base model. It knows neither where they come from nor which leaf they belong to,
so that one rule serves files, meshes and blocks of any size.
"""

from soupjax.soups.rules.arithmetic import task_arithmetic as task_arithmetic
from soupjax.soups.rules.base import Rule as Rule
from soupjax.soups.rules.consensus import ties as ties
from soupjax.soups.rules.linear import lerp as lerp
from soupjax.soups.rules.linear import linear as linear
