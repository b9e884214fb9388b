# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Leaves that are meaningful only together, such as factors of adapters.

The mean of two products is not the product of the means of their factors, so
such leaves cannot be averaged one by one. Tied weights may be stored twice.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import re
from typing import Any

import numpy as np

# Methods whose update of a weight is a product of trained factors, as in
# "q.lora_A.weight", "to_q.lora.down.weight" and "lora_unet_q.hada_w1_a".
_ADAPTER = re.compile(
  r"(?P<parent>.*)(?<![a-zA-Z])"
  r"(?i:lora|hada|lokr|vera|dora|oft|boft|glora|randlora)"
  r"(?P<factor>(?![a-z]).*?)([._/](weight|bias|kernel))?",
  re.DOTALL,
)
# Layers of a small network with an activation between them, as in RWKV-7.
_LAYER = re.compile(r"[._/][02]")
# A rotation is not linear even in a single leaf.
_ROTATION = re.compile(r"(?<![a-z])b?oft_", re.IGNORECASE)
_CONSTANT = re.compile(r"[._/]alpha$|_alpha([._/]|$)", re.IGNORECASE)
# Vectors of IA3, which multiply weights of a base.
_IA3 = re.compile(r"(?<![a-z])ia3_", re.IGNORECASE)
# Norm and direction of weight normalisation (1602.07868) in torch.nn.utils, and
# in its parametrizations.
_NORM_OF_WEIGHT = re.compile(r"(weight\w*_)g$|(parametrizations.+original)0$")
# Scales and zero points of quantised weights.
_SCALE = re.compile(
  r"(^|[._/])(\w*scale\w*|absmax|scb|q?zeros|zero_points?)$", re.IGNORECASE
)
_INTEGERS = ("int8", "uint8", "int32", "int4", "uint4")
# Names of the last and the first matrix of a language model, which may be tied.
_HEAD = re.compile(
  r"(^|[._/])(lm_head|output|head|decoder|predictions)([._/]|$)"
)
_EMBEDDING = re.compile(r"embed|wte|shared")
# Every name that `_ADAPTER` matches contains one of them.
_WORDS = ("lora", "hada", "lokr", "vera", "dora", "oft")
# Names of weights, including those of HQQ, AQT, Qwix and quanto.
_WEIGHT = re.compile(
  r"(weight|kernel|blocks|packed)[^./]*$|(^|[./])(w_q|qvalue|_data)$",
  re.IGNORECASE,
)
# Groups of leaves that describe a quantised weight, in HQQ and bitsandbytes.
_GROUP = re.compile(r"[./](meta|quant_state)$")


def check(specs: Mapping[str, Any], name: str) -> None:
  """Rejects leaves that cannot be averaged one by one.

  Args:
    specs: leaf -> shape and dtype, of the leaves that would be averaged. One
      factor alone passes, for example if `select` keeps the others.
    name: of an ingredient with these leaves.

  Raises:
    ValueError: if there are factors of an adapter, a rotation (OFT), a vector
      of IA3, the norm and direction of a weight, or a quantised weight with its
      scale. The message names the leaves.
  """
  if names := _adapter(list(specs)):
    raise ValueError(
      f"{' and '.join(map(repr, names))}: factors of an adapter, such as LoRA. "
      "The product of averaged factors is not the average of the products. "
      "Pass folders of PEFT adapters with their base "
      "(sj.find_ingredients(pattern, base=...)). Merge other adapters into the "
      "base first (merge_and_unload() in peft, fuse_lora() in diffusers), and "
      "average the merged models."
    )
  if leaf := _ia3(specs):
    raise ValueError(
      f"{leaf!r} of {name!r} multiplies a weight that is not in the file: it "
      "is part of an adapter (IA3). Pass folders of PEFT adapters with their "
      "base (sj.find_ingredients(pattern, base=...)), or average the adapters "
      "into an adapter (sj.mix_adapters, format=adapter)."
    )
  if names := _weight_norm(specs):
    raise ValueError(
      f"{' and '.join(map(repr, names))} of {name!r} are the norm and the "
      "direction of one weight (weight normalisation). The product of their "
      "averages is not the average of the products. Remove the normalisation "
      "first, with torch.nn.utils.remove_weight_norm or "
      "parametrize.remove_parametrizations, or take these leaves from the base "
      "with select={regex: 'keep'}."
    )
  check_scales(specs, specs, name)


def check_scales(
  specs: Mapping[str, Any], beside: Mapping[str, Any], name: str
) -> None:
  """Rejects quantised leaves whose scale is in the same model.

  Args:
    specs: leaf -> shape and dtype, of the leaves that would be averaged.
    beside: as `specs`, but of all leaves of the model. A scale that `select`
      keeps does not fit the average of leaves that had scales of their own.
    name: of the ingredient.

  Raises:
    ValueError: if there is such a leaf. The message names it and its scale.
  """
  if names := _quantised(specs, beside):
    leaf, scale = names
    raise ValueError(
      f"Leaf {leaf!r} of {name!r} is quantised ({specs[leaf].dtype}), with the "
      f"scale {scale!r}. The product of their averages is not the average of "
      "the products. Dequantise the checkpoints first, for instance to "
      "bfloat16, or use the checkpoints from before quantisation."
    )


