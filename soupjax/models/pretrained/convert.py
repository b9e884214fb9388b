# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Converts weights of other libraries to our models, and exports ours to them.

The tables are in `mappings`. Names and shapes are checked first; then weights
are read leaf by leaf.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any
import warnings

from absl import logging
import flax.linen as nn
import jax
import numpy as np

from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints import save
from soupjax.models import layers
from soupjax.models.pretrained import families, foreign, mappings, mismatch
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any

HEAD = ("head/", "pre_logits/", "proj/")


def options(family: str) -> dict[str, Any]:
  """Returns the options of `models.ViT` that models of a family need.

  Args:
    family: a key of `mappings.FAMILIES`.

  Returns:
    Keyword arguments such as `{"act": "gelu_exact", ...}`, to be joined with
    `models.variant(...)`.

  Raises:
    ValueError: if the family does not exist, with suggestions.
  """
  layers.check_choice("family", family, mappings.FAMILIES)
  return dict(mappings.FAMILIES[family].options)


def load_pretrained(
  source: str | os.PathLike | Ingredient,
  model: nn.Module,
  *,
  family: str | None = None,
  image_size: int | tuple[int, int] | None = None,
  head: str = "auto",
  skip: Sequence[str] = (),
  init: PyTree | None = None,
) -> PyTree:
  """Reads weights of another library into the parameters of a model.

  Scanned and looped blocks are converted into each other. Position embeddings
  are resampled bilinearly to `image_size`, as big_vision does. The position of
  the class token is added to that token, which computes the same.

  Args:
    source: path of a checkpoint, as for `open_ingredient`, or an ingredient.
    model: `models.ViT` or `models.Mixer`.
    family: a key of `mappings.FAMILIES`; None recognises it by its names.
    image_size: side of the images in pixels, or (height, width); None is the
      size that the checkpoint was trained with.
    head: "keep" the checkpoint's head; "new" starts a head at zero; "auto"
      keeps the head if its shape fits and starts a new one otherwise. A model
      without a head ignores that of the checkpoint.
    skip: regular expressions of our leaves that are not loaded.
    init: parameters of the model, for the leaves that are skipped.

  Returns:
    Nested dicts of NumPy arrays, in the form of `model.init`.

  Raises:
    ValueError: if the family is unknown or ambiguous; or listing all leaves
      that are missing, unexpected or misshapen, with the nearest names.
  """
  layers.check_choice("head", head, ("auto", "keep", "new"))
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  table = families.recognise(source, family)
  _check_model(model, table.name)
  specs, grid = _model_specs(model, table, image_size)
  skipped = _skipped(specs, table, skip, init)
  specs = {leaf: spec for leaf, spec in specs.items() if leaf not in skipped}
  new = _new_head(specs, table, head)
  loaded = {leaf: spec for leaf, spec in specs.items() if leaf not in new}
  without_head = new or not _head({**specs, **skipped})
  _check_fit(table, loaded, model, (*skip, *_head_patterns(without_head)))
  leaves = table.read(loaded, grid) | skipped
  leaves |= {
    leaf: np.zeros(specs[leaf].shape, specs[leaf].dtype) for leaf in new
  }
  named, treedef = tree.nest(
    foreign.stacked(leaves, getattr(model, "scan", False))
  )
  return jax.tree.unflatten(treedef, list(named.values()))


