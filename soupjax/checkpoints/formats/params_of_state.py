# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Extracts the model from a train state, with one rule for all formats.

A train state is a tree with an optimizer, or with an entry that is known to
hold a model. In torch files, whose state dicts are flat, it is any dict of
dicts. The ingredient is its largest entry with the name of a model, or else its
only entry that is not training state. If several remain, the user must choose:
`FILE#ENTRY`.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import jax

from soupjax.soups.core import crc32, records, slices, tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any
# Names of the containers around an array, outermost first, and of the array.
Keys = tuple[str, ...]

# Entries of a train state that are not part of the model. If any other entry is
# left out, the user is warned.
_OPTIMIZER = re.compile(
  r"([\w.]+[_.])?(opt|optim|optimi[sz]er)s?"
  r"(_?((state|history|param|dict)\w*|[GDgd]|\d+))?"
)
_TRAINING = re.compile(
  r"(\w+_)?(lr_?)?sched(uler)?s?(_\w+)?|lr|\w*rngs?(_\w+)?|random_states?|"
  r"(\w+_)?(global_)?(steps?|epochs?)|iter(ation)?s?|\w*scaler\w*|amp|"
  r"loss(_scale)?|loops|callbacks|meta|message_hub|extra_state|trainer_state"
)
# Names in the files of random states that transformers saves.
_RANDOM = re.compile(r"cpu|cuda|npu|xla|xpu|mlu|musa|hpu|python|numpy")
# Names of optimizers that are also names of language models, and the names
# inside them that show which it is.
_AMBIGUOUS = re.compile(r"([\w.]+[_.])?opt")
_PART_OF_OPTIMIZER = re.compile(
  r"(\w+_)?(state|step|count|mu|nu|trace|(exp|square|grad|param)_\w+|"
  r"momentum(_buffer)?|velocity|hyperparams|ema)|m|v"
)
# Names inside an optimizer's state whose own name is "state" or a number.
_MOMENTS = {"param_states", "exp_avg", "momentum_buffer"}
# Names of entries that hold a model.
_MODEL = re.compile(
  r"(model|net|network|module)?_?(state_?dict|state|weights|params|dict)|"
  r"model|net|network|module"
)
# Names of alternatives, such as student and teacher; only one can be the model.
_ALTERNATIVE = re.compile(
  r"(\w+_)?(student|teacher|ema|target|online|momentum|generator|actor|critic|"
  r"discriminator|encoder|decoder)(_\w+)?|[GDgd]"
)


class NotOneModel(ValueError):
  """A valid tree in which the user must name the model."""


class NotAModel(NotOneModel):
  """A valid tree without the weights of a model."""


class Choice(NamedTuple):
  """The part of a train state that is the model.

  Attributes:
    prefix: names of the containers around it, which leaf names omit.
    heads: the entries below the prefix that belong to it; None for all.
    ignored: other entries with arrays -> reason.
  """

  prefix: Keys = ()
  heads: frozenset[str] | None = None
  ignored: Mapping[str, str] = {}

  def has(self, keys: Keys) -> bool:
    """Whether an array is part of the model."""
    depth = len(self.prefix)
    return keys[:depth] == self.prefix and (
      self.heads is None or keys[depth : depth + 1][0] in self.heads
    )


