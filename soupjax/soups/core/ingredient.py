# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""An ingredient: one fine-tuned model, named and read lazily."""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
  ValuesView,
)
import contextlib
import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import (
  arguments,
  configs,
  crc32,
  precision,
  slices,
  tree,
)

PyTree = Any
# A tree, an Ingredient, or a type that is registered with `open_models`.
Model = Any
# One model, or a list of models in any mix of forms.
Models = Any
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Storage:
  """Reads an ingredient in blocks.

  Attributes:
    read: `read(spans, out)` fills the spans of a flat array with boxes of
      leaves, which all have its dtype. Must be safe to call from several
      threads. `box_by_box` makes one from a function that reads one box.
    order: all leaves, in the best order to read them.
    chunks: leaf -> shape of the chunks that are read whole; other leaves can be
      read in any parts.
    checksums: leaf -> CRC-32 of its bytes, row-major and little-endian, if the
      file records one.
    num_bytes: bytes on disk; None if unknown.
    shared: checksums over several leaves.
    self_checked: leaves that `read` compares with a checksum itself.
  """

  read: Callable[[Sequence[slices.Span], np.ndarray], None]
  order: Sequence[str]
  chunks: Mapping[str, tuple[int, ...]] = dataclasses.field(
    default_factory=dict
  )
  checksums: Mapping[str, int] = dataclasses.field(default_factory=dict)
  num_bytes: int | None = None
  shared: Sequence[crc32.Shared] = ()
  self_checked: Collection[str] = frozenset()

  @property
  def summed(self) -> set[str]:
    """Leaves whose checksum must be computed to compare it."""
    return {*self.checksums, *(k for part in self.shared for k in part.sizes)}

  def read_box(self, leaf: str, box: slices.Slices, out: np.ndarray) -> None:
    """Fills a flat array with one box, in row-major order."""
    self.read([slices.Span(leaf, box, 0, out.size)], out)


