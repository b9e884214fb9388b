# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Matches the leaves of an adapter with the leaves of its base."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
import re

import jax

from soupjax.checkpoints.adapters import updates
from soupjax.checkpoints.adapters.peft_config import AdapterConfig
from soupjax.soups.core import tree

Specs = Mapping[str, jax.ShapeDtypeStruct]

_PREFIX = "base_model.model."
_FACTOR = re.compile(
  r"(?P<module>.+)\.(?P<factor>lora_A\.weight|lora_B\.weight|lora_B\.bias|"
  r"lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l)"
)
# Layer names in transformers 5 -> the older names in its files.
_RENAMED = (
  (r"\battention\.q_proj", "attention.attention.query"),
  (r"\battention\.k_proj", "attention.attention.key"),
  (r"\battention\.v_proj", "attention.attention.value"),
  (r"\battention\.o_proj", "attention.output.dense"),
)
_RENAMED_BLOCKS = (
  *_RENAMED,
  (r"\blayers\.(\d+)", r"encoder.layer.\1"),
  (r"\bmlp\.fc1", "intermediate.dense"),
  (r"\bmlp\.fc2", "output.dense"),
)
_MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Adapted:
  """The leaves that an adapter changes or adds.

  Attributes:
    specs: leaf -> shape and dtype, of all leaves of the adapted model.
    updates: leaf -> the update that computes it.
    factors: module of the adapter -> factor -> leaf name in the file.
  """

  specs: dict[str, jax.ShapeDtypeStruct]
  updates: dict[str, updates.Update]
  factors: Mapping[str, Mapping[str, str]]


def find(adapter: Specs, base: Specs, config: AdapterConfig) -> Adapted:
  """Matches all leaves of an adapter with those of its base.

  Args:
    adapter: leaf -> shape and dtype.
    base: leaf -> shape and dtype.
    config: the config of the adapter.

  Returns:
    The leaves of the adapted model, and updates for those that change.

  Raises:
    ValueError: naming a leaf that does not fit the base, lacks its other
      factor, or has a rank that differs from the config.
  """
  modules, whole = grouped(adapter)
  locate = _located(modules, whole, base, config)
  check_one_naming(modules, config.path)
  adapted = Adapted(dict(base), {}, modules)
  for module, factors in modules.items():
    check_factors(module, factors, config)
    shapes = {key: adapter[name].shape for key, name in factors.items()}
    located = locate(f"{module}.weight").removesuffix(".weight")
    add = _add_ia3 if config.kind == "IA3" else _add_lora
    add(adapted, module, located, factors, shapes, config)
  for name, leaf in whole.items():
    located = locate(leaf)
    _add_whole(
      adapted,
      located if located in base else leaf,
      name,
      adapter[name],
      config.saves(leaf.rpartition(".")[0]),
      config,
    )
  return adapted