def choose(
  path: str,
  sizes: Mapping[Keys, int],
  *,
  entry: str | None = None,
  plain: Callable[[Keys], Collection[str]] | None = None,
) -> Choice:
  """Chooses the model in a tree.

  Args:
    path: path of the checkpoint, for errors.
    sizes: keys of an array -> number of elements.
    entry: the path of the model in the tree, with '/' between names; "" takes
      all of the tree, None follows the rule of this module.
    plain: returns the names of the entries of a container that are not arrays
      and contain none. Only torch files have such entries; None for the other
      formats.

  Returns:
    The part of the tree that is the model, and the entries that are left out.

  Raises:
    NotAModel: if all arrays belong to an optimizer or to random states.
    NotOneModel: if several entries could be the model.
    ValueError: if the entry does not exist.
  """
  is_torch = plain is not None
  if entry is not None:
    prefix = tuple(entry.split("/")) if entry else ()
    _check_entry(path, sizes, prefix)
    return Choice(prefix)
  choice = Choice()
  if () in sizes:  # A single array.
    return choice
  while True:
    level = _Level(path, sizes, choice.prefix, plain)
    known = level.known(is_torch)
    if {"params", "batch_stats"} <= {*level.models} and known == ["params"]:
      # A model with batch normalisation needs both.
      heads = frozenset({"params", "batch_stats"})
      return choice._replace(heads=heads, ignored=level.others(heads))
    if known:
      model = level.largest(known)
    elif level.states:
      model = level.largest(level.states)
    elif level.loose or not level.models:
      level.check_is_model(is_torch)
      if level.optimizers:
        heads = frozenset(level.heads) - {*level.optimizers}
        ignored = {**choice.ignored, **level.training_state()}
        return choice._replace(heads=heads, ignored=ignored)
      return choice
    elif level.optimizers or (is_torch and level.is_state_dicts()):
      if not (is_torch or level.has_alternatives()):
        heads = frozenset(level.models)
        return choice._replace(heads=heads, ignored=level.training_state())
      if len(level.models) > 1:
        raise level.question(level.models)
      (model,) = level.models
    else:
      return choice
    ignored = {**choice.ignored, **level.others({model})}
    choice = Choice((*choice.prefix, model), None, ignored)
    if not (is_torch or level.optimizers or level.states):
      return choice


def _check_entry(path, sizes, prefix):
  """Checks that a train state has an entry."""
  for depth in range(len(prefix)):
    names = {
      keys[depth]
      for keys in sizes
      if keys[:depth] == prefix[:depth] and len(keys) > depth
    }
    if prefix[depth] not in names:
      raise ValueError(
        f"{path} has no arrays in an entry {'/'.join(prefix[: depth + 1])!r}; "
        f"it has {sorted(names)[:10]}."
      )
  if prefix in sizes:
    raise ValueError(
      f"{path} has an array called {'/'.join(prefix)!r}, not a model: give the "
      "name of an entry that contains arrays."
    )