def as_ingredient(
  source: Ingredient,
  model: nn.Module,
  *,
  family: str | None = None,
  image_size: int | tuple[int, int] | None = None,
) -> Ingredient:
  """Adapts a checkpoint of another library to a model; reads no weights yet.

  Args:
    source: of any family, with a head if the model has one. A checkpoint with
      exactly the model's leaves is returned unchanged.
    model: as for `load_pretrained`.
    family: as for `load_pretrained`.
    image_size: as for `load_pretrained`.

  Returns:
    An ingredient with the names, shapes and dtypes of `model.init`; name, path,
    metrics and hyperparameters are those of the source. It is read leaf by
    leaf. "family" is added to its hyperparameters.

  Raises:
    ValueError: as for `load_pretrained`.
  """
  table = families.recognise(source, family)
  _check_model(model, table.name)
  blocks, grid = _model_specs(model, table, image_size)
  _check_fit(table, blocks, model, _head_patterns(not _head(blocks)))
  names_of = foreign.blocks_of(blocks, getattr(model, "scan", False))
  specs, treedef = tree.nest(
    {
      leaf: _stacked_spec(leaf, names, blocks)
      for leaf, names in names_of.items()
    }
  )
  if treedef == source.treedef and _signature(specs) == _signature(
    source.specs
  ):
    return source

  def read(leaf, index):
    names = names_of[leaf]
    # The position of the class token is added to the token.
    if leaf == "cls" and "pos_embedding" in blocks:
      names = (leaf, "pos_embedding")
    arrays = table.read({name: blocks[name] for name in names}, grid)
    if leaf in arrays:
      array = arrays[leaf]
    else:
      array = np.stack([arrays[name] for name in names])
    return array if index is None else array[index]

  return dataclasses.replace(
    source,
    specs=specs,
    treedef=treedef,
    reader=read,
    storage=None,
    hyperparameters={**source.hyperparameters, "family": table.name},
  )


def export(
  params: PyTree,
  model: nn.Module,
  family: str,
  *,
  like: Ingredient | None = None,
) -> dict[str, Any]:
  """Converts parameters to the names and layout of a family.

  Args:
    params: parameters of the model, scanned or not.
    model: `models.ViT` or `models.Mixer`.
    family: a key of `mappings.FAMILIES`.
    like: a checkpoint of the family whose names and prefix to use where there
      are several; None uses the usual ones.

  Returns:
    Name -> NumPy array, in the family's layout.

  Raises:
    ValueError: if the family is unknown or has no name for a leaf, or the
      parameters do not belong to the model.
  """
  layers.check_choice("family", family, mappings.FAMILIES)
  _check_model(model, family)
  _check_params(params, model)
  kind = mappings.FAMILIES[family]
  leaves = foreign.unstacked(tree.flatten(params)[0])
  unnamed = [leaf for leaf in leaves if foreign.row_of(kind, leaf) is None]
  if unnamed:
    hints = {leaf: mismatch.hint(leaf) for leaf in unnamed}
    raise ValueError(
      f"{family!r} has no name for {len(unnamed)} leaves: "
      + "; ".join(f"{k} (from {v})" if v else k for k, v in hints.items())
      + ". Choose another family, or a model without them."
    )
  if getattr(model, "posemb", "") == "sincos2d" and kind.class_position:
    raise ValueError(
      f"{family!r} has learned position embeddings, and a model with "
      "posemb='sincos2d' has none to export: use posemb='learn'."
    )
  if like is None:
    return foreign.write(kind, leaves)
  table = families.recognise(like, family)
  exported = foreign.write(kind, leaves, table.entries)
  return {table.prefix + name: value for name, value in exported.items()}


def save_exported(
  path: str | os.PathLike,
  params: PyTree,
  model: nn.Module,
  family: str,
  *,
  like: Ingredient | None = None,
  overwrite: bool = False,
) -> None:
  """Writes parameters to a file with the names of a family.

  Args:
    path: `*.safetensors`, or `*.npz` for big_vision.
    params: as for `export`.
    model: as for `export`.
    family: as for `export`.
    like: as for `export`.
    overwrite: whether to replace a file at `path`.

  Raises:
    ValueError: as for `export`, or if the file cannot be written.
  """
  if not os.fspath(path).endswith((".safetensors", ".npz")):
    raise ValueError(
      f"{os.fspath(path)} must end in .safetensors, or .npz for big_vision."
    )
  leaves = export(params, model, family, like=like)
  # transformers before version 5 only opens files with this entry.
  save.write(path, leaves, overwrite=overwrite, text={"format": "pt"})


