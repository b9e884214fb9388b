# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Records of a run's inputs: checkpoints, datasets, classes and heads."""

from collections.abc import Iterable, Mapping
import glob
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

import jax
import ml_collections

from soupjax import buckets, files, processes
from soupjax import config as config_lib
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints import replaceable
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import inputs, window
from soupjax.tasks.cook.inputs import CookInputs, Inputs


def check_workdir(opened: Inputs, path: str | os.PathLike | None) -> None:
  """Checks that results are not written into the folder of a checkpoint.

  Args:
    opened: the inputs.
    path: the directory of the run; None if none was given.

  Raises:
    ValueError: if the directory is in the folder of a checkpoint. The message
      names the checkpoint.
  """
  if path:
    given = [*opened.ingredients, *([opened.initial] if opened.initial else [])]
    given += itertools.chain(*getattr(opened, "along", {}).values())
    replaceable.check_outside(os.path.expanduser(path), given)


def check_unchanged(
  config: ml_collections.ConfigDict,
  opened: Inputs,
  record: pathlib.Path,
  more: Mapping[str, Any] | None = None,
) -> None:
  """Records the inputs at the first start, and compares them at later ones.

  Args:
    config: the user's config, before missing values are filled in.
    opened: the inputs, opened at this start.
    record: path of the record, in the directory of the run.
    more: name -> JSON value of further inputs.

  Raises:
    ValueError: if inputs have changed. The message names them.
  """
  ingredients = [*opened.ingredients, *filter(None, [opened.initial])]
  present = {i.name: identity(i.path) for i in ingredients}
  present |= {
    f"the base of {i.name}": identity(i.base.path)
    for i in ingredients
    if i.base
  }
  present |= {
    f"the set {name}": [
      *(source.name, len(source), source.num_classes),
      *source.identity(),
    ]
    for name, source in opened.sets.items()
  }
  present |= {
    f"the classes of {name}": space.record()
    for name, space in opened.spaces.items()
  }
  present |= {f"the operations of {k}": ops for k, ops in opened.ops.items()}
  present |= {
    f"names or templates of {k}": head.record()
    for k, head in opened.heads.items()
  }
  present |= more or {}
  recorded = workdir_lib.read(record)
  if recorded is None:
    if jax.process_index() == 0:
      record_of = cook_config.record_of(config)
      values = {"config": config_lib.to_dict(record_of), "inputs": present}
      files.write_json(record, values | {"files": _matches(config)})
    return
  if changes := changed(recorded.get("inputs", recorded), present):
    raise ValueError(
      f"{record.parent} holds results of other checkpoints or images: "
      f"{', '.join(changes[:5])}{', ...' * (len(changes) > 5)}. Choose another "
      "--workdir."
    )


def along_files(opened: CookInputs) -> dict[str, list[Any]]:
  """Returns description -> identity of the checkpoints of `cook.window`."""
  return {
    f"{checkpoint.name} along the run {name}".rstrip(): identity(
      str(checkpoint.path)
    )
    for name, run in opened.along.items()
    for checkpoint in run
  }


def is_finished(
  record: pathlib.Path,
  config: ml_collections.ConfigDict,
  outputs: Iterable[str],
  more: Mapping[str, Any] | None = None,
) -> bool:
  """Whether a run with this config and unchanged files has finished.

  Compares paths, sizes and modification times of files, as the first process
  sees them. Opens neither checkpoints nor data.

  Args:
    record: path of the record of `check_unchanged`.
    config: as in `check_unchanged`.
    outputs: names of files that a finished run has, beside the record.
    more: as in `check_unchanged`.
  """
  finished = False
  if processes.is_first() and record.exists():
    recorded = files.read_json(record)
    values = config_lib.to_dict(cook_config.record_of(config))
    finished = (
      recorded.get("config") == values
      and recorded.get("files") == _matches(config)
      and (more or {}).items() <= recorded["inputs"].items()
      and all((record.parent / name).exists() for name in outputs)
    )
  return workdir_lib.agreed(finished)


def _matches(config) -> list[list[Any]]:
  """Returns the identities of the paths of all checkpoints of a config."""
  found = matches([*inputs.patterns(config), config.initial, config.base])
  along = config.cook.get("window", "")
  for path in matches(inputs.patterns(config)) if along else ():
    found += matches(window.patterns(along, path))
  return [identity(path) for path in dict.fromkeys(found)]


def matches(given: Iterable[str]) -> list[str]:
  """Returns all paths that match any of the patterns, sorted."""
  paths: list[str] = []
  for pattern in given:
    if buckets.is_remote(pattern):
      paths += open_lib.matches(pattern)
    else:
      paths += glob.glob(os.path.expanduser(pattern), recursive=True)
  return sorted(paths)


def changed(
  recorded: Mapping[str, Any], present: Mapping[str, Any]
) -> list[str]:
  """Describes the inputs that differ between two starts, one text each."""
  changes = []
  for name in sorted({*recorded, *present}):
    if name not in recorded:
      changes.append(f"{name} is new")
    elif name not in present:
      changes.append(f"{name} is gone")
    elif recorded[name] != present[name]:
      changes.append(f"{name} changed")
  return changes


def identity(path: str) -> list[Any]:
  """Returns a path, and the size and modification time of its files.

  In a bucket, the versions of objects take the place of times.
  """
  if buckets.is_remote(path):
    if not buckets.is_directory(path):
      return [path, *buckets.identity(path)]
    text = json.dumps(buckets.objects(path)).encode()
    return [path, hashlib.sha256(text).hexdigest()]
  root = pathlib.Path(path)
  # Overwriting a file does not change the time of its directory.
  contents = [p for p in root.rglob("*") if p.is_file()]
  stats = [p.stat() for p in (contents if root.is_dir() else [root])]
  size = sum(stat.st_size for stat in stats)
  return [path, size, max((stat.st_mtime_ns for stat in stats), default=0)]
