# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches for coefficients on held-out data: `sj.search`.

Every search takes `evaluate(params)`, which returns one score, or a mapping
from names of datasets to scores. Higher is better, so negate losses (`diwa` and
`ratatouille` take `mode="min"` instead). The scores decide the result, so
`evaluate` should use held-out data only. Evaluate `Search.params` on the test
set afterwards, once. (`wise_ft_curve` may also record scores on other datasets;
it chooses alpha on the dataset named by `choose_on`.) If `evaluate` has a
method `ahead(models)`, this is called with the remaining candidates of a grid,
as key -> function that returns the model, so that it can begin with them.
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
from soupjax.soups.search.tune import tune as tune
