# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of finished runs, such as those of several seeds."""

from collections.abc import Mapping, Sequence
import math
import os
import pathlib
from typing import Any

import jax
import ml_collections

from soupjax import config as config_lib
from soupjax import files
from soupjax.evaluators import statistics
from soupjax.report.results import Gain, Results, read_run
from soupjax.report.web import runs as runs_lib


def default_config() -> ml_collections.ConfigDict:
  """Returns all settings of this task."""
  c = ml_collections.ConfigDict()
  c.task = "report"
  c.out = "comparison.html"  # The page.
  return c


def run(
  config: ml_collections.ConfigDict,
  workdirs: str | None,
  *,
  dry_run: bool = False,
) -> Any:
  """Compares cooked runs on one page, and prints a table.

  Args:
    config: as in configs/report.py.
    workdirs: directories of finished runs, joined by commas. Nothing is
      written there.
    dry_run: reads the runs, prints their names by dataset, and stops.

  Returns:
    The path of the page; None after a dry run.

  Raises:
    ValueError: if a directory has no finished run that was evaluated on images,
      or is given twice; if runs on one dataset have different references; or
      if `config.out` is not the path of an .html file.
  """
  problems = config_lib.Problems(config)
  problems.expect("out", "a path that ends in .html", _is_page)
  problems.raise_if_any()
  paths = _paths(workdirs)
  runs = {name: read_run(path) for name, path in paths.items()}
  datasets: dict[str, dict[str, Results]] = {}
  for name, results in runs.items():
    datasets.setdefault(results.dataset, {})[name] = results
  for group in datasets.values():
    _check_references(group)
  if jax.process_index():
    return None
  if dry_run:
    for dataset, group in datasets.items():
      print(f"{dataset}: {', '.join(group)}")
    return None
  compared = {}
  for dataset, group in datasets.items():
    differing = _differing([paths[name] for name in group])
    note = runs_lib.about(group, differing)
    cells = runs_lib.compare_runs(group, _over_runs)
    compared[dataset] = group, cells, note
    print(f"{dataset}\n{runs_lib.table(cells, note)}\n")
  page = runs_lib.write_comparison(config.out, compared)
  print(f"Report: {page}")
  return page


def _is_page(path: str) -> bool:
  return path.endswith(".html") and not os.path.isdir(path)


def _paths(workdirs: str | None) -> dict[str, pathlib.Path]:
  """Returns name -> directory; uses whole paths if last parts are repeated."""
  texts = [text.strip() for text in (workdirs or "").split(",")]
  paths = [files.path_of(text) for text in texts if text]
  if not paths:
    raise ValueError("Give --workdir=A,B,C, the directories of finished runs.")
  seen = set()
  for path in paths:
    real_path = os.path.realpath(path)
    if real_path in seen:
      raise ValueError(f"--workdir has {path} twice: leave one out.")
    seen.add(real_path)
  names = [path.name for path in paths]
  if len(set(names)) < len(names):
    names = list(map(str, paths))
  return dict(zip(names, paths))


def _check_references(runs: Mapping[str, Results]) -> None:
  """Raises a ValueError if the runs have different references."""
  first, *others = runs
  for name in others:
    here, there = (runs[k].choices.reference for k in (name, first))
    if here != there:
      best = "its best ingredient"
      raise ValueError(
        f"{name} compares with {here or best}, but {first} with "
        f"{there or best}: give only cooked runs, or only evaluations with the "
        "same --config.reference."
      )


def _over_runs(gains: Sequence[float]) -> Gain:
  mean = statistics.over_seeds(gains)
  if mean.p is None:  # Gains are equal, such as of one model in all runs.
    return Gain(mean.value, math.nan, math.nan, None)
  return Gain(mean.value, mean.low, mean.high, mean.p)


def _differing(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns the dotted keys in which the recorded configs differ, sorted."""
  records = [path / "config.json" for path in paths]
  configs = [_flat(files.read_json(r)) for r in records if r.is_file()]
  keys = {key for values in configs for key in values}
  return sorted(
    key
    for key in keys
    if any(values.get(key) != configs[0].get(key) for values in configs)
  )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, Mapping):
    return {prefix: value}
  flat = {}
  for key, below in value.items():
    flat |= _flat(below, f"{prefix}.{key}" if prefix else str(key))
  return flat