def box_by_box(
  read_box: Callable[[str, slices.Slices, np.ndarray], None],
) -> Callable[[Sequence[slices.Span], np.ndarray], None]:
  """Returns a `Storage.read` that calls `read_box(leaf, box, out)` in turn."""

  def read(spans, out):
    for span in spans:
      read_box(span.leaf, span.box, out[span.start : span.stop])

  return read


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ingredient:
  """A named model for a soup, whose weights are read on demand.

  Attributes:
    name: for reports and error messages.
    specs: leaf name -> shape and dtype, known without reading any weights.
    treedef: puts the leaves, in the order of `specs`, back into a tree.
    reader: `reader(leaf, index)` returns a part of a leaf, or all of it if the
      index is None. Must be safe to call from several threads.
    metrics: held-out scores, such as `{"minival/prec@1": 0.8}`.
    hyperparameters: of its fine-tuning.
    configs: file name -> content of the JSON files beside the weights that
      describe the model, such as `config.json` of transformers.
    path: of its file or directory; None for trees in memory.
    storage: for reading in blocks; None reads whole leaves with `reader`.
    ignored: entry of its file that is not read, though it may belong to the
      model -> reason.
    text: free text that its file stores with the weights, by key.
    changed: `changed()` describes the first of its files that has changed since
      it was opened, or returns ""; None for trees in memory.
    base: the base model of an adapter; None for a full model.

  Examples:
    >>> a = sj.Ingredient.from_params("a", {"head": {"bias": jnp.arange(3.0)}})
    >>> a.specs["head/bias"]
    ShapeDtypeStruct(shape=(3,), dtype=float32)
    >>> a.read("head/bias", index=(slice(0, 2),))
    array([0., 1.], dtype=float32)
  """

  name: str
  specs: Mapping[str, jax.ShapeDtypeStruct]
  treedef: Any
  reader: Callable[[str, Index | None], Any]
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  configs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  path: str | None = None
  storage: Storage | None = None
  ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
  text: Mapping[str, str] = dataclasses.field(default_factory=dict)
  changed: Callable[[], str] | None = None
  base: "Ingredient | None" = None

  @classmethod
  def from_params(
    cls,
    name: str,
    params: PyTree,
    metrics: Mapping[str, float] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
  ) -> "Ingredient":
    """Wraps a tree in memory without a copy.

    Args:
      name: for reports and error messages.
      params: any pytree of arrays.
      metrics: held-out scores, see `rank_by`.
      hyperparameters: of its fine-tuning.

    Raises:
      ValueError: if the tree is empty, two leaves share a name, or a leaf is
        not an array of numbers.
    """
    leaves, treedef = tree.flatten(params)
    specs = tree.value_specs(leaves, repr(name))
    # Python numbers become NumPy arrays.
    leaves = {
      leaf: value if hasattr(value, "dtype") else np.asarray(value)
      for leaf, value in leaves.items()
    }
    return cls(
      name=name,
      specs=specs,
      treedef=treedef,
      reader=lambda leaf, index: (
        leaves[leaf] if index is None else np.asarray(leaves[leaf])[index]
      ),
      metrics=dict(metrics or {}),
      hyperparameters=dict(hyperparameters or {}),
    )

  @property
  def num_bytes(self) -> int:
    """Bytes of all leaves together."""
    return tree.num_bytes(self.specs.values())

  def read(
    self,
    leaf: str,
    *,
    index: Index | None = None,
    sharding: jax.sharding.Sharding | None = None,
  ) -> jax.Array | np.ndarray:
    """Reads one leaf, or a slice of it.

    Args:
      leaf: its name, one of `specs`.
      index: a tuple of slices, with positive steps; None for the whole leaf.
      sharding: of the whole leaf. Each process reads only the slices that its
        own devices hold. A recorded checksum is compared once this process has
        read all of the leaf, whole or in slices. Leaves of 64 bits stay on
        the host if JAX would cut them to 32. None returns the reader's array.

    Returns:
      The leaf, or the slice of it, in the leaf's dtype.

    Raises:
      ValueError: if the leaf does not exist, the index does not fit it, index
        and sharding are both given, or a file is damaged or has changed since
        it was opened.
    """
    with explaining_changes([self]):
      value = self._read(leaf, index, sharding)
    check_unchanged([self])
    return value

  def _read(self, leaf, index, sharding):
    if leaf not in self.specs:
      raise ValueError(f"{self.name!r} has no leaf {leaf!r}.")
    spec = self.specs[leaf]
    if index is not None:
      if sharding is not None:
        raise ValueError("Give an index or a sharding, not both.")
      _check_index(self.name, leaf, spec, index)
    if sharding is None or precision.is_cut(spec):
      return self.reader(leaf, index)
    if self.path is None or self._checked_if_whole(leaf, sharding):
      value = self.reader(leaf, None)
      if self.path is None and (
        isinstance(value, jax.Array) or sharding.is_fully_addressable
      ):
        return jax.device_put(value, sharding)
      # device_put would compare the values of all processes, by a collective
      # that blocks those of an evaluation in another thread.
      return jax.make_array_from_callback(
        spec.shape, sharding, lambda index: value[index]
      )
    # Devices that hold the same slice share one read. The keys are strings
    # because slices have no hash before Python 3.12.
    cache: dict[str, Any] = {}

    def fetch(index):
      key = str(index)
      if key not in cache:
        cache[key] = self.reader(leaf, index)
      return cache[key]

    return jax.make_array_from_callback(spec.shape, sharding, fetch)

  def _checked_if_whole(self, leaf: str, sharding: Any) -> bool:
    """Whether a leaf has a checksum and this process needs all of the leaf."""
    if self.storage is None or leaf not in self.storage.checksums:
      return False
    shape = self.specs[leaf].shape
    indices = sharding.addressable_devices_indices_map(shape).values()
    boxes = [slices.normalise(index, shape) for index in indices]
    sizes = {str(box): slices.size(box) for box in boxes}
    return sum(sizes.values()) >= math.prod(shape)

  def load(self, *, sharding: Any = None) -> PyTree:
    """Reads all leaves and returns the tree.

    Args:
      sharding: None, one `jax.sharding.Sharding` for every leaf, or a function
        of leaf name and `jax.ShapeDtypeStruct` that returns one.

    Returns:
      The parameters, in their original containers if the format records them,
      else in nested dicts.
    """
    with explaining_changes([self]):
      leaves = [
        self._read(leaf, None, sharding_of(sharding, leaf, spec))
        for leaf, spec in self.specs.items()
      ]
    check_unchanged([self])
    return jax.tree.unflatten(self.treedef, leaves)

  def in_memory(self, *, sharding: Any = None) -> "Ingredient":
    """Reads all leaves into memory, for recipes with several passes.

    Args:
      sharding: as in `load`.

    Returns:
      The same ingredient. Float leaves are on devices; integers, and leaves
      that JAX would cut to 32 bits, stay on the host.
    """
    params = jax.tree.map(
      lambda x: precision.placed(x) if tree.is_float(tree.spec(x)) else x,
      self.load(sharding=sharding),
    )
    return dataclasses.replace(
      Ingredient.from_params(self.name, params),
      metrics=self.metrics,
      hyperparameters=self.hyperparameters,
      configs=self.configs,
    )