def _check_model(model: nn.Module, name: str) -> None:
  kind, family = type(model).__name__, mappings.FAMILIES[name]
  if kind != family.model:
    raise ValueError(
      f"{name!r} is for models.{family.model}, and the model is a {kind}."
    )
  act = getattr(model, "act", None)
  if act is not None and act not in family.acts:
    warnings.warn(
      f"Models of {name!r} have act={family.acts[0]!r}, and this one has "
      f"{act!r}: it computes something else, unless the weights were trained "
      "with it.",
      stacklevel=3,
    )


def _model_specs(model, table, image_size):
  """Returns leaf -> spec with blocks one by one, and the grid of patches.

  The grid is None where the position embeddings of the checkpoint are kept.
  """
  if isinstance(image_size, int):
    image_size = (image_size, image_size)
  # By default patches are one above the other: only their number counts.
  patch = model.patch_size
  height, width = image_size or (table.tokens() * patch, patch)
  if getattr(model, "attention", None):
    model = model.clone(attention=None)  # Names do not depend on the machine.
  images = jax.ShapeDtypeStruct(
    (1, height, width, table.channels()), np.float32
  )
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  specs = foreign.unstacked(tree.flatten(variables["params"])[0])
  resampled = image_size is not None and "pos_embedding" in specs
  return specs, (height // patch, width // patch) if resampled else None


def _stacked_spec(leaf, names, blocks):
  """Returns the spec of a leaf of the model, which may stack blocks."""
  spec = blocks[names[0]]
  if names == (leaf,):
    return spec
  return jax.ShapeDtypeStruct((len(names), *spec.shape), spec.dtype)


def _signature(specs) -> list[tuple]:
  return [(leaf, spec.shape, spec.dtype) for leaf, spec in specs.items()]


def _check_fit(table, specs, model, optional):
  problems = table.compare(specs, optional)
  if problems:
    raise ValueError(
      f"{table.where}, read as {table.name!r}, does not fit this "
      f"{type(model).__name__}:\n  {problems}\nChange the model "
      f"(options({table.name!r}) has the options of the family), or leave "
      "leaves out with skip=."
    )


def _check_params(params: PyTree, model: nn.Module) -> None:
  source = Ingredient.from_params("params", params)
  own = {"ViT": "big_vision", "Mixer": "mixer"}[type(model).__name__]
  table = foreign.SourceTable(own, foreign.entries(source))
  problems = table.compare(_model_specs(model, table, None)[0], ())
  if problems:
    raise ValueError(
      f"These are not the parameters of this {type(model).__name__}:\n  "
      f"{problems}"
    )


def _head(names: Iterable[str]) -> list[str]:
  return [name for name in names if name.startswith("head/")]


def _head_patterns(without_head) -> list[str]:
  return [f"^{name}" for name in HEAD] if without_head else []


def _new_head(specs, table, head) -> list[str]:
  """Returns the leaves of a head that starts at zero."""
  leaves = _head(specs)
  if head == "keep" or not leaves:
    return []
  if head == "auto" and all(table.fits(k, specs[k].shape) for k in leaves):
    return []
  logging.info("A new head of zeros on the weights of %s", table.where)
  return leaves


def _skipped(specs, table, skip, init) -> Mapping[str, Any]:
  """Returns our leaves that are taken from `init`."""
  names = [*specs, *(leaf for leaf in table.leaves() if leaf not in specs)]
  matches = tree.matches("skip", skip, names)
  skipped = sorted({k for _, leaves in matches for k in leaves} & set(specs))
  if not skipped:
    return {}
  if init is None:
    raise ValueError(
      f"skip= leaves out {len(skipped)} leaves of the model, such as "
      f"{skipped[:3]}: give init=, parameters of the model to take them from."
    )
  leaves = foreign.unstacked(tree.flatten(init)[0])
  bad = [
    leaf
    for leaf in skipped
    if leaf not in leaves or np.shape(leaves[leaf]) != specs[leaf].shape
  ]
  if bad:
    raise ValueError(
      f"init= does not have {bad} in the model's shapes, which is "
      f"{specs[bad[0]].shape} for the first: give parameters of this model."
    )
  return {leaf: np.asarray(leaves[leaf]) for leaf in skipped}
