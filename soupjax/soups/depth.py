# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""How deep in a network its leaves are, by their names."""

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Any

import numpy as np

# Leaves out of the layers with such names come before them, all others after.
_BEFORE = re.compile(
  r"embed|patch|pos(?!t)|cls|token|stem|root|wte|wpe|ln_pre|norm_pre|pre_norm|"
  r"pre_layr?norm|(^|[/.])(conv|bn)(1|_init|_proj)([/.]|$)",
  re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:[A-Za-z]+|.*[_-])?(\d+)")

_ADVICE = "Give a mapping from regular expressions to numbers instead."


@dataclasses.dataclass
class _Family:
  """Modules that differ in a number: `stem` and number -> what follows."""

  stem: str
  members: dict[int, set[str]] = dataclasses.field(default_factory=dict)

  @property
  def parent(self) -> str:
    """What contains them, with the separator: "" or "Transformer/"."""
    return self.stem[: re.search(r"[^/.]*$", self.stem).start()]

  @property
  def word(self) -> str:
    """What they are called: "encoderblock_" or, of a list, "resblocks."."""
    return re.search(r"[^/.]*[/.]?$", self.stem).group()

  def inside(self, leaves: Iterable[str]) -> bool:
    """Whether it is a part of what these leaves make up."""
    return any(leaf.startswith(self.stem) for leaf in leaves)

  def holds_modules(self) -> bool:
    """Whether there are modules in them, as in a block, or just weights."""
    rests = set().union(*self.members.values())
    return any(len(re.findall(r"[^/.]+", rest)) > 1 for rest in rests)

  def alike(self) -> bool:
    """Whether they share half of what the smallest has.

    Stages of a ResNet do, though they have unlike numbers of blocks.
    """
    rests = self.members.values()
    return 2 * len(set.intersection(*rests)) >= min(map(len, rests))


def of(
  leaves: Iterable[str] | Mapping[str, Any],
) -> dict[str, float | np.ndarray]:
  """Returns how deep in the network each leaf is, from 0 to 1.

  Layers are modules told apart by the first number in a name
  ("encoderblock_3/...", "blocks.3....", "layer3...."). Of several families of
  them, those that hold modules go before those that hold just weights, and of
  these the longest is that of the layers; so is every other of the same name
  and length, as in models of two towers. In a scanned model layers are the
  first axis of all leaves of a module. All other leaves are at 0 if their name
  speaks of embeddings, patches, positions, tokens or a stem, else at 1.

  Args:
    leaves: names of all leaves of the model, or also their specs, which show
      whether layers are an axis.

  Returns:
    Leaf -> its depth; (L,) that of its layers, if these are its first axis.

  Raises:
    ValueError: if there are no such layers, or it is not clear which they are.
  """
  names = list(leaves)
  families, first = _families(names)
  scanned = {}
  if isinstance(leaves, Mapping):
    scanned = _scanned(families, leaves)
  layers = {} if scanned else _layers(families, names)
  depths = {}
  for leaf in names:
    stem, number = first.get(leaf, ("", 0))
    if leaf in scanned:
      depths[leaf] = np.linspace(0, 1, scanned[leaf])
    elif stem in layers:
      numbers = sorted(layers[stem].members)
      depths[leaf] = numbers.index(number) / (len(numbers) - 1)
    else:
      depths[leaf] = 0.0 if _BEFORE.search(leaf) else 1.0
  return depths


def _families(names):
  """Families of two or more, by stem; and of each leaf its first."""
  families: dict[str, _Family] = {}
  found: dict[str, list[tuple[str, int]]] = {}
  for leaf in names:
    for part in re.finditer(r"[^/.]+", leaf):
      number = _NUMBERED.fullmatch(part.group())
      if number:
        stem = leaf[: part.start() + number.start(1)]
        found.setdefault(leaf, []).append((stem, int(number[1])))
        family = families.setdefault(stem, _Family(stem))
        rests = family.members.setdefault(int(number[1]), set())
        rests.add(leaf[part.end() :])
  families = {k: f for k, f in families.items() if len(f.members) > 1}
  first = {
    leaf: next(((s, n) for s, n in numbers if s in families), ("", 0))
    for leaf, numbers in found.items()
  }
  used = {stem for stem, _ in first.values()}
  return {k: f for k, f in families.items() if k in used}, first


