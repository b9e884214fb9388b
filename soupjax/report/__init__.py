# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, figures and one self-contained HTML page of a run's results.

Names are imported on first use, so that the table of a finished run does not
import matplotlib.
"""

import importlib

_PUBLIC = {
  "accuracy_plane": "figures",
  "clopper_pearson": "tables",
  "coefficients": "heatmaps",
  "comparison_table": "comparison",
  "diagnosis_figure": "heatmaps",
  "greedy_trajectory": "figures",
  "KINDS": "results",
  "read_results": "results",
  "read_run": "results",
  "read_scores": "scores",
  "Results": "results",
  "SHIFTS": "results",
  "results_table": "tables",
  "scores_table": "scores",
  "search_figure": "searches",
  "tables_text": "searches",
  "wise_ft_curve": "figures",
  "write_report": "page",
  "write_scores": "scores",
  "write_search_report": "searches",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  if name in _PUBLIC:
    module = importlib.import_module(f"soupjax.report.{_PUBLIC[name]}")
    return getattr(module, name)
  raise AttributeError(f"module 'soupjax.report' has no attribute {name!r}")


def __dir__():
  return sorted({*globals(), *_PUBLIC})
