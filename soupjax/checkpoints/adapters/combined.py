# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted means of adapters, written as adapters."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

import numpy as np

from soupjax.checkpoints import companions
from soupjax.checkpoints.adapters import opened, peft_files, targets
from soupjax.checkpoints.adapters.peft_config import AdapterConfig
from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Ingredient, check_unchanged
from soupjax.soups.rules import base as rule_base
from soupjax.version import __version__

# Settings that select modules by pattern; the result lists them by name.
_SELECTION = ("layers_to_transform", "layers_pattern", "exclude_modules")


@dataclasses.dataclass(frozen=True)
class AdapterMix:
  """The result of `mix_adapters`.

  Attributes:
    path: path of the new adapter.
    ranks: module -> rank; {} for IA3.
    errors: module -> relative error, in Frobenius norm, of the change of its
      weights; 0 if the rank was not reduced. {} for IA3.
    error: the same over all modules together.
  """

  path: str
  ranks: Mapping[str, int]
  errors: Mapping[str, float]
  error: float


@dataclasses.dataclass(frozen=True)
class _Adapter:
  """One adapter: its weight in the mean, and its leaves by module."""

  base_hash: str  # "" if it is not recorded.
  weight: float
  source: Ingredient
  config: AdapterConfig
  modules: Mapping[str, Mapping[str, str]]
  whole: Mapping[str, str]  # Leaf that is saved whole -> name in the file.

  def read(self, name: str) -> np.ndarray:
    return np.asarray(self.source.read(name), np.float64)


def mix_adapters(
  adapters: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  *,
  weights: Sequence[float] | None = None,
  normalize: bool = True,
  rank: int | None = None,
) -> AdapterMix:
  """Writes the weighted mean of LoRA or IA3 adapters as one adapter.

  Averages the models that the adapters represent: the products of factors, not
  the factors. No base is needed. For LoRA, the rank of the exact mean is the
  sum of the ranks; a lower rank gives the best approximation of each weight's
  change, by SVD. For IA3 the mean is exact, since weights are linear in its
  vectors.

  Args:
    adapters: folders that PEFT saved, trained on one base.
    out: path of a new folder, which PEFT loads.
    weights: one number per adapter; None gives equal weights.
    normalize: whether to divide by the sum of the weights.
    rank: rank of the result, for LoRA only; None gives the sum of the ranks.

  Returns:
    Ranks and the errors of the approximation.

  Raises:
    ValueError: if an adapter is DoRA, whose weights are not linear in the
      product; if they differ in kind, base or modules that are saved whole; or
      if `out` exists or has the suffix of a file.

  Examples:
    >>> factors = {"q.lora_A.weight": jnp.ones((1, 3)),
    ...            "q.lora_B.weight": jnp.ones((2, 1))}
    >>> for name in ("l0", "l1"):
    ...   sj.save_params(f"{name}/adapter_model.safetensors", factors)
    ...   with open(f"{name}/adapter_config.json", "w") as f:
    ...     _ = f.write('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    >>> sj.mix_adapters(["l0", "l1"], "exact").ranks
    {'q': 2}
    >>> round(sj.mix_adapters(["l0", "l1"], "short", rank=1).error, 6)
    0.0
  """
  if rank is not None and (not isinstance(rank, int) or rank < 1):
    raise ValueError(f"rank must be a whole number above 0, got {rank!r:.80}.")
  peft_files.check_new(out)
  loaded = _opened(list(adapters), weights, normalize)
  kind = loaded[0].config.kind
  if kind == "IA3" and rank is not None:
    raise ValueError("rank= is for LoRA: adapters of IA3 have no rank.")
  leaves = _whole(loaded)
  squares: dict[str, tuple[float, float]] = {}
  ranks: dict[str, int] = {}
  for module in _union(a.modules for a in loaded):
    if kind == "IA3":
      leaves |= _mean_vector(loaded, module)
    else:
      factors, squares[module] = _mean_product(loaded, module, rank)
      leaves |= factors
      ranks[module] = len(next(iter(factors.values())))
  check_unchanged(a.source for a in loaded)
  names = [os.path.abspath(os.path.expanduser(os.fspath(p))) for p in adapters]
  record = {
    "soupjax": __version__,
    "rule": "mix_adapters",
    "settings": {"weights": [a.weight for a in loaded], "rank": rank},
    "ingredients": [{"name": a.source.name, "path": p} for a, p in
                    zip(loaded, names)],
  }  # fmt: skip
  config = _config(loaded, ranks)
  sidecars = {}
  if hashes := {a.base_hash for a in loaded} - {""}:
    sidecars["hyperparameters"] = {opened.BASE_HASH: hashes.pop()}
  peft_files.write(os.path.expanduser(out), leaves, config, record, **sidecars)
  return AdapterMix(
    os.fspath(out),
    ranks,
    {module: _ratio(*pair) for module, pair in squares.items()},
    _ratio(*(sum(x) for x in zip(*squares.values()))) if squares else 0.0,
  )


