# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Merge rules: pure functions of the same block of every ingredient.

A rule sees a stack of K blocks, one for each ingredient, and perhaps the block
of a base model. It does not know where they come from or which leaf they belong
to, so one rule serves files, meshes and blocks of any size.

A function that returns a `Rule` can be named in a config once it is decorated
with `register`, or by its import path.
"""

from soupjax.soups.rules.arithmetic import task_arithmetic as task_arithmetic
from soupjax.soups.rules.base import RULES as RULES
from soupjax.soups.rules.base import Rule as Rule
from soupjax.soups.rules.consensus import sce as sce
from soupjax.soups.rules.consensus import ties as ties
from soupjax.soups.rules.geometry import geometric_median as geometric_median
from soupjax.soups.rules.geometry import karcher as karcher
from soupjax.soups.rules.geometry import model_stock as model_stock
from soupjax.soups.rules.geometry import slerp as slerp
from soupjax.soups.rules.informed import fisher as fisher
from soupjax.soups.rules.informed import regmean as regmean
from soupjax.soups.rules.linear import lerp as lerp
from soupjax.soups.rules.linear import linear as linear
from soupjax.soups.rules.linear import schedule as schedule
from soupjax.soups.rules.sparse import breadcrumbs as breadcrumbs
from soupjax.soups.rules.sparse import dare as dare
from soupjax.soups.rules.sparse import della as della
from soupjax.soups.rules.spectral import iso_c as iso_c
from soupjax.soups.rules.spectral import tsv as tsv

register = RULES.register
