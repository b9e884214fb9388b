# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Explains why a checkpoint does not fit a model."""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import re

# What makes a model have a leaf, or not.
HINTS = {
  "cls": "pool_type='tok' or class_token=True",
  "pos_embedding": "posemb='learn'",
  "embedding/bias": "patch_bias=True",
  "Transformer/encoder_norm": "fc_norm=False",
  "pre_norm": "pre_norm=True",
  "fc_norm": "fc_norm=True",
  "pre_logits": "rep_size=",
  "proj/": "proj_size=",
  "head/": "num_classes=",
  "MAPHead_0": "pool_type='map'",
  "Transformer/encoderblock_": "a larger depth=",
  "MixerBlock_": "a larger depth=",
}


def hint(ours: str | None) -> str:
  """The option that goes with a leaf of ours, "" if there is none."""
  found = (
    text for name, text in HINTS.items() if (ours or "").startswith(name)
  )
  return next(found, "")


@dataclasses.dataclass(kw_only=True)
class Mismatch:
  """All that does not fit.

  Attributes:
    missing: their name -> ours; ours -> "" where they have no name for it.
    unexpected: their name -> ours, None where we have none.
    misshapen: their name -> (its shape, the shape that is needed).
  """

  missing: Mapping[str, str]
  unexpected: Mapping[str, str | None]
  misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

  def __bool__(self) -> bool:
    return bool(self.missing or self.unexpected or self.misshapen)

  def text(self) -> str:
    """Lists everything; blocks that share a problem share a line."""
    unexpected = _grouped(self.unexpected)
    # What nobody knows is more likely meant than what has a place.
    unknown = [k for k, ours in self.unexpected.items() if ours is None]
    near = _grouped(unknown) or unexpected
    known = {_key(name): shown for shown, names in near for name in names}
    lines = []
    for title, groups, describe in (
      ("missing", _grouped(self.missing), self._missing(known)),
      ("unexpected", unexpected, self._unexpected),
      ("misshapen", self._by_shape(), self._misshapen),
    ):
      if groups:
        total = sum(len(names) for _, names in groups)
        lines.append(f"{total} {title}:")
      lines += [f"  {shown}{describe(names[0])}" for shown, names in groups]
    return "\n  ".join(lines)

  def _missing(self, known):
    def describe(name):
      ours = self.missing[name]
      text = f" (here {ours})" if ours not in (name, "") else ""
      near = difflib.get_close_matches(_key(name), known, n=1)
      return text + (f"; nearest is {known[near[0]]}" if near else "")

    return describe

  def _unexpected(self, name):
    option = hint(self.unexpected[name])
    return f"; a model with {option} has it" if option else ""

  def _misshapen(self, name):
    found, needed = self.misshapen[name]
    return f" is {found}, and {needed} is needed"

  def _by_shape(self):
    shapes: dict[object, list[str]] = {}
    for name, found in self.misshapen.items():
      shapes.setdefault(found, []).append(name)
    return [group for names in shapes.values() for group in _grouped(names)]


def _key(name: str) -> str:
  """A name with the first number, that of the block, left out."""
  return re.sub(r"\d+", "*", name, count=1)


def _grouped(names: Sequence[str] | Mapping) -> list[tuple[str, list[str]]]:
  """Puts names together that differ in the number of a block."""
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(_key(name), []).append(name)
  return [
    (
      found[0] if len(found) == 1 else key.replace("*", _ranges(found), 1),
      found,
    )
    for key, found in groups.items()
  ]


def _ranges(names: Sequence[str]) -> str:
  """The numbers of blocks, as in "[0-3,5]"."""
  runs: list[list[int]] = []
  for n in sorted(int(re.search(r"\d+", name)[0]) for name in names):
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
  return f"[{text}]"