def advice_on_tied(trees: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns advice on embeddings that only some models store twice.

  Language models often tie the first and the last matrix. Some programs save it
  under both names, and some under one.

  Args:
    trees: model -> leaf -> shape and dtype.

  Returns:
    The advice; "" if no leaf looks like such a copy.
  """
  everywhere = set.intersection(*map(set, trees.values()))
  for specs in trees.values():
    for leaf in filter(_HEAD.search, sorted(specs.keys() - everywhere)):
      for twin in filter(_EMBEDDING.search, sorted(everywhere)):
        if specs[twin].shape == specs[leaf].shape:
          pattern = f"^{re.escape(leaf)}$"
          return (
            f"{leaf!r} may be a second copy of {twin!r}. If these weights are "
            f"tied, leave the copy out: select={{{pattern!r}: 'skip'}}."
          )
  return ""


def _adapter(leaves: Sequence[str]) -> list[str]:
  """Returns two factors of one adapter, or a rotation; [] if there is none."""
  text = "\n".join(leaves).lower()
  if not any(word in text for word in _WORDS):
    return []
  first: dict[str, tuple[str, str]] = {}
  for leaf in leaves:
    match = _ADAPTER.fullmatch(leaf)
    if match is None or _CONSTANT.search(match["factor"]):
      continue
    if _ROTATION.search(leaf):
      return [leaf]
    factor = "" if _LAYER.fullmatch(match["factor"]) else match["factor"]
    # The weight and the bias of one layer are not multiplied.
    other, start = first.setdefault(match["parent"], (leaf, factor))
    if start != factor:
      return [other, leaf]
  return []


def _ia3(leaves: Iterable[str]) -> str | None:
  """Returns a vector of IA3; None if there is none."""
  if "ia3_" not in "\n".join(leaves).lower():
    return None
  return next(filter(_IA3.search, leaves), None)


def _weight_norm(specs: Mapping[str, Any]) -> list[str]:
  """Returns norm and direction of one weight; [] if there are none."""
  for leaf, spec in specs.items():
    if not leaf.endswith(("_g", "original0")):
      continue
    match = _NORM_OF_WEIGHT.search(leaf)
    if match is None:
      continue
    twin = leaf[:-1] + ("v" if match[1] else "1")
    if twin not in specs:
      continue
    # The norm of the whole weight, or one for each index of an axis.
    shape, full = spec.shape, specs[twin].shape
    axes = [(m, n) for m, n in zip(shape, full) if m != 1]
    is_norm = len(shape) == len(full) and len(axes) <= 1
    if not shape or (is_norm and all(m == n for m, n in axes)):
      return [leaf, twin]
  return []


def _quantised(
  specs: Mapping[str, Any], beside: Mapping[str, Any]
) -> tuple[str, str] | None:
  """Returns a quantised leaf and its scale; None if there is none."""
  scales: dict[str, str] = {}
  for leaf in beside:
    name = leaf
    if name[-1:].isdigit() and name[len(_parent(name)) + 1 :].isdigit():
      name = _parent(name)  # One of a list of scales, as in AQT.
    parent = _parent(name)
    if suffix := _scale_suffix(name[len(parent) :]):
      owner = _GROUP.sub("", name.removesuffix(suffix))
      scales.setdefault(owner, leaf)
  if not scales:
    return None
  for leaf, spec in specs.items():
    is_float8, is_integer = _kind(spec.dtype)
    if not (is_float8 or is_integer):
      continue
    # "w.absmax" belongs to "w", and "m.w_scale" or "m.scales" to "m.w".
    scale = scales.get(leaf) or scales.get(_parent(leaf) or leaf)
    if scale in (None, leaf):
      continue
    # In an 8-bit model, normalisation layers also have leaves called scale.
    if is_float8 and beside[scale].dtype != spec.dtype:
      return leaf, scale
    if is_integer and spec.shape and _WEIGHT.search(leaf):
      return leaf, scale
  return None


def _parent(leaf: str) -> str:
  """Returns a name up to its last separator; "" if it has none."""
  return leaf[: max(leaf.rfind("."), leaf.rfind("/"), 0)]


# Cached, since most leaves of a model share a few last names and dtypes.
@functools.lru_cache(maxsize=4096)
def _scale_suffix(last_name: str) -> str:
  match = _SCALE.search(last_name)
  return match[0] if match else ""


@functools.cache
def _kind(dtype: Any) -> tuple[bool, bool]:
  """Returns (is an 8-bit float, is an integer type of quantised weights)."""
  dtype = np.dtype(dtype)
  is_float8 = dtype.name.startswith("float") and dtype.itemsize == 1
  return is_float8, dtype.name in _INTEGERS