def _ratio(lost: float, all_of_it: float) -> float:
  return math.sqrt(lost / all_of_it) if all_of_it else 0.0


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
  return list(dict.fromkeys(key for group in groups for key in group))


def _opened(paths, weights, normalize) -> list[_Adapter]:
  """Opens the adapters and checks that they can be averaged."""
  if not paths:
    raise ValueError("mix_adapters needs at least one adapter, got none.")
  if normalize:
    numbers = arguments.soup_weights(weights, len(paths))
    numbers = numbers / math.fsum(numbers)
  else:
    numbers = rule_base.per_model(weights or [1.0] * len(paths), len(paths))
  loaded = []
  for path, weight in zip(paths, numbers):
    folder, source, config = opened.open_factors(path)
    modules, whole = targets.grouped(source.specs)
    sidecar = companions.sidecar(folder, "hyperparameters.json")
    base_hash = str(sidecar.get(opened.BASE_HASH) or "")
    for module, factors in modules.items():
      targets.check_factors(module, factors, config)
    names = {leaf: name for name, leaf in whole.items()}
    loaded.append(
      _Adapter(base_hash, float(weight), source, config, modules, names)
    )
  _check_same_kind(loaded)
  targets.check_one_naming(_union(a.modules for a in loaded), "The adapters")
  return loaded


def _check_same_kind(loaded) -> None:
  """Rejects adapters whose mean is not an adapter."""
  first = loaded[0].config
  hashes = {a.base_hash: a.config.path for a in loaded if a.base_hash}
  if len(hashes) > 1:
    one, other, *_ = hashes.values()
    raise ValueError(
      f"{one} and {other} record different hashes of their bases: their mean "
      "does not fit either. Average adapters of one base."
    )
  for adapter in loaded:
    config = adapter.config
    if config.kind == "LORA" and config.is_dora:
      raise ValueError(
        f"{config.path} is a DoRA adapter, whose weights are not linear in a "
        "product: average the models instead, with base=."
      )
    for key in ("kind", "fan_in_fan_out", "base_name"):
      values = getattr(first, key), getattr(config, key)
      if values[0] != values[1] and (key != "base_name" or all(values)):
        raise ValueError(
          f"{first.path} and {config.path} differ in {key}: {values[0]!r} and "
          f"{values[1]!r}. They cannot be one adapter."
        )


def _whole(loaded) -> dict[str, np.ndarray]:
  """Averages the biases and modules that are saved whole."""
  leaves = {}
  total = math.fsum(adapter.weight for adapter in loaded)
  for leaf in _union(a.whole for a in loaded):
    lacking = [a.config.path for a in loaded if leaf not in a.whole]
    if lacking or not math.isclose(total, 1.0, abs_tol=1e-6):
      reason = (
        f"{lacking[0]} does not save it"
        if lacking
        else f"the weights sum to {total:g}, not 1"
      )
      raise ValueError(
        f"{leaf!r} is saved whole by {_owner(loaded, leaf)}, but {reason}: the "
        "mean needs the base. Average the models instead, with base=."
      )
    shapes = {a.source.specs[a.whole[leaf]].shape for a in loaded}
    if len(shapes) > 1:
      raise ValueError(f"{leaf!r} has several shapes: {sorted(shapes)}.")
    name = loaded[0].whole[leaf]
    value = sum(a.weight * a.read(a.whole[leaf]) for a in loaded)
    leaves[name] = value.astype(loaded[0].source.specs[name].dtype)
  return leaves


def _owner(loaded, leaf) -> str:
  return next(a.config.path for a in loaded if leaf in a.whole)


def _mean_vector(loaded, module) -> dict[str, np.ndarray]:
  """Averages the vectors of IA3, which are 1 where a module is not adapted."""
  owners = [a for a in loaded if module in a.modules]
  name = owners[0].modules[module]["ia3_l"]
  value = 1.0 + sum(
    a.weight * (a.read(a.modules[module]["ia3_l"]) - 1) for a in owners
  )
  inputs = {a.config.scales_inputs(module) for a in owners}
  if len(inputs) > 1:
    raise ValueError(
      f"{module!r} is in feedforward_modules of some adapters only."
    )
  return {name: value.astype(owners[0].source.specs[name].dtype)}


