# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates checkpoints or saved logits and compares them with a reference."""

from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import time
from typing import Any

import ml_collections

from soupjax import files, processes, registry, report
from soupjax.tasks import records
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import evaluate, inputs, needs
from soupjax.tasks.evaluate import config as evaluate_config
from soupjax.tasks.evaluate import logits as logits_lib
from soupjax.tasks.evaluate import transfer

_RECORD = "evaluated_from.json"
_START = "pretrained"  # The name of the initial model.


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike | None,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Evaluates every model on every set; finished evaluations are skipped.

  Args:
    config: as in configs/evaluate.py.
    path: the directory of the run; docs/evaluate.md lists its files.
    dry_run: opens everything, prints the plan and stops.

  Returns:
    The path of the report; None after a dry run.

  Raises:
    ValueError: if the config is invalid, or models and sets do not fit
      together.
  """
  workdir = files.path_of(path) if path else None
  if not dry_run and _print_finished(config, workdir):
    return workdir / "report.html"
  opened, by_model = _open(config)
  datasets = [] if by_model else transfer.open_datasets(opened.config)
  models = _models(opened, by_model)
  reference = config.reference or _default(models)
  if reference not in models:
    raise ValueError(
      f"reference={config.reference!r} is not a model"
      f"{registry.suggestion(config.reference, models)}"
    )
  records.check_workdir(opened, workdir)
  if processes.is_first():
    print(plan(opened, list(models), reference, datasets))
  if dry_run:
    if not by_model:
      needed = needs.evaluation(opened, path)
      if processes.is_first():
        print(needed)
    return None
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      record = cook_config.record_of(opened.config)
      workdir_lib.open_workdir(workdir, record)
      stack.enter_context(workdir_lib.locked(workdir))
    processes.check_shared(workdir)
    more = {f"the dataset {d.name}": d.record() for d in datasets}
    records.check_unchanged(config, opened, workdir / _RECORD, more)
    probes = transfer.Transfer(opened, datasets)
    if by_model:
      evaluations = logits_lib.FromFiles(opened, workdir, by_model)
    else:
      evaluations = logits_lib.Evaluations(opened, workdir, probes)
    return _run(opened, models, evaluations, probes, reference, workdir)


def _open(config):
  """Opens checkpoints or logits; returns files of logits by model and set."""
  if not logits_lib.are_given(config):
    evaluate_config.check(config)
    opened = inputs.open_inputs(evaluate_config.with_dataset(config))
    named = evaluate_config.plainly_named(config, opened.ingredients)
    return dataclasses.replace(opened, ingredients=named), {}
  given = [key for key in ("tests", "save_logits", "transfer") if config[key]]
  if given:
    key = given[0]
    raise ValueError(
      f"{config.ingredients} are logits, and the files determine the sets: "
      f"leave --config.{key} out."
    )
  return logits_lib.open_inputs(config)


def _models(opened, by_model) -> dict[str, tuple[str, Any]]:
  """Returns name -> (kind of the model, function that loads it)."""
  loads = {
    name: functools.partial(logits_lib.read, by_set)
    for name, by_set in by_model.items()
  }
  if not by_model:
    start = {_START: opened.initial} if opened.initial else {}
    loads = {
      name: functools.partial(model.load, sharding=opened.place)
      for name, model in {
        **start,
        **{i.name: i for i in opened.ingredients},
      }.items()
    }
  return {
    name: ("pretrained" if name == _START else "model", loads[name])
    for name in sorted(loads, key=lambda name: name != _START)
  }


def _default(models) -> str:
  """Returns the first model that is not the initial one."""
  return next((name for name in models if name != _START), _START)


def _run(opened, models, evaluations, probes, reference, workdir):
  """Evaluates models, writes the results and returns the report's path."""
  began, config, results = time.monotonic(), opened.config, {}
  progress = evaluate.progress(opened, "evaluate", len(models))
  for name, (kind, load) in models.items():
    values = evaluations.evaluate(
      name, load, keep_logits=config.save_logits, progress=progress
    )
    results[name] = kind, values
    progress.step()
  if processes.is_first():
    differences = evaluations.differences(reference, results)
    evaluate.write_rows(
      workdir, evaluations, results, differences, more=probes.rows(results)
    )
    choices = evaluate.choices(opened)
    choices["protocols"] |= choices.pop("unseen")
    choices |= {"best": {}, "greedy": {}, "reference": reference}
    # No shifts unless configured: sets of probes are not shifts.
    choices["means"] = {report.SHIFTS: (), **evaluations.means()}
    files.write_json(workdir / "choices.json", choices)
    report.write_report(workdir)
    print(_table(workdir))
    print(f"{time.monotonic() - began:.0f} s in total. {_where(workdir)}")
  processes.barrier("evaluated")
  return workdir / "report.html"


def plan(
  opened: inputs.CookInputs,
  names: Sequence[str],
  reference: str,
  datasets: Sequence[transfer.Dataset],
) -> str:
  """Describes models, sets and the comparison, as text."""
  if opened.model is None:
    lines = [f"{len(names)} models from logits", *(f"  {n}" for n in names)]
    lines += opened.notes
  else:
    lines = needs.about_models(opened, "models")
    if opened.initial:
      lines.append(f"and the initial model: {opened.initial.path}")
  lines += needs.about_sets(opened)
  lines += [dataset.describe() for dataset in datasets]
  if opened.minival is None:
    lines.append("no minival: calibration without temperatures")
  lines.append(f"compared with: {reference}")
  if opened.config.save_logits:
    size = opened.logits_bytes / 1e6
    lines.append(f"logits/: {size:,.1f} MB")
  return "\n".join(lines)


def _table(workdir: pathlib.Path) -> str:
  return report.comparison_table(report.read_run(workdir))


def _where(workdir: pathlib.Path) -> str:
  return f"Report: {workdir / 'report.html'}"


def _print_finished(config, workdir: pathlib.Path) -> bool:
  """Prints the table and returns True if a run of these inputs has finished."""
  outputs = ("results.jsonl", "report.html")
  if not records.is_finished(workdir / _RECORD, config, outputs):
    return False
  if processes.is_first():
    print(_table(workdir))
    print(f"Finished before. {_where(workdir)}")
  return True