def sharding_of(sharding: Any, leaf: str, spec: jax.ShapeDtypeStruct) -> Any:
  """Resolves a `sharding` argument (see `Ingredient.load`) for one leaf."""
  if sharding is None or isinstance(sharding, jax.sharding.Sharding):
    return sharding
  return sharding(leaf, spec)


def _check_index(name, leaf, spec, index):
  """Checks that an index means the same in memory and on disk."""
  fix = (
    f"give a tuple of at most {len(spec.shape)} slices, such as "
    "(slice(0, 2),), or None for all of the leaf"
  )
  if not isinstance(index, tuple) or len(index) > len(spec.shape):
    raise ValueError(
      f"Index {index!r:.80} does not fit leaf {leaf!r} of {name!r}, of shape "
      f"{spec.shape}: {fix}."
    )
  for part in index:
    if not isinstance(part, slice) or (part.step is not None and part.step < 1):
      raise ValueError(
        f"Index {index!r:.80} of leaf {leaf!r} of {name!r} contains {part!r}, "
        f"which is not a slice with a positive step: {fix}."
      )


@functools.singledispatch
def open_models(
  first: Any, models: Sequence[Any], names: Sequence[str]
) -> list[Ingredient]:
  """Opens models of one kind; this module handles trees and ingredients.

  Other packages register more kinds with `@open_models.register`; for example,
  `soupjax.checkpoints` registers paths.

  Args:
    first: `models[0]`, whose type decides the kind.
    models: all of the same kind.
    names: one per model, for kinds that have no names.

  Raises:
    TypeError: if they are not trees of arrays.
  """
  is_leaf = jax.tree.structure(first) == jax.tree.structure(0)
  if first is None or (is_leaf and not hasattr(first, "shape")):
    raise TypeError(
      "Expected a model (a tree of arrays, an Ingredient, or the path of a "
      f"checkpoint), got a {type(first).__name__}: {first!r:.80}."
    )
  return [Ingredient.from_params(n, model) for n, model in zip(names, models)]


open_models.register(Ingredient, lambda first, models, names: list(models))


def _is_tree(model: Any) -> bool:
  return open_models.dispatch(type(model)) is open_models.dispatch(object)


def listed(models: Any) -> list[Any]:
  """Returns several models as a list, and one model as a list of one."""
  several = list | Iterator | ValuesView
  if isinstance(models, several) or (
    isinstance(models, tuple) and not hasattr(models, "_fields")
  ):
    return list(models)
  return [models]


def as_ingredients(models: Models) -> list[Ingredient]:
  """Opens models, given in any form; reads no weights.

  Args:
    models: a tree, an Ingredient, a path or a pattern, or a list of any of
      these. A list is a list of models, even where it could be a tree.

  Returns:
    The ingredients in the order given. Trees are called "model_0", ... by
    their position.

  Raises:
    TypeError: if one is not a model.
    ValueError: if nothing is at a path, or a dict holds several models.
  """
  if isinstance(models, Mapping):
    _check_one_model(models)

  def kind(item):
    return open_models.dispatch(type(item[1]))

  items = enumerate(listed(models))
  ingredients = []
  # Consecutive paths are opened together: their names are the parts of the
  # paths that differ.
  for _, group in itertools.groupby(items, key=kind):
    positions, same_kind = zip(*group)
    names = [f"model_{k}" for k in positions]
    ingredients += open_models(same_kind[0], same_kind, names)
  return _in_shared_containers(ingredients)


