# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Converts weights of other libraries, and exports ours to them.

The tables are in `mappings`. Nothing is read before names and shapes are known
to fit; then leaf by leaf.
"""

from collections.abc import Mapping, Sequence
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
from soupjax.models.pretrained import (
  families,
  foreign,
  mappings,
  mismatch,
  positions,
)
from soupjax.models.pretrained.detection import Detected as Detected
from soupjax.models.pretrained.detection import detect as detect
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any

HEAD = ("head/", "pre_logits/", "proj/")


def options(family: str) -> dict[str, Any]:
  """Returns the options of `models.ViT` that models of a family need.

  Args:
    family: a key of `mappings.FAMILIES`.

  Returns:
    Keyword arguments, as `{"act": "gelu_exact", ...}`; to be joined with
    `models.variant(...)`.

  Raises:
    ValueError: if there is no such family, with suggestions.
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
  """Reads weights from elsewhere into the parameters of a model.

  Scanned and looped blocks are converted into each other. Position embeddings
  are resampled bilinearly to `image_size`, as big_vision does; one for the
  class token is added to that token, which computes the same.

  Args:
    source: path of a checkpoint, as for `open_ingredient`, or an ingredient.
    model: `models.ViT` or `models.Mixer`.
    family: a key of `mappings.FAMILIES`; None recognises it by its names.
    image_size: side of the images in pixels, or (height, width); None is what
      the checkpoint is for.
    head: "keep" its head; "new" for zeros; "auto" keeps it where its shape
      fits, else it is new. A model without a head leaves it out.
    skip: regular expressions of our leaves that are not loaded.
    init: parameters of the model, for what is skipped.

  Returns:
    Nested dicts of NumPy arrays, as `model.init` makes them.

  Raises:
    ValueError: if the family is unknown or cannot be told; or listing all
      leaves that are missing, unexpected or misshapen, with the nearest names.
  """
  layers.check_choice("head", head, ("auto", "keep", "new"))
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  where, name, there = _seen(source, model, family)
  specs = _specs(model, there, image_size)
  kept = _skipped(specs, there, skip, init)
  wanted = {k: v for k, v in specs.items() if k not in kept}
  new = _new_head(wanted, there, head, where)
  wanted = {k: v for k, v in wanted.items() if k not in new}
  optional = (*skip, *(f"^{one}" for one in HEAD if new or not _head(specs)))
  _check_fit(there.compare(wanted, optional), where, name, model)
  grid = positions.grid_of(specs, image_size, getattr(model, "patch_size", 1))
  leaves = there.read(wanted, grid)
  for leaf in specs:
    if leaf in new:
      leaves[leaf] = np.zeros(specs[leaf].shape, specs[leaf].dtype)
    elif leaf in kept:
      leaves[leaf] = np.asarray(kept[leaf])
  return _nested(leaves, getattr(model, "scan", False))


def as_ingredient(
  source: Ingredient,
  model: nn.Module,
  *,
  family: str | None = None,
  image_size: int | tuple[int, int] | None = None,
) -> Ingredient:
  """Sees a checkpoint from elsewhere as one of a model; reads no weights yet.

  Args:
    source: of any family, with a head if the model has one. One that has the
      model's own leaves already is returned as it is.
    model: as for `load_pretrained`.
    family: as for `load_pretrained`.
    image_size: as for `load_pretrained`.

  Returns:
    An ingredient with the names, shapes and dtypes of `model.init`; name, path,
    metrics and hyperparameters are those of the source. It is read leaf by
    leaf. Its hyperparameters have the "family" that it was read as.

  Raises:
    ValueError: as `load_pretrained`.
  """
  where, name, there = _seen(source, model, family)
  ours = _specs(model, there, image_size)
  optional = () if _head(ours) else tuple(f"^{one}" for one in HEAD)
  _check_fit(there.compare(ours, optional), where, name, model)
  grid = positions.grid_of(ours, image_size, getattr(model, "patch_size", 1))
  blocks = foreign.blocks_of(ours, getattr(model, "scan", False))
  specs, treedef = tree.nest(
    {leaf: _spec_of(ours, leaf, names) for leaf, names in blocks.items()}
  )
  if treedef == source.treedef and _same(specs, source.specs):
    return source

  def read(leaf, index):
    names = blocks[leaf]
    # The class token takes in its own position.
    also = (
      ("pos_embedding",) if leaf == "cls" and "pos_embedding" in ours else ()
    )
    found = there.read({k: ours[k] for k in (*names, *also)}, grid)
    array = (
      found[leaf] if names == (leaf,) else np.stack([found[k] for k in names])
    )
    return array if index is None else array[index]

  return dataclasses.replace(
    source,
    specs=specs,
    treedef=treedef,
    reader=read,
    storage=None,
    hyperparameters={**source.hyperparameters, "family": name},
  )


