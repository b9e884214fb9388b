# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches for coefficients on held-out data: `sj.search`.

Every search takes `evaluate(params)`, which returns one score, or a mapping
from names of datasets to scores; higher is better, so negate losses (`diwa` and
`ratatouille` take `mode="min"` instead). What `evaluate` looks at decides: give
it held-out data only. No search takes a test set; judge `Search.params` on that
afterwards, once. (A WiSE-FT curve may show other datasets too; its alpha is
chosen on the one that is named.)
"""

from soupjax.soups.search.candidates import Candidate as Candidate
from soupjax.soups.search.candidates import Search as Search
from soupjax.soups.search.candidates import (
  normalized_accuracy as normalized_accuracy,
)
from soupjax.soups.search.curves import analogy as analogy
from soupjax.soups.search.curves import task_scale as task_scale
from soupjax.soups.search.curves import wise_ft_curve as wise_ft_curve
from soupjax.soups.search.diwa import Pool as Pool
from soupjax.soups.search.diwa import diwa as diwa
from soupjax.soups.search.diwa import ratatouille as ratatouille
from soupjax.soups.search.interpolate import Blend as Blend
from soupjax.soups.search.paint import Sequential as Sequential
from soupjax.soups.search.paint import paint as paint
from soupjax.soups.search.paint import paint_parallel as paint_parallel
from soupjax.soups.search.paint import paint_sequential as paint_sequential