def _scanned(families, specs):
  """Leaf -> layers, of leaves whose first axis these are.

  They are that of a module with numbered parts (LayerNorm_0, LayerNorm_1), or
  of one around it, in which all leaves begin with an axis of one length, though
  some are vectors within a layer and others are matrices.
  """
  stacks = _stacks(specs)
  found = {}
  for family in families.values():
    around = [one for one in stacks if family.parent.startswith(one)]
    if not around:
      continue
    module = min(around, key=len)
    inside = [leaf for leaf in specs if leaf.startswith(module)]
    if len({len(specs[leaf].shape) for leaf in inside}) == 1:
      leaf, shape = inside[0], specs[inside[0]].shape
      raise ValueError(
        f"All leaves of {module[:-1]!r} have {len(shape)} axes, the first of "
        f"length {shape[0]}, such as {leaf!r}. Are these its layers? {_ADVICE}"
      )
    found |= dict.fromkeys(inside, stacks[module])
  if not found:
    return found
  lengths = sorted(set(found.values()))
  others = [
    f"the modules {family.stem!r} + number"
    for family in families.values()
    if family.holds_modules() and not family.inside(found)
  ] + [
    f"also that of {module[:-1]!r}"
    for module, length in stacks.items()
    if length in lengths and not any(leaf.startswith(module) for leaf in found)
  ]
  if others or len(lengths) > 1 or 1 in lengths:
    raise ValueError(
      f"Which are the layers: the first axis of leaves such as "
      f"{next(iter(found))!r}, of length {' or '.join(map(str, lengths))}"
      f"{', or '.join(['', *others])}? {_ADVICE}"
    )
  return found


def _stacks(specs):
  """Module -> first axis, of modules in which all leaves have the same.

  Modules have two leaves or more, and are called with the separator at the end;
  leaves have two axes or more.
  """
  inside: dict[str, list[tuple[int, ...]]] = {}
  for leaf, spec in specs.items():
    for end in re.finditer(r"[/.]", leaf):
      inside.setdefault(leaf[: end.end()], []).append(tuple(spec.shape))
  return {
    module: shapes[0][0]
    for module, shapes in inside.items()
    if len(shapes) > 1
    and min(map(len, shapes)) > 1
    and len({shape[0] for shape in shapes}) == 1
  }


def _is_list(family, names):
  """Whether modules are all there is in a model, or in one part of it."""
  parent = family.parent
  if all(leaf.startswith(parent) for leaf in names):
    return True
  inside = [leaf for leaf in names if leaf.startswith(parent)]
  numbered = map(_NUMBERED.fullmatch, re.findall(r"[^/.]+", parent))
  return not any(numbered) and all(k.startswith(family.stem) for k in inside)


def _layers(families, names):
  """The families that are the layers, by stem."""
  blocks = [f for f in families.values() if f.holds_modules()]
  # Weights beside other modules, as LayerNorm_0 and LayerNorm_1, are what a
  # block is made of. A list of nothing else, or all of a model, has layers.
  found = blocks or [f for f in families.values() if _is_list(f, names)]
  if not found:
    raise ValueError(
      "No leaf has a numbered layer in its name, as "
      "'encoderblock_3/mlp/kernel', so that coefficients cannot go by depth. "
      "(Modules repeated inside a block are no layers; in a scanned model "
      "layers are an axis.) " + _ADVICE
    )
  most = max(len(f.members) for f in found)
  word = next(f.word for f in found if len(f.members) == most)
  for family in found:
    size, same = len(family.members), family.word == word
    if (size == most) != same:
      raise ValueError(
        f"Which are the layers: {word!r}, {most} of them, or "
        f"{family.stem!r}, {size} of them? {_ADVICE}"
      )
  layers = {f.stem: f for f in found if f.word == word}
  for family in layers.values():
    if not family.alike():
      raise ValueError(
        f"The modules {family.stem!r} + number are not alike, as layers are, "
        f"so that coefficients cannot go by depth. {_ADVICE}"
      )
  return layers