def _mean_product(loaded, module, rank):
  """Averages the products of one module.

  Args:
    loaded: the adapters.
    module: name of a module that at least one of them adapts.
    rank: the largest to keep; None keeps all.

  Returns:
    Name -> factor, and the squared Frobenius norms of the part that is lost
    and of the whole product; 0 and 1 if nothing is lost.
  """
  owners = [a for a in loaded if module in a.modules]
  names = owners[0].modules[module]
  for adapter in owners:
    differing = adapter.modules[module].keys() ^ names.keys()
    if differing - {"lora_B.bias"}:
      raise ValueError(
        f"{module!r} has {sorted(names)} in {owners[0].config.path} and "
        f"{sorted(adapter.modules[module])} in {adapter.config.path}: they "
        "cannot be one adapter. Average the models instead, with base=."
      )
  key_a = next(k for k in names if k in ("lora_A.weight", "lora_embedding_A"))
  key_b = key_a.replace("_A", "_B")
  left, right, bias = [], [], 0.0
  shapes = set()
  for adapter in owners:
    factors = adapter.modules[module]
    a, b = (adapter.read(factors[key]) for key in (key_a, key_b))
    targets.check_rank(module, a.shape, b.shape, adapter.config)
    shapes.add((a.shape[1:], b.shape[:1] + b.shape[2:]))
    scale = adapter.weight * adapter.config.scale(module)
    right.append(scale * a)
    left.append(b)
    if "lora_B.bias" in factors:
      bias = bias + scale * adapter.read(factors["lora_B.bias"])
  if len(shapes) > 1:
    raise ValueError(
      f"{module!r} has factors of several shapes: {sorted(shapes)}. The "
      "adapters belong to different bases."
    )
  a, b = np.concatenate(right), np.concatenate(left, axis=1)
  squares = 0.0, 1.0
  if rank is not None:
    a, b, squares = _truncated(a, b, rank)
  dtype = owners[0].source.specs[names[key_a]].dtype
  leaves = {names[key_a]: a.astype(dtype), names[key_b]: b.astype(dtype)}
  if np.ndim(bias):
    # An owner without this leaf has a bias of zeros.
    name = names[key_b].removesuffix("weight") + "bias"
    leaves[name] = bias.astype(dtype)
  return leaves, squares


def _truncated(a: np.ndarray, b: np.ndarray, rank: int):
  """Returns the best approximation of a product B A by factors of a lower rank.

  QR of both factors reduces the SVD to a square matrix as small as their rank.

  Args:
    a: (full_rank, inputs, ...)
    b: (outputs, full_rank, ...)
    rank: rank of the new factors.

  Returns:
    The new factors, and the squared Frobenius norms of the part that is lost
    and of the whole product.
  """
  columns, rows = b.reshape(len(b), -1), a.reshape(len(a), -1)
  q_b, r_b = np.linalg.qr(columns)
  q_a, r_a = np.linalg.qr(rows.T)
  u, s, vt = np.linalg.svd(r_b @ r_a.T)
  square = np.square(s)
  # PEFT needs all ranks of its config, so a smaller product gets zeros.
  kept = min(rank, len(s))
  new_b, new_a = np.zeros((len(b), rank)), np.zeros((rank, rows.shape[1]))
  new_b[:, :kept] = q_b @ (u[:, :kept] * s[:kept])
  new_a[:kept] = vt[:kept] @ q_a.T
  return (
    new_a.reshape(rank, *a.shape[1:]),
    new_b.reshape(len(b), rank, *b.shape[2:]),
    (float(square[kept:].sum()), float(square.sum())),
  )


def _config(loaded, ranks: Mapping[str, int]) -> dict[str, Any]:
  """Returns the config of the result, which lists its modules by name."""
  config = {**loaded[0].config.content} | dict.fromkeys(_SELECTION)
  modules = _union(a.modules for a in loaded)
  config["target_modules"] = modules
  config["inference_mode"] = True
  if loaded[0].config.kind == "IA3":
    config["feedforward_modules"] = [
      module
      for module in modules
      if any(
        a.config.scales_inputs(module) for a in loaded if module in a.modules
      )
    ]
    return {k: v for k, v in config.items() if k not in _SELECTION[:2]}
  most = max(ranks.values(), default=config["r"])
  others = {f"^{m}": rank for m, rank in ranks.items() if rank != most}
  return config | {
    "r": most,
    "lora_alpha": most,
    "rank_pattern": others,
    "alpha_pattern": others,
    "use_rslora": False,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "lora_bias": any(
      "lora_B.bias" in factors for a in loaded for factors in a.modules.values()
    ),
  }
