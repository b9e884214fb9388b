# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The layer of each leaf and its depth in the network, from its name."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import re
from typing import Any

# Leaves outside the layers come before them if their name matches, else after.
_BEFORE = re.compile(
  r"embed|patch|pos(?!t)|cls|token|stem|root|wte|wpe|ln_pre|norm_pre|pre_norm|"
  r"(^|[/.])rope[/.]|"
  r"pre_layr?norm|(^|[/.])(conv|bn)(1|_init|_proj)([/.]|$)",
  re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:[A-Za-z]+|.*[_-])?(\d+)")
_SCANNED = re.compile(r"((?:.*/)?encoderblock)(/.+)")

# Leaves with one axis in a module, and two in a stack of modules.
_VECTOR = re.compile(r"(bias|scale|gamma|beta)$|norm", re.IGNORECASE)

_ADVICE = "Give a mapping from regular expressions to numbers instead."


def _numbered_parts(leaf: str) -> Iterator[tuple[str, int, str]]:
  """Yields the name up to each number, the number, and the rest of the name."""
  for part in re.finditer(r"[^/.]+", leaf):
    number = _NUMBERED.fullmatch(part.group())
    if number:
      stem = leaf[: part.start() + number.start(1)]
      yield stem, int(number[1]), leaf[part.end() :]


def split_number(leaf: str) -> tuple[str, int, str] | None:
  """Splits a name at the number of its first numbered part.

  Example:
    >>> split_number("Transformer/encoderblock_3/LayerNorm_0/scale")
    ('Transformer/encoderblock_', 3, '/LayerNorm_0/scale')

  Args:
    leaf: its name.

  Returns:
    The name up to the number, the number, and the rest; None if the name has no
    numbered part.
  """
  return next(_numbered_parts(leaf), None)


def layer_of(leaf: str) -> str:
  """Names the layer of a leaf: its numbered block, or else its module.

  Args:
    leaf: a name such as "Transformer/encoderblock_3/LayerNorm_0/scale" or
      "blocks.3.norm1.weight".

  Returns:
    The path up to the first numbered part ("Transformer/encoderblock_3",
    "blocks.3"); if there is none, the path without its last part ("head" for
    "head/kernel"), or the whole name of a top-level leaf.
  """
  parts = split_number(leaf)
  if parts is not None:
    return leaf.removesuffix(parts[2])
  return re.sub(r"(?<=[^/.])[/.]+[^/.]+$", "", leaf)


def block_names(leaf: str, count: int) -> list[str]:
  """Returns the names that a leaf of scanned blocks has when not scanned.

  Example:
    >>> block_names("Transformer/encoderblock/LayerNorm_0/scale", 2)[1]
    'Transformer/encoderblock_1/LayerNorm_0/scale'

  Args:
    leaf: its name.
    count: the number of blocks.

  Returns:
    One name per block; [] for leaves that are not in scanned blocks.
  """
  scanned = _SCANNED.fullmatch(leaf)
  if not scanned:
    return []
  return [f"{scanned[1]}_{i}{scanned[2]}" for i in range(count)]


@dataclasses.dataclass
class _Family:
  """Modules whose names differ in one number.

  Attributes:
    stem: the name up to the number.
    members: number -> the rests of the leaves' names.
  """

  stem: str
  members: dict[int, set[str]] = dataclasses.field(default_factory=dict)

  @property
  def parent(self) -> str:
    """Path of the enclosing module, such as "" or "Transformer/"."""
    return self.stem[: re.search(r"[^/.]*$", self.stem).start()]

  @property
  def word(self) -> str:
    """Name without the number, such as "encoderblock_" or "resblocks."."""
    return re.search(r"[^/.]*[/.]?$", self.stem).group()

  def holds_modules(self) -> bool:
    """Whether the members contain modules, as blocks do, or only weights."""
    rests = set().union(*self.members.values())
    return any(len(re.findall(r"[^/.]+", rest)) > 1 for rest in rests)

  def alike(self) -> bool:
    """Whether all share at least half of the names of the smallest member.

    The stages of a ResNet do, though their numbers of blocks differ.
    """
    rests = self.members.values()
    return 2 * len(set.intersection(*rests)) >= min(map(len, rests))