def _in_shared_containers(ingredients: list[Ingredient]) -> list[Ingredient]:
  """Gives models from files the containers of the first tree in memory.

  Most formats record only the names of leaves, so lists are read as dicts.
  """
  model = next((i for i in ingredients if i.path is None), None)
  if model is None:
    return ingredients

  def adapted(ingredient):
    specs = ingredient.specs
    if ingredient.path is None or specs.keys() != model.specs.keys():
      return ingredient
    specs = {leaf: specs[leaf] for leaf in model.specs}
    return dataclasses.replace(ingredient, specs=specs, treedef=model.treedef)

  return list(map(adapted, ingredients))


def as_ingredient(model: Model, name: str) -> Ingredient:
  """Opens one model, given in any form; reads no weights.

  Args:
    model: a tree, an Ingredient, the path of a checkpoint, a pattern that
      matches one, or a list of one of the last three. Any other list is a tree.
    name: of a tree, and of the argument in errors.

  Raises:
    TypeError: if it is not a model.
    ValueError: if nothing is at a path, or there are several models.
  """
  items = listed(model)
  if not all(map(_is_tree, items)):
    opened = as_ingredients(items)
  else:
    opened = open_models(model, [model], [name])
  if len(opened) != 1:
    raise ValueError(
      f"{name} must be one model, got {len(opened)}: "
      f"{[i.name for i in opened][:10]}."
    )
  return opened[0]


def _check_one_model(models: Mapping[Any, Any]) -> None:
  """Rejects a dict of several models, which would pass as one tree."""
  values = list(models.values())
  alike = not all(map(_is_tree, values))
  if not alike:
    shapes = [
      (jax.tree.structure(v), [np.shape(x) for x in jax.tree.leaves(v)])
      for v in values
      if isinstance(v, Mapping)
    ]
    alike = len(shapes) == len(values) > 1 and all(
      shape == shapes[0] for shape in shapes
    )
  if alike:
    raise ValueError(
      f"Got a {type(models).__name__} of models {list(models)[:10]}: give "
      "list(models.values()), or Ingredient.from_params(name, params) of each "
      "to keep the names. If it is one model, put it in a list."
    )


def check_names(ingredients: Sequence[Ingredient]) -> None:
  """Raises a ValueError if the list is empty, or two share a name."""
  if not ingredients:
    raise ValueError("A soup needs at least one ingredient, got none.")
  names = set()
  for ingredient in ingredients:
    if ingredient.name in names:
      raise ValueError(
        f"Two ingredients are called {ingredient.name!r}. Names must differ, "
        "so that reports are unambiguous."
      )
    names.add(ingredient.name)


def check_unchanged(ingredients: Iterable[Ingredient]) -> None:
  """Checks that no file has changed since its ingredient was opened.

  Raises:
    ValueError: naming the ingredient and the file.
  """
  for ingredient in ingredients:
    if ingredient.changed and (change := ingredient.changed()):
      raise ValueError(
        f"Ingredient {ingredient.name!r} has changed since it was opened: "
        f"{change}. Start again when nothing writes to it any more."
      )


@contextlib.contextmanager
def explaining_changes(ingredients: Sequence[Ingredient]) -> Iterator[None]:
  """Replaces errors of a block by that of `check_unchanged`, if it raises one.

  Files that change while they are read cause errors of many kinds.
  """
  try:
    yield
  except Exception as e:
    try:
      check_unchanged(ingredients)
    except ValueError as change:
      raise change from e
    raise


