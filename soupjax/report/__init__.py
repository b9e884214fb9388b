# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, figures and one self-contained HTML page out of a run's results."""

from soupjax.report.diagnosis import diagnosis_figure as diagnosis_figure
from soupjax.report.figures import accuracy_plane as accuracy_plane
from soupjax.report.figures import coefficients as coefficients
from soupjax.report.figures import greedy_trajectory as greedy_trajectory
from soupjax.report.figures import wise_ft_curve as wise_ft_curve
from soupjax.report.page import write_report as write_report
from soupjax.report.results import Results as Results
from soupjax.report.results import read_results as read_results
from soupjax.report.search import search_figure as search_figure
from soupjax.report.search import search_table as search_table
from soupjax.report.tables import clopper_pearson as clopper_pearson
from soupjax.report.tables import results_table as results_table