def ranks(leaves: Iterable[str]) -> tuple[dict[str, int], int]:
  """Ranks the leaves of a network by layer.

  Layers are modules that differ in the first number of a name
  ("encoderblock_3/...", "blocks.3....", "layer3...."). If there are several
  families of such modules, those that contain modules take precedence over
  those that contain only weights, and the longest family has the layers. Other
  families of the same name and length are layers too, as in models with two
  towers.

  Args:
    leaves: names of all leaves of the model.

  Returns:
    The rank of each leaf, and the number of layers, n. Ranks are 0 to n - 1 in
    the layers. All other leaves have rank -1 if their name suggests embeddings,
    patches, positions, tokens or a stem, else n.

  Raises:
    ValueError: if the model has no such layers, or they are ambiguous or too
      different from one another.
  """
  names = list(leaves)
  families, first = _families(names)
  layers = _layers(families, names)
  count = max(len(family.members) for family in layers.values())
  by_leaf = {}
  for leaf in names:
    stem, number = first[leaf]
    if stem in layers:
      by_leaf[leaf] = sorted(layers[stem].members).index(number)
    else:
      by_leaf[leaf] = -1 if _BEFORE.search(leaf) else count
  return by_leaf, count


def depths(leaves: Iterable[str] | Mapping[str, Any]) -> dict[str, float]:
  """Returns the depth of each leaf in the network, from 0 to 1; see `ranks`.

  Args:
    leaves: names of all leaves of the model; or a mapping from names to specs,
      to detect scanned models, whose layers are an axis.

  Raises:
    ValueError: as in `ranks`, or if layers seem to be an axis.
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
  """Families of two or more, by stem; and each leaf's first stem and number."""
  families: dict[str, _Family] = {}
  parts = {leaf: list(_numbered_parts(leaf)) for leaf in names}
  for stem, number, rest in itertools.chain.from_iterable(parts.values()):
    family = families.setdefault(stem, _Family(stem))
    family.members.setdefault(number, set()).add(rest)
  families = {k: f for k, f in families.items() if len(f.members) > 1}
  first = {
    leaf: next(((s, n) for s, n, _ in numbered if s in families), ("", 0))
    for leaf, numbered in parts.items()
  }
  used = {stem for stem, _ in first.values()}
  return {k: f for k, f in families.items() if k in used}, first


def _refuse_scanned(family, specs):
  """Raises if the leaves around a family seem to share an axis of layers."""
  inside = [k for k in specs if family.parent and k.startswith(family.parent)]
  shapes = [tuple(specs[leaf].shape) for leaf in inside]
  if not shapes or min(map(len, shapes)) < 2:
    return
  if len({shape[0] for shape in shapes}) == 1:
    raise _scanned(family.parent, shapes[0][0], inside[0])


def _refuse_stacks(specs):
  """Raises if the first axis of a module seems to be that of its layers."""
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
  """Returns the error for layers that are an axis."""
  return ValueError(
    f"The leaves of {module[:-1]!r}, such as {leaf!r}, seem to stack {count} "
    "layers along their first axis, as in a scanned model. Give a mapping such "
    f"as {{{module!r}: [...], '': 0.5}}: the list goes along the first axis, "
    "and the number is for all other leaves."
  )


def _is_list(family, names):
  """Whether a model, or the part around the family, has no other modules."""
  parent = family.parent
  if all(leaf.startswith(parent) for leaf in names):
    return True
  inside = [leaf for leaf in names if leaf.startswith(parent)]
  numbered = map(_NUMBERED.fullmatch, re.findall(r"[^/.]+", parent))
  return not any(numbered) and all(k.startswith(family.stem) for k in inside)


def _layers(families, names):
  """Returns the families that are the layers, by stem."""
  blocks = [f for f in families.values() if f.holds_modules()]
  # Weights beside other modules, such as LayerNorm_0 and LayerNorm_1, are parts
  # of a block. Without blocks, only families without other modules are layers.
  candidates = blocks or [f for f in families.values() if _is_list(f, names)]
  if not candidates:
    raise ValueError(
      "No leaf has a numbered layer in its name, such as "
      "'encoderblock_3/mlp/kernel', so coefficients cannot depend on depth. "
      "(Modules repeated inside a block are not layers, and in a scanned model "
      "layers are an axis.) " + _ADVICE
    )
  most = max(len(f.members) for f in candidates)
  word = next(f.word for f in candidates if len(f.members) == most)
  for family in candidates:
    size, same = len(family.members), family.word == word
    if (size == most) != same:
      raise ValueError(
        f"The layers are ambiguous: {word!r}, {most} of them, or "
        f"{family.stem!r}, {size} of them. {_ADVICE}"
      )
  layers = {f.stem: f for f in candidates if f.word == word}
  for family in layers.values():
    if not family.alike():
      raise ValueError(
        f"The modules {family.stem!r} + number differ too much to be layers, "
        f"so coefficients cannot depend on depth. {_ADVICE}"
      )
  return layers
