# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes trained adapters as PEFT files, with the leaf names of a library."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from soupjax import processes
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints.adapters import opened, peft_files
from soupjax.models import pretrained
from soupjax.models.pretrained import foreign, mappings, tables
from soupjax.soups.core import tree
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import config as settings
from soupjax.train import adapters, optimizers

PyTree = Any
_LAYOUTS = ("dense", "to_heads", "from_heads")


def family_of(config) -> str:
  """Returns the library whose leaf names the files use.

  That is `adapter.family` or, if it is empty, the library of `init.path`. A
  start from big_vision or from random weights gets timm's names.
  """
  if config.adapter.family:
    return config.adapter.family
  detected = ""
  if config.init.path:
    detected = settings.detect_start(config).family
  return "timm" if detected in ("", "big_vision") else detected


@dataclasses.dataclass(frozen=True)
class Base:
  """The base model's file for the adapters of a sweep.

  Attributes:
    path: path of the file: the shared start with the family's leaf names.
    rows: leaf in our names -> its names and layout in the family.
    content_hash: hash of the file's leaves, which every adapter records.
  """

  path: pathlib.Path
  rows: Mapping[str, tables.Row]
  content_hash: str


def base_of(config, model, workdir: pathlib.Path) -> Base:
  """Writes the shared start with a library's leaf names, unless it exists.

  Args:
    config: the sweep's config.
    model: the model of the start.
    workdir: directory of the sweep, with `initial/`; gets `base/`.

  Raises:
    ValueError: if the library has no name for a leaf, or an adapted kernel is
      not that of a linear layer there.
  """
  family = family_of(config)
  path = workdir / "base" / "model.safetensors"
  params = open_lib.load_params(workdir / "initial")
  kernels = foreign.unstacked(settings.adapter_of(config).kernels(params))
  if jax.process_index() == 0:
    # Several jobs may train members of the sweep at the same time.
    with workdir_lib.waiting(workdir / ".base.lock"):
      if not path.exists():
        path.parent.mkdir(exist_ok=True)
        pretrained.save_exported(path, params, model, family)
  processes.barrier("wrote the base")
  leaves = foreign.unstacked(tree.flatten(params)[0])
  rows = foreign.rows_to_write(mappings.FAMILIES[family], leaves)
  for kernel in kernels:
    if rows[kernel].layout not in _LAYOUTS:
      raise ValueError(
        f"adapter.targets matches {kernel!r}, which is not a linear layer in "
        f"{family!r}: change adapter.targets."
      )
  recorded = opened.hash_of(open_lib.open_ingredient(path))
  return Base(path, rows, recorded or "")


def write(
  path: pathlib.Path, params: PyTree, config, base: Base, **sidecars: Any
) -> None:
  """Writes the trained leaves as a PEFT adapter, unless it exists.

  Args:
    path: the folder to create.
    params: the model's parameters, with the leaves of the adapter.
    config: the member's config.
    base: from `base_of`.
    **sidecars: as for `peft_files.write`; `hyperparameters` also gets the hash
      of the base.
  """
  if path.exists():
    return
  adapter = settings.adapter_of(config)
  host = jax.tree.map(np.asarray, params)
  leaves = foreign.unstacked(tree.flatten(host)[0])
  trained, _ = optimizers.split(host, settings.frozen(config))
  names = foreign.unstacked(
    {k: v for k, v in tree.flatten(trained)[0].items() if v is not None}
  )
  modules, whole = _grouped(adapter, leaves, names, base.rows)
  named = dict(whole)
  ranks: dict[str, int] = {}
  inputs = [m for m, parts in modules.items() if parts.scales_inputs]
  for module, parts in modules.items():
    if adapter.kind == "ia3":
      shape = (1, -1) if parts.scales_inputs else (-1, 1)
      named[f"{module}.ia3_l"] = _vector(parts).reshape(shape)
    else:
      a, b = _factors(parts)
      named[f"{module}.lora_A.weight"] = a
      named[f"{module}.lora_B.weight"] = b
      ranks[module] = len(a)
  content = {
    "peft_type": adapter.kind.upper(),
    "base_model_name_or_path": str(base.path),
    "target_modules": sorted(modules),
    "modules_to_save": sorted({k.rpartition(".")[0] for k in whole}) or None,
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  if adapter.kind == "ia3":
    content["feedforward_modules"] = sorted(inputs)
  else:
    others = {f"^{m}": r for m, r in ranks.items() if r != adapter.rank}
    content |= {
      "r": adapter.rank,
      "lora_alpha": adapter.alpha,
      "rank_pattern": others,
      "alpha_pattern": {k: adapter.scale * r for k, r in others.items()},
    }
  sidecars.setdefault("hyperparameters", {})
  sidecars["hyperparameters"] |= {opened.BASE_HASH: base.content_hash}
  named = {peft_files.PREFIX + k: v for k, v in named.items()}
  path.parent.mkdir(exist_ok=True)
  peft_files.write(path, named, content, **sidecars)


@dataclasses.dataclass
class _Parts:
  """The adapted parts of one weight, such as queries and values of a joint QKV.

  Attributes:
    count: number of equal parts in the weight, adapted or not.
    scales_inputs: whether IA3 scales the weight's inputs.
    values: index of the part -> leaves of its adapter.
  """

  count: int
  scales_inputs: bool
  values: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)


def _grouped(adapter, leaves, names, rows):
  """Returns module -> adapted parts, and name -> other trained leaf."""
  modules: dict[str, _Parts] = {}
  whole: dict[str, np.ndarray] = {}
  first, *_ = adapter.leaves_of("")
  for leaf in names:
    kernel = leaf.removesuffix(first)
    if kernel != leaf:
      row = rows[kernel]
      module = row.names[0].removesuffix(".weight")
      part = _Parts(row.part[1], adapters.scales_inputs(kernel))
      modules.setdefault(module, part).values[row.part[0]] = [
        leaves[name] for name in adapter.leaves_of(kernel)
      ]
    elif not leaf.endswith(adapter.leaves_of("")):
      row = rows[leaf]
      value = tables.LAYOUTS[row.layout].write(leaves[leaf])
      whole[row.names[0]] = np.ascontiguousarray(value)
  return modules, whole


def _factors(parts: _Parts) -> tuple[np.ndarray, np.ndarray]:
  """Joins the factors of parts of one weight, such as queries and values.

  The joint rank is the sum of the parts' ranks. The outputs of parts that are
  not adapted get zeros.

  Returns:
    PEFT's lora_A (rank, inputs) and lora_B (outputs, rank).
  """
  a = np.concatenate([values[0].T for values in parts.values.values()])
  size = next(iter(parts.values.values()))[1].shape[1]
  b, column = np.zeros((parts.count * size, len(a)), a.dtype), 0
  for k, (_, right) in parts.values.items():
    b[k * size : (k + 1) * size, column : column + len(right)] = right.T
    column += len(right)
  return np.ascontiguousarray(a), b


def _vector(parts: _Parts) -> np.ndarray:
  """Joins the vectors of parts of one weight, with ones for the other parts."""
  size = next(iter(parts.values.values()))[0].size
  vector = np.ones(parts.count * size, np.float32)
  for k, (values,) in parts.values.items():
    vector[k * size : (k + 1) * size] = values
  return vector