class _Level:
  """The entries of one container.

  Attributes:
    heads: name of an entry -> its arrays.
    loose: entries that are arrays and not training state.
    optimizers: entries that hold the state of an optimizer.
    models: entries that contain arrays and are not training state.
    states: those of `models` that are train states themselves.
  """

  def __init__(self, path, sizes, prefix, plain):
    self._path, self._sizes, self._prefix = path, sizes, prefix
    self._depth = depth = len(prefix)
    self._plain = plain or (lambda prefix: ())
    self.heads: dict[str, list[Keys]] = {}
    for keys in sizes:
      if keys[:depth] == prefix and len(keys) > depth:
        self.heads.setdefault(keys[depth], []).append(keys)
    arrays = {h for h, ks in self.heads.items() if len(ks[0]) == depth + 1}
    # As "optimizer.exp_avg", in files whose names are joined by dots.
    roots = {h.split(".")[0] for h in arrays if "." in h}
    roots = {root for root in roots if self._is_dotted_optimizer(root)}
    dotted = [h for h in arrays if roots and h.split(".")[0] in roots]
    branches = [h for h in self.heads if h not in arrays]
    self.optimizers = dotted + [h for h in branches if self._is_optimizer(h)]
    rest = [
      h for h in self.heads if h not in self.optimizers and not is_training(h)
    ]
    self.loose = [h for h in rest if h in arrays]
    self.models = [h for h in rest if h not in arrays]
    self.states = [h for h in self.models if self._has_optimizer(h)]

  def _has_optimizer(self, head):
    depth = self._depth + 1
    children = {k[depth] for k in self.heads[head] if len(k) > depth + 1}
    return any(
      _OPTIMIZER.fullmatch(child)
      or "param_groups" in self._plain((*self._prefix, head, child))
      for child in children
    )

  def _is_dotted_optimizer(self, root):
    if not _AMBIGUOUS.fullmatch(root):
      return _OPTIMIZER.fullmatch(root) is not None
    inside = (h.split(".")[1:] for h in self.heads if h.startswith(f"{root}."))
    return _has_moments(name for names in inside for name in names)

  def _is_optimizer(self, head):
    if _OPTIMIZER.fullmatch(head) and not _AMBIGUOUS.fullmatch(head):
      return True
    if _AMBIGUOUS.fullmatch(head):
      inner = (keys[self._depth + 1 :] for keys in self.heads[head])
      names = [name for keys in inner for name in keys]
      beside = self._plain((*self._prefix, head))
      return _has_moments([*names, *beside])
    depth = self._depth + 1
    inside = set(self._plain((*self._prefix, head)))
    inside.update(keys[depth] for keys in self.heads[head])
    if "param_groups" in inside:
      return True
    if not re.fullmatch(r"states?|\d+", head):
      return False
    beside = {*self.heads, *self._plain(self._prefix)}
    inside.update(*(keys[depth : depth + 2] for keys in self.heads[head]))
    return (
      "param_groups" in beside
      or bool(inside & _MOMENTS)
      or {"mu", "nu"} <= inside
    )

  def known(self, is_torch):
    """Returns the entries that have the name of a model."""
    if is_torch or self.optimizers:
      return [h for h in self.models if _MODEL.fullmatch(h)]
    # In other formats, "model", "net" and so on may be names of layers.
    several = len(self.heads) > 1
    return [h for h in self.models if h == "params" and several]

  def largest(self, names):
    """Returns the entry with the most elements.

    Raises:
      NotOneModel: if several are equally large.
    """
    sizes = {h: self._size(h) for h in names}
    most = max(sizes.values())
    first, *others = [h for h in names if sizes[h] == most]
    if others:
      raise self.question([first, *others])
    return first

  def _size(self, head):
    return sum(self._sizes[keys] for keys in self.heads[head])

  def training_state(self):
    """Returns the entries of optimizers and of training scripts."""
    names = {
      # Names that are joined by dots are reported by their first part.
      h.split(".")[0] if h in self.optimizers and len(ks[0]) == 1 else h
      for h, ks in self.heads.items()
      if h in self.optimizers or is_training(h)
    }
    place = self._prefix
    return {"/".join((*place, h)): records.TRAINING for h in sorted(names)}

  def others(self, chosen):
    """Returns entries that are left out, and the reasons."""
    beside = " and ".join(map(repr, sorted(chosen)))
    return self.training_state() | {
      "/".join((*self._prefix, h)): f"{kind}beside {beside}"
      for kind, names in (("", self.models), ("an array ", self.loose))
      for h in names
      if h not in chosen
    }

  def has_alternatives(self):
    """Whether there is only one model, or they are alternatives."""
    names = map(_ALTERNATIVE.fullmatch, self.models)
    return len(self.models) == 1 or any(names)

  def is_state_dicts(self):
    """Whether the entries of a torch file are state dicts, not layers."""
    return (
      len(self.heads) > len(self.models)
      or bool(self._plain(self._prefix))
      or any(map(_ALTERNATIVE.fullmatch, self.models))
      or any("." in k[-1] for h in self.models for k in self.heads[h])
    )

  def check_is_model(self, is_torch):
    """Raises NotAModel if all arrays are training state."""
    if self.loose and not all(map(_RANDOM.fullmatch, self.loose)):
      return
    if self.models or not (is_torch or self.optimizers):
      return
    # An array cannot be read as a model.
    names = [h for h in self.heads if len(self.heads[h][0]) > self._depth + 1]
    raise NotAModel(
      f"{self._path} holds no model, only {sorted(self.heads)[:10]}, which are "
      "part of a train state. If one of them is a model, add it to the path: "
      f"{self._path}#{min(names, default='')}."
    )

  def question(self, names):
    """Returns the error that asks which entry is the model."""
    names = sorted(names)
    largest = max(names, key=self._size)
    entry = "/".join((*self._prefix, largest))
    several = ", ".join(f"{h!r} ({len(self.heads[h])} arrays)" for h in names)
    return NotOneModel(
      f"{self._path} holds several models: {several}. Add the name of one to "
      f"the path, such as {self._path}#{entry}, or just # to read all of them."
    )


