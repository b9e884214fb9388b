# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Explains why a checkpoint does not fit a model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import difflib
import re
import types
from typing import Any

# Pattern of our leaf names -> the option with which a model has these leaves.
HINTS = {
  r"LayerScale_\d": "layer_scale=1e-5",
  r"MlpBlock_0/gate": "gated=True",
  r"MlpBlock_0/norm": "mlp_norm=True",
  r"(query|key)_norm": "qk_norm=True",
  r"DotProductAttention_0/norm": "attention_norm=True",
  r"encoderblock_.*(query|key|value)/bias": "other letters in qkv_bias=",
  r"^cls": "pool_type='tok' or class_token=True",
  r"^reg_tokens": "registers=",
  r"^(dist_token|head_dist)": "distilled=True",
  r"^pos_embedding": "posemb='learn'",
  r"^pos_frequencies": "rope='mixed'",
  r"^embedding/bias": "patch_bias=True",
  r"^Transformer/encoder_norm": "final_norm=True and fc_norm=False",
  r"^pre_norm": "pre_norm=True",
  r"^fc_norm": "fc_norm=True",
  r"^pre_logits": "rep_size=",
  r"^proj/": "proj_size=",
  r"^head/": "num_classes=",
  r"^MAPHead_0": "pool_type='map'",
  r"^(Transformer/encoderblock_|MixerBlock_)": "a larger depth=",
  r"^block\d/unit": "other depths=",
}
# Parts of other libraries' models that our ViT does not have, or does not have
# under this name.
_PARTS = {
  "layer scale": r"\bls\d\.|layer_?scale|gamma_?\d|lambda_?\d$",
  "register tokens": r"reg(ister)?_tokens?",
  "a distillation token": r"dist(illation)?_token|head_dist",
  "detection tokens": r"detection_token|mid_position",
  "relative positions": r"relative_position|rel_pos",
  "rotary positions": r"\brope\b|rotary|freqs",
  "norms of queries and keys": r"\b[qk]_norm\.|\bln_[qk]\b",
  "a gated MLP": r"fc1_[gx]\.|gate_proj|w12\.|swiglu",
  "masked tokens": r"mask_token",
}


def hint(leaf: str | None) -> str:
  """Returns the option with which a model has our leaf, "" if there is none."""
  options = (v for k, v in HINTS.items() if re.search(k, leaf or ""))
  return next(options, "")


def describe(
  missing: Mapping[str, str],
  unexpected: Mapping[str, str | None],
  misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
  twice: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
  """Lists all leaves that do not fit; blocks that share a problem share a line.

  Args:
    missing: name in the checkpoint -> our leaf; our leaf -> "" if the family
      has no name for it.
    unexpected: name in the checkpoint -> our leaf, None if we have none.
    misshapen: name in the checkpoint -> (its shape, the shape that is needed).
    twice: unexpected name -> another name of the same leaf, which is read.

  Returns:
    Indented lines, "" if everything fits.
  """
  unexpected_groups = _grouped(unexpected)
  # Unknown names are more likely to be misspelled than known ones.
  unknown = _grouped([k for k, leaf in unexpected.items() if leaf is None])
  near = {
    _key(name): text
    for text, names in unknown or unexpected_groups
    for name in names
  }

  def describe_missing(name):
    leaf = missing[name]
    text = f" (here {leaf})" if leaf not in (name, "") else ""
    match = difflib.get_close_matches(_key(name), near, n=1)
    return text + (f"; nearest is {near[match[0]]}" if match else "")

  def describe_unexpected(name):
    if name in twice:
      return f": the same leaf as {twice[name]}; leave out one with skip="
    option = hint(unexpected[name])
    if option:
      return f"; a model with {option} has it"
    parts = (k for k, v in _PARTS.items() if re.search(v, name))
    part = next(parts, None)
    return f": {part}, which our models do not have" if part else ""

  def describe_misshapen(name):
    shape, needed = misshapen[name]
    return f" is {shape}, and {needed} is needed"

  lines = []
  for title, groups, line in (
    ("missing", _grouped(missing), describe_missing),
    ("unexpected", unexpected_groups, describe_unexpected),
    ("misshapen", _grouped(misshapen, misshapen.get), describe_misshapen),
  ):
    if groups:
      lines.append(f"{sum(len(names) for _, names in groups)} {title}:")
    lines += [f"  {text}{line(names[0])}" for text, names in groups]
  return "\n  ".join(lines)


def _key(name: str) -> str:
  """Replaces the first number of a name, the block number, by "*"."""
  return re.sub(r"\d+", "*", name, count=1)


def _grouped(
  names: Iterable[str], value_of: Callable[[str], Any] = lambda name: None
) -> list[tuple[str, list[str]]]:
  """Groups names with equal values that differ only in the block number."""
  groups: dict[tuple[str, Any], list[str]] = {}
  for name in names:
    groups.setdefault((_key(name), value_of(name)), []).append(name)
  return [
    (
      group[0] if len(group) == 1 else key.replace("*", _ranges(group), 1),
      group,
    )
    for (key, _), group in groups.items()
  ]


def _ranges(names: Sequence[str]) -> str:
  """Formats the numbers of blocks, such as "[0-3,5]"."""
  runs: list[list[int]] = []
  for n in sorted(int(re.search(r"\d+", name)[0]) for name in names):
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
  return f"[{text}]"
