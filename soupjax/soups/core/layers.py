# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The layer of each leaf and its depth in the network, by its name."""

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Any

# Leaves out of the layers with such names come before them, all others after.
_BEFORE = re.compile(
  r"embed|patch|pos(?!t)|cls|token|stem|root|wte|wpe|ln_pre|norm_pre|pre_norm|"
  r"pre_layr?norm|(^|[/.])(conv|bn)(1|_init|_proj)([/.]|$)",
  re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:[A-Za-z]+|.*[_-])?(\d+)")
_SCANNED = re.compile(r"((?:.*/)?encoderblock)(/.+)")

# What has one axis in a module, and two in a stack of them.
_VECTOR = re.compile(r"(bias|scale|gamma|beta)$|norm", re.IGNORECASE)

_ADVICE = "Give a mapping from regular expressions to numbers instead."


def split_number(leaf: str) -> tuple[str, int, str] | None:
  """Splits a name at the number of its first numbered part.

  Example:
    >>> split_number("Transformer/encoderblock_3/LayerNorm_0/scale")
    ('Transformer/encoderblock_', 3, '/LayerNorm_0/scale')

  Args:
    leaf: its name.

  Returns:
    The name up to the number, the number, and the rest; None without one.
  """
  for part in re.finditer(r"[^/.]+", leaf):
    number = _NUMBERED.fullmatch(part.group())
    if number:
      stem = leaf[: part.start() + number.start(1)]
      return stem, int(number[1]), leaf[part.end() :]
  return None


def layer_of(leaf: str) -> str:
  """Names the layer a leaf belongs to: its numbered block, or its module.

  Args:
    leaf: a name like "Transformer/encoderblock_3/LayerNorm_0/scale" or
      "blocks.3.norm1.weight".

  Returns:
    The path up to the first numbered part ("Transformer/encoderblock_3",
    "blocks.3"); without one, the path less its last part ("head" for
    "head/kernel"); for a leaf by itself, its name.
  """
  parts = split_number(leaf)
  if parts is not None:
    return leaf.removesuffix(parts[2])
  return re.sub(r"(?<=[^/.])[/.]+[^/.]+$", "", leaf)


def block_names(leaf: str, count: int) -> list[str]:
  """Names the blocks of a leaf whose first axis is that of scanned blocks.

  Example:
    >>> block_names("Transformer/encoderblock/LayerNorm_0/scale", 2)[1]
    'Transformer/encoderblock_1/LayerNorm_0/scale'

  Args:
    leaf: its name.
    count: the number of blocks.

  Returns:
    What the same leaf is called in every block of a model that is not scanned;
    [] for all other leaves.
  """
  scanned = _SCANNED.fullmatch(leaf)
  if not scanned:
    return []
  return [f"{scanned[1]}_{i}{scanned[2]}" for i in range(count)]


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


def ranks(leaves: Iterable[str]) -> tuple[dict[str, int], int]:
  """Ranks the leaves of a network by layer.

  Layers are modules told apart by the first number in a name
  ("encoderblock_3/...", "blocks.3....", "layer3...."). Of several families of
  them, those that hold modules go before those that hold just weights, and of
  these the longest is that of the layers; so is every other of the same name
  and length, as in models of two towers.

  Args:
    leaves: names of all leaves of the model.

  Returns:
    The rank of each leaf, and the number of layers, n. Ranks are 0 to n - 1 in
    the layers. All other leaves are at -1 if their name speaks of embeddings,
    patches, positions, tokens or a stem, else at n.

  Raises:
    ValueError: if there are no such layers, or it is not clear which they are.
  """
  names = list(leaves)
  families, first = _families(names)
  layers = _layers(families, names)
  count = max(len(family.members) for family in layers.values())
  by_leaf = {}
  for leaf in names:
    stem, number = first.get(leaf, ("", 0))
    if stem in layers:
      by_leaf[leaf] = sorted(layers[stem].members).index(number)
    else:
      by_leaf[leaf] = -1 if _BEFORE.search(leaf) else count
  return by_leaf, count


def depths(leaves: Iterable[str] | Mapping[str, Any]) -> dict[str, float]:
  """Returns how deep in the network each leaf is, from 0 to 1: see `ranks`.

  Args:
    leaves: names of all leaves of the model, or also their specs, which show
      whether layers are an axis.

  Raises:
    ValueError: if there are no such layers, or it is not clear which they are.
  """
  if isinstance(leaves, Mapping):
    for family in _families(leaves)[0].values():
      _refuse_scanned(family, leaves)
    _refuse_stacks(leaves)
  by_leaf, count = ranks(leaves)
  return {
    leaf: min(max(rank / (count - 1), 0.0), 1.0)
    for leaf, rank in by_leaf.items()
  }


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


def _refuse_scanned(family, specs):
  """Raises if the layers are the first axis of all that is beside a family."""
  inside = [k for k in specs if family.parent and k.startswith(family.parent)]
  shapes = [tuple(specs[leaf].shape) for leaf in inside]
  if not shapes or min(map(len, shapes)) < 2:
    return
  if len({shape[0] for shape in shapes}) == 1:
    raise _scanned(family.parent, shapes[0][0], inside[0])


def _refuse_stacks(specs):
  """Raises if a module looks as if its layers were the first axis."""
  inside: dict[str, list[str]] = {}
  for leaf in specs:
    for end in re.finditer(r"[/.]", leaf):
      inside.setdefault(leaf[: end.end()], []).append(leaf)
  for module, leaves in inside.items():
    shapes = [tuple(specs[leaf].shape) for leaf in leaves]
    vectors = [
      leaf
      for leaf, shape in zip(leaves, shapes)
      if len(shape) == 2 and _VECTOR.search(leaf)
    ]
    if vectors and min(map(len, shapes)) > 1 and max(map(len, shapes)) > 2:
      if len({shape[0] for shape in shapes}) == 1:
        raise _scanned(module, shapes[0][0], vectors[0])


def _scanned(module, count, leaf):
  """The error that layers are an axis."""
  return ValueError(
    f"The layers of {module[:-1]!r} seem to be the first axis of its leaves, "
    f"{count} in each, such as {leaf!r}: a scanned model. Say where layers are "
    "an axis, and what all other leaves get: a mapping as "
    f"{{{module!r}: [...], '': 0.5}} goes along the first axis with its list."
  )


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