def grouped(
  names: Iterable[str],
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
  """Separates the factors of an adapter from leaves that are saved whole.

  Returns:
    Module -> factor -> name; and name -> leaf, for leaves that are saved whole.
  """
  modules: dict[str, dict[str, str]] = {}
  whole: dict[str, str] = {}
  for name in names:
    plain = name.removeprefix(_PREFIX).replace("base_layer.", "")
    match = _FACTOR.fullmatch(plain)
    if match:
      modules.setdefault(match["module"], {})[match["factor"]] = name
    else:
      whole[name] = plain
  return modules, whole


# --- Names --------------------------------------------------------------------


def _located(modules, whole, base, config) -> Callable[[str], str]:
  """Returns a function that maps names in the adapter to names in the base.

  Files of models without a head may lack the name of the model ("vit."), and
  transformers 5 uses different names in memory and in files.

  Raises:
    ValueError: if no such function finds all leaves.
  """
  required = [
    leaf for leaf in whole.values() if not config.saves(leaf.rpartition(".")[0])
  ]

  def lacking(locate):
    weights = {f"{module}.weight": module for module in modules}
    return [
      weights.get(leaf, leaf)
      for leaf in (*weights, *required)
      if locate(leaf) not in base
    ]

  fewest = None
  for rows in ((), _RENAMED, _RENAMED_BLOCKS):
    for change in _changes_of_prefix(base):

      def locate(name, rows=rows, change=change):
        for pattern, replacement in rows:
          name = re.sub(pattern, replacement, name)
        return change(name)

      _check_no_attention(modules, locate, base, config)
      missing = lacking(locate)
      if not missing:
        return locate
      if fewest is None or len(missing) < len(fewest):
        fewest = missing
  recorded = config.base_name and f" Its config records {config.base_name!r}."
  raise ValueError(
    f"{config.path}: adapted modules are not in the base ({len(fewest)} in all)"
    f": {fewest[:_MOST_SHOWN]}. The base has, for instance, {list(base)[:3]}. "
    f"Give the model that the adapter was trained on as base.{recorded}"
  )


def check_one_naming(modules: Iterable[str], source: str) -> None:
  """Rejects two names for the same layer.

  Args:
    modules: names in one adapter, or in adapters to be merged into one.
    source: the source to name in the error message.

  Raises:
    ValueError: naming two modules.
  """
  names: dict[str, str] = {}
  for module in modules:
    plain = module
    for pattern, replacement in _RENAMED_BLOCKS:
      plain = re.sub(pattern, replacement, plain)
    other = names.setdefault(plain, module)
    if other != module:
      raise ValueError(
        f"{source}: {other!r} and {module!r} name the same layer in two "
        "versions of transformers, and each version finds only one of them. "
        "Open the adapters as models, with base=."
      )


def _changes_of_prefix(base) -> list[Callable[[str], str]]:
  """Returns functions that keep, remove or extend the prefix of a name."""
  changes: list[Callable[[str], str]] = [
    lambda name: name,
    lambda name: name.split(".", 1)[-1],
    lambda name: name.split(".", 2)[-1],
  ]
  outer = {leaf.partition(".")[0] for leaf in base if "." in leaf}
  changes += [
    lambda name, first=first: f"{first}.{name}" for first in sorted(outer)
  ]
  return changes


def _check_no_attention(modules, locate, base, config) -> None:
  """Rejects torch.nn.MultiheadAttention.

  PEFT 0.21 adds the product to out_proj twice, in training and in merging. The
  files do not show whether the version that wrote them added it once or twice.
  """
  for module in modules:
    if f"{locate(module)}.in_proj_weight" in base:
      raise ValueError(
        f"{config.path}: {module!r} is a torch.nn.MultiheadAttention, and PEFT "
        "adds the product to its out_proj twice: merge the adapter in PEFT "
        "(merge_and_unload) and open the merged model."
      )


# --- One module ---------------------------------------------------------------


def check_factors(module, factors, config) -> None:
  """Checks that a module has the factors of the method, and no others.

  Raises:
    ValueError: naming what is missing or does not belong there.
  """
  if config.kind == "IA3":
    needed = {"ia3_l"}
  elif any("embedding" in factor for factor in factors):
    needed = {"lora_embedding_A", "lora_embedding_B"}
  else:
    needed = {"lora_A.weight", "lora_B.weight"}
  if config.is_dora and config.kind == "LORA":
    needed.add("lora_magnitude_vector")
  if missing := needed - factors.keys():
    raise ValueError(
      f"{config.path}: {module!r} has {sorted(factors)} but lacks "
      f"{sorted(missing)}: its weights are incomplete. Save the adapter "
      "again."
    )
  if others := factors.keys() - needed - {"lora_B.bias"}:
    raise ValueError(
      f"{config.path}: {module!r} has {sorted(others)}, which do not belong to "
      f"{config.kind} with use_dora={config.is_dora}: the config belongs to "
      "another adapter."
    )


def check_rank(module, a, b, config) -> None:
  """Checks that the shapes of two factors match the rank in the config.

  Raises:
    ValueError: if they do not.
  """
  rank = config.rank(module)
  if len(a) < 2 or len(b) < 2 or not a[0] == b[1] == rank:
    raise ValueError(
      f"{config.path}: the factors of {module!r} have shapes {a} and {b}, but "
      f"the config says rank {rank}, which must be the first dimension of A "
      "and the second of B."
    )


def _add_lora(adapted, module, located, factors, shapes, config) -> None:
  embedding = "lora_embedding_A" in factors
  keys = [f"lora_embedding_{k}" for k in "AB"]
  keys = keys if embedding else [f"lora_{k}.weight" for k in "AB"]
  leaf = f"{located}.weight"
  spec = _float_spec(adapted, leaf, config)
  a, b = (shapes[key] for key in keys)
  check_rank(module, a, b, config)
  transposed = embedding or (config.fan_in_fan_out and len(spec.shape) == 2)
  product = (b[0], *a[1:])
  # In convolutions only A has a spatial extent.
  fits = set(b[2:]) <= {1} and spec.shape == (
    product[::-1] if transposed else product
  )
  _check_shape(fits, leaf, spec, module, product, config)
  names = [factors[key] for key in keys]
  if config.is_dora:
    length = shapes["lora_magnitude_vector"]
    fits = math.prod(length) == b[0]
    _check_shape(fits, leaf, spec, module, length, config)
    names.append(factors["lora_magnitude_vector"])
  adapted.updates[leaf] = updates.Product(
    spec.shape,
    tuple(names),
    scale=config.scale(module),
    transposed=transposed,
    has_magnitude=config.is_dora,
  )
  if "lora_B.bias" in factors:
    bias = _bias_of(leaf)
    if bias not in adapted.specs:
      raise ValueError(
        f"{config.path} has lora_bias=True, but the base has no {bias!r}."
      )
    spec = _float_spec(adapted, bias, config)
    shape = shapes["lora_B.bias"]
    _check_shape(shape == spec.shape, bias, spec, module, shape, config)
    adapted.updates[bias] = updates.Shifted(
      spec.shape, (factors["lora_B.bias"],), scale=config.scale(module)
    )


def _add_ia3(adapted, module, located, factors, shapes, config) -> None:
  leaf = f"{located}.weight"
  spec = _float_spec(adapted, leaf, config)
  inputs = config.scales_inputs(module)
  axis = int(inputs) if len(spec.shape) > 1 else 0
  if config.fan_in_fan_out and len(spec.shape) == 2:
    axis = 1 - axis
  size, shape = math.prod(shapes["ia3_l"]), shapes["ia3_l"]
  fits = size == max(shape, default=0) == spec.shape[axis]
  _check_shape(fits, leaf, spec, module, shape, config)
  names = (factors["ia3_l"],)
  adapted.updates[leaf] = updates.Scaled(spec.shape, names, axis=axis)
  bias = _bias_of(leaf)
  if not inputs and bias in adapted.specs:
    spec = _float_spec(adapted, bias, config)
    adapted.updates[bias] = updates.Scaled(spec.shape, names, axis=0)


def _add_whole(adapted, leaf, name, spec, is_saved, config) -> None:
  base = adapted.specs.get(leaf)
  if base is not None and leaf in adapted.updates:
    raise ValueError(
      f"{config.path}: {leaf!r} is adapted and saved whole, so its value is "
      "ambiguous. Merge it in PEFT (merge_and_unload) and open the merged "
      "model."
    )
  if not is_saved and base.shape != spec.shape:
    _check_shape(False, leaf, base, leaf, spec.shape, config)
  adapted.specs[leaf] = jax.ShapeDtypeStruct(
    spec.shape, spec.dtype if base is None else base.dtype
  )
  adapted.updates[leaf] = updates.Replaced(spec.shape, (name,))


def _bias_of(weight: str) -> str:
  return re.sub(r"weight$", "bias", weight)


def _float_spec(adapted, leaf, config) -> jax.ShapeDtypeStruct:
  spec = adapted.specs[leaf]
  if not tree.is_float(spec) or spec.dtype.itemsize < 2:
    raise ValueError(
      f"{config.path}: leaf {leaf!r} of the base is {spec.dtype}, so it is "
      "quantised: give the base in its dtype before quantisation."
    )
  return spec


def _check_shape(fits, leaf, spec, module, shape, config) -> None:
  if not fits:
    recorded = config.base_name and f" ({config.base_name!r} in its config)"
    raise ValueError(
      f"{config.path}: {module!r} of shape {tuple(shape)} does not fit leaf "
      f"{leaf!r} of the base, of shape {spec.shape}: give the model that the "
      f"adapter was trained on{recorded} as base."
    )