def export(
  params: PyTree,
  model: nn.Module,
  family: str,
  *,
  like: Ingredient | None = None,
) -> dict[str, Any]:
  """Renames parameters as a family does.

  Args:
    params: of the model; scanned or not.
    model: whose they are.
    family: a key of `mappings.FAMILIES`.
    like: a checkpoint of the family whose names to take, with what stands
      before all of them, where there are several ways; None is the usual one.

  Returns:
    Name -> NumPy array, in the family's layout.

  Raises:
    ValueError: if the family is unknown or has no place for a leaf, or the
      parameters are not those of the model.
  """
  layers.check_choice("family", family, mappings.FAMILIES)
  table = mappings.FAMILIES[family]
  _check_model(model, family, table)
  flat, _ = tree.flatten(params)
  leaves = foreign.unstacked(flat)
  _check_params(leaves, model)
  homeless = [k for k in leaves if foreign.row_of(table, k) is None]
  if homeless:
    raise ValueError(
      f"{family!r} has no place for {len(homeless)} leaves: "
      + "; ".join(
        f"{k} (from {mismatch.hint(k)})" if mismatch.hint(k) else k
        for k in homeless
      )
      + ". Choose another family, or a model without them."
    )
  if getattr(model, "posemb", "") == "sincos2d" and table.class_position:
    raise ValueError(
      f"{family!r} has learned position embeddings, and posemb='sincos2d' has "
      "none to export."
    )
  if like is None:
    return foreign.write(table, leaves)
  found = foreign.entries(like)
  _, prefix = families.recognise(found, family, like.path or repr(like.name))
  names = families.without_prefix(found, prefix, table)
  written = foreign.write(table, leaves, names)
  return {prefix + name: value for name, value in written.items()}


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
    path: `*.safetensors`, or `*.npz` as big_vision's are.
    params: as for `export`.
    model: as for `export`.
    family: as for `export`.
    like: as for `export`.
    overwrite: replaces what is at `path`.

  Raises:
    ValueError: as `export`, or if the file cannot be written.
  """
  if not os.fspath(path).endswith((".safetensors", ".npz")):
    raise ValueError(
      f"{os.fspath(path)} must end in .safetensors, or .npz for big_vision."
    )
  leaves = export(params, model, family, like=like)
  # transformers before version 5 opens no file that does not say this.
  save.write(path, leaves, overwrite=overwrite, text={"format": "pt"})


def _seen(source, model, family):
  """What errors call a checkpoint, its family, and its leaves through it."""
  entries = foreign.entries(source)
  where = source.path or repr(source.name)
  name, prefix = families.recognise(entries, family, where)
  _check_model(model, name, mappings.FAMILIES[name])
  entries = families.without_prefix(entries, prefix, mappings.FAMILIES[name])
  return where, name, foreign.Table(mappings.FAMILIES[name], entries)


def _check_model(model: nn.Module, name: str, family: mappings.Family) -> None:
  kind = type(model).__name__
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


def _shapes(model: nn.Module, size: tuple[int, int], channels: int):
  """Leaf -> spec, with blocks one by one."""
  if getattr(model, "attention", None):
    model = model.clone(attention=None)  # Names do not depend on the machine.
  images = jax.ShapeDtypeStruct((1, *size, channels), np.float32)
  made = jax.eval_shape(model.init, jax.random.key(0), images)
  flat, _ = tree.flatten(made["params"])
  return foreign.unstacked(flat)


def _specs(model, there, image_size):
  """What the model needs for images of that size, else of the checkpoint's."""
  if image_size is None:
    # Patches one above the other: as many of them, whatever their grid is.
    image_size = (there.tokens() * model.patch_size, model.patch_size)
  elif isinstance(image_size, int):
    image_size = (image_size, image_size)
  return _shapes(model, tuple(image_size), there.channels())