def _has_moments(names) -> bool:
  """Whether any of the names is usual in the state of an optimizer."""
  return any(map(_PART_OF_OPTIMIZER.fullmatch, names))


def is_training(name: str) -> bool:
  """Whether a name is usual for training state, such as "optimizer"."""
  return bool(_OPTIMIZER.fullmatch(name) or _TRAINING.fullmatch(name))


def of_state(
  path: str, state: PyTree, entry: str | None = None
) -> tuple[PyTree, Keys, Mapping[str, str]]:
  """Returns the weights in a train state of nested dicts and lists.

  Args:
    path: path of the checkpoint, for errors.
    state: its leaves may have any type; those without a shape count as one
      element.
    entry: see `choose`.

  Returns:
    The weights, the names of the containers around them, and ignored entries
    with reasons.

  Raises:
    ValueError: as in `choose`.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  sizes = {
    tuple(jax.tree_util.keystr((k,), simple=True) for k in keys): math.prod(
      getattr(leaf, "shape", ())
    )
    for keys, leaf in leaves
  }
  choice = choose(path, sizes, entry=entry)
  weights = state
  for key in choice.prefix:
    weights = _items(weights)[key]
  if choice.heads is not None:
    items = _items(weights)
    weights = {head: items[head] for head in items if head in choice.heads}
  return weights, choice.prefix, choice.ignored


def _items(container) -> dict[str, Any]:
  is_dict = isinstance(container, Mapping)
  items = container.items() if is_dict else enumerate(container)
  return {str(key): value for key, value in items}


@functools.lru_cache(maxsize=16)
def _is_model(names: tuple[str, ...]) -> bool:
  """Whether a whole tree is one model, which does not depend on its shapes.

  Checkpoints of the same model share one result.
  """
  try:
    return choose("", {tuple(k.split("/")): 1 for k in names}) == Choice()
  except ValueError:
    return False


def of(
  ingredient: Ingredient,
  entry: str | None = None,
  plain: Callable[[Keys], Collection[str]] | None = None,
) -> Ingredient:
  """Reduces an ingredient to its weights if its file holds a train state.

  Args:
    ingredient: its leaves have the names in its file, where '/' makes nested
      dicts.
    entry: see `choose`.
    plain: see `choose`.

  Raises:
    ValueError: as in `choose`.
  """
  if not entry and plain is None and _is_model(tuple(ingredient.specs)):
    return ingredient
  sizes = {
    tuple(name.split("/")): math.prod(spec.shape)
    for name, spec in ingredient.specs.items()
  }
  choice = choose(ingredient.path, sizes, entry=entry, plain=plain)
  if not choice.prefix and choice.heads is None:
    return ingredient
  cut = sum(len(key) + 1 for key in choice.prefix)
  # Name in the file -> new name.
  new = {
    name: name[cut:]
    for name, keys in zip(ingredient.specs, sizes)
    if choice.has(keys)
  }
  old = {leaf: name for name, leaf in new.items()}
  specs, treedef = tree.nest(
    {leaf: ingredient.specs[name] for name, leaf in new.items()}
  )
  storage = ingredient.storage

  def renamed(values):
    return {leaf: values[k] for leaf, k in old.items() if k in values}

  def read(spans, out):
    storage.read([slices.Span(old[span[0]], *span[1:]) for span in spans], out)

  return dataclasses.replace(
    ingredient,
    specs=specs,
    treedef=treedef,
    reader=lambda leaf, index: ingredient.reader(old[leaf], index),
    ignored={**ingredient.ignored, **choice.ignored},
    storage=dataclasses.replace(
      storage,
      read=read,
      order=tuple(new[stored] for stored in storage.order if stored in new),
      chunks=renamed(storage.chunks),
      checksums=renamed(storage.checksums),
      # Leaves that share a checksum with one left out cannot be compared.
      shared=[
        crc32.Shared(part.checksum, {new[k]: n for k, n in part.sizes.items()})
        for part in storage.shared
        if part.sizes.keys() <= new.keys()
      ],
      self_checked={new[k] for k in storage.self_checked if k in new},
    ),
  )