def check_ingredients(
  ingredients: Sequence[Ingredient], *, has_base: bool = False
) -> list[Ingredient]:
  """Checks names, structures, shapes and dtypes; reads no float weights.

  Args:
    ingredients: models to average.
    has_base: whether the first is a base, whose leaves `select` can keep.

  Returns:
    The ingredients; those from files get the containers of the first tree in
    memory.

  Raises:
    ValueError: if the list is empty, two ingredients share a name, or their
      trees, integer leaves or config files differ; naming the ingredients and
      the leaves.
  """
  check_names(ingredients)
  ingredients = _in_shared_containers(list(ingredients))
  tree.check_alike(
    {i.name: i.specs for i in ingredients},
    {i.name: i.treedef for i in ingredients},
    has_base=has_base,
  )
  counters = [
    n for n, s in ingredients[0].specs.items() if not tree.is_float(s)
  ]
  if counters:
    tree.check_equal_integers(
      {i.name: {n: i.read(n) for n in counters} for i in ingredients},
      ingredients[0].specs,
      has_base=has_base,
    )
  configs.check_configs(ingredients, set(ingredients[0].specs))
  return ingredients


def rank_by(
  ingredients: Sequence[Ingredient], metric: str, *, mode: str = "max"
) -> list[Ingredient]:
  """Orders ingredients by a held-out metric, best first.

  Ties keep the order given. (The released code of arXiv 2203.05482 sorts in
  ascending order and reverses, which also reverses ties.)

  Args:
    ingredients: with `metrics`.
    metric: a key of `metrics`, such as `"minival/prec@1"`.
    mode: "max" if higher is better, "min" if lower is.

  Returns:
    A new list.

  Raises:
    ValueError: if an ingredient lacks the metric, its value is not a number, or
      the mode is unknown.

  Examples:
    >>> tree = {"w": jnp.zeros(2)}
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", tree, {"minival/prec@1": 0.7}),
    ...           make("b", tree, {"minival/prec@1": 0.9})]
    >>> [model.name for model in sj.rank_by(models, "minival/prec@1")]
    ['b', 'a']
  """
  if mode not in ("max", "min"):
    raise ValueError(f"mode must be 'max' or 'min', got {mode!r}.")
  ingredients = as_ingredients(ingredients)
  values = {}
  for ingredient in ingredients:
    if ingredient.metrics.get(metric) is None:
      raise ValueError(
        f"Ingredient {ingredient.name!r} has no metric {metric!r}; it has "
        f"{sorted(ingredient.metrics) or 'none'}."
      )
    value = arguments.as_number(ingredient.metrics[metric])
    if value is None:
      raise ValueError(
        f"{metric} of ingredient {ingredient.name!r} must be a number, got "
        f"{ingredient.metrics[metric]!r:.80}."
      )
    if math.isnan(value):
      raise ValueError(f"{metric} of ingredient {ingredient.name!r} is NaN.")
    values[id(ingredient)] = value
  sign = -1 if mode == "max" else 1
  return sorted(ingredients, key=lambda i: sign * values[id(i)])


def storage_of(ingredient: Ingredient) -> Storage:
  """Returns the storage of an ingredient, made from its reader if needed."""
  if ingredient.storage is not None:
    return ingredient.storage

  def read_box(leaf, box, out):
    part = _part(ingredient.reader(leaf, None), box)
    np.copyto(out.reshape(part.shape), part)

  specs = ingredient.specs
  # Trees in memory can be cut anywhere. Other readers get one call per leaf.
  chunks = {k: s.shape for k, s in specs.items()} if ingredient.path else {}
  return Storage(read=box_by_box(read_box), order=tuple(specs), chunks=chunks)


def _part(array: Any, box: slices.Slices) -> np.ndarray:
  """Returns a box of an array that may span devices of several processes."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    if array.is_fully_replicated:
      return np.asarray(array.addressable_data(0))[box]
    for shard in array.addressable_shards:
      outer = slices.normalise(shard.index, array.shape)
      if slices.intersection(box, outer) == box:
        return np.asarray(shard.data)[slices.inside(box, outer)]
    raise ValueError(
      f"No shard in this process contains all of {box} of an array of shape "
      f"{array.shape}."
    )
  return np.asarray(array)[box]