def _spec_of(ours, leaf, names):
  """The spec of a leaf, or of the stack of several."""
  one = ours[names[0]]
  if names == (leaf,):
    return one
  return jax.ShapeDtypeStruct((len(names), *one.shape), one.dtype)


def _same(specs, others) -> bool:
  return list(specs) == list(others) and all(
    (a.shape, a.dtype) == (b.shape, b.dtype)
    for a, b in zip(specs.values(), others.values())
  )


def _check_fit(wrong, where, name, model):
  if wrong:
    raise ValueError(
      f"{where}, read as {name!r}, does not fit this {type(model).__name__}:\n"
      f"  {wrong.text()}\nChange the model (options({name!r}) has what its "
      "models need), or leave leaves out with skip=."
    )


def _check_params(leaves: Mapping[str, Any], model: nn.Module) -> None:
  """Checks that parameters are those of a model."""
  tokens, channels = 1, 3
  for name, axis in (("embedding/kernel", 2), ("stem/kernel", 2)):
    if name in leaves and np.ndim(leaves[name]) == 4:
      channels = np.shape(leaves[name])[axis]
  for name, axis in (
    ("pos_embedding", 1),
    ("MixerBlock_0/token_mixing/Dense_0/kernel", 0),
  ):
    if name in leaves and np.ndim(leaves[name]) > axis:
      tokens = np.shape(leaves[name])[axis]
  size = (tokens * model.patch_size, model.patch_size)
  specs = _shapes(model, size, channels)
  wrong = mismatch.Mismatch(
    missing={k: "" for k in specs if k not in leaves},
    unexpected={k: k for k in leaves if k not in specs},
    misshapen={
      k: (np.shape(leaves[k]), spec.shape)
      for k, spec in specs.items()
      if k in leaves and np.shape(leaves[k]) != spec.shape
    },
  )
  if wrong:
    raise ValueError(
      f"These are not the parameters of this {type(model).__name__}:\n  "
      f"{wrong.text()}"
    )


def _head(names: Sequence[str] | Mapping) -> list[str]:
  return [name for name in names if name.startswith("head/")]


def _new_head(wanted, there, head, where) -> list[str]:
  """The leaves of a head that starts at zero."""
  ours = _head(wanted)
  if head == "keep" or not ours:
    return []
  if head == "auto" and all(there.fits(k, wanted[k].shape) for k in ours):
    return []
  logging.info("A new head of zeros on the weights of %s", where)
  return ours


def _skipped(specs, there, skip, init) -> dict[str, Any]:
  """Our leaves that are taken from `init`."""
  names = list(specs) + [k for k in there.ours() if k not in specs]
  found = {k for _, some in tree.matches("skip", skip, names) for k in some}
  found &= set(specs)
  if not found:
    return {}
  if init is None:
    raise ValueError(
      f"skip= leaves out {sorted(found)[:3]} and {len(found)} leaves in all: "
      "give init=, parameters of the model to take them from."
    )
  leaves = foreign.unstacked(tree.flatten(init)[0])
  bad = [
    k
    for k in sorted(found)
    if k not in leaves or np.shape(leaves[k]) != specs[k].shape
  ]
  if bad:
    raise ValueError(
      f"init= does not have {bad} in the model's shapes, as "
      f"{specs[bad[0]].shape} for the first."
    )
  return {k: leaves[k] for k in found}


def _nested(leaves: dict[str, Any], scan: bool) -> PyTree:
  flat = foreign.stacked(leaves) if scan else leaves
  named, treedef = tree.nest(flat)
  return jax.tree.unflatten(treedef, list(named.values()))
