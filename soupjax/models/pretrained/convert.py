# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Converts weights of other libraries to our models, and ours to theirs.

The tables are in `mappings`. Names and shapes are checked first; then weights
are read leaf by leaf.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import math
import os
import re
from typing import Any
import warnings

from absl import logging
import flax.linen as nn
import jax
import numpy as np

from soupjax.checkpoints import companions, save
from soupjax.checkpoints import open as open_lib
from soupjax.models import clip, layers, own
from soupjax.models.pretrained import (
  detect,
  families,
  foreign,
  mappings,
  mismatch,
  two_towers,
)
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any

HEAD = ("head/", "head_dist/", "pre_logits/", "proj/")
# Our models -> the family that has our names.
_OWN = {"ViT": "big_vision", "Mixer": "mixer", "ResNet": "bit"}
# Options that change outputs without changing names and shapes.
_SILENT = (
  "num_heads",
  "act",
  "norm_eps",
  "post_norm",
  "pool_type",
  "pool_heads",
  "pool_prefix",
  "fc_norm",
  "rope",
  "rope_grid",
  "conv_eps",
)


def options(family: str) -> dict[str, Any]:
  """Returns the options that our model needs to match models of a family.

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
  prefix: str = "",
  init: PyTree | None = None,
) -> PyTree:
  """Reads weights of another library into the parameters of a model.

  Scanned and looped blocks are converted into each other. Position embeddings
  are resampled to `image_size`, as the library of the weights does. Those of
  tokens before the patches are added to these tokens, which does not change
  outputs.

  Args:
    source: path of a checkpoint, as for `open_ingredient`, or an ingredient.
    model: `models.ViT`, `Mixer`, `ResNet` or `CLIP`; or a model defined outside
      soupjax, if the checkpoint has the same leaves under the same names.
    family: a key of `mappings.FAMILIES`; None recognises it by leaf names.
    image_size: side of the images in pixels, or (height, width); None for the
      size that the checkpoint was trained with.
    head: "keep" keeps the checkpoint's head; "new" starts a head at zero;
      "auto" keeps the head if it has as many outputs as the model and starts a
      new one otherwise. A model without a head ignores the checkpoint's.
    skip: regular expressions of leaves that are not loaded, by our names or
      those in the file.
    prefix: start of the model's names if the file has several models, such as
      "module.base_encoder."; other leaves are not loaded.
    init: parameters of the model, from which skipped leaves are taken.

  Returns:
    Nested dicts of NumPy arrays, with the structure of the model's parameters.

  Raises:
    ValueError: if the family is unknown or ambiguous; if the model's options
      differ from a config beside the weights; or if leaves are missing,
      unexpected or misshapen, listing all of them with the nearest names.
  """
  layers.check_choice("head", head, ("auto", "keep", "new"))
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  if own.is_own(model) and family is None:
    return own.load(source, model, image_size, head=head, skip=skip, init=init)
  dropped = families.with_prefix(source, skip, prefix)
  table = detect.open_table(source, family, dropped)
  if isinstance(model, clip.CLIP):
    image = load_pretrained(
      *(source, two_towers.image_of(model)),
      family=table.name,
      image_size=image_size,
      head="keep",
      skip=dropped,
      init=None if init is None else init["img"],
    )
    return two_towers.load(table, model, image)
  _check_model(model, table, companions.home(source))
  specs, grid = _model_specs(model, table, image_size)
  skipped = _skipped(specs, table, skip, init)
  specs = {leaf: spec for leaf, spec in specs.items() if leaf not in skipped}
  new = _new_head(specs, table, head)
  _check_computation(model, table, new)
  loaded = {leaf: spec for leaf, spec in specs.items() if leaf not in new}
  without_head = new or not _head({**specs, **skipped})
  optional = (*skip, *_head_patterns(without_head))
  _check_fit(table, loaded, model, optional)
  _log_unread(table, loaded)
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
  skip: Sequence[str] = (),
  prefix: str = "",
) -> Ingredient:
  """Adapts a checkpoint of another library to a model; reads no weights yet.

  Args:
    source: a checkpoint of any family, with a head if the model has one. If it
      has exactly the model's leaves, it is returned unchanged.
    model: as for `load_pretrained`.
    family: as for `load_pretrained`.
    image_size: as for `load_pretrained`.
    skip: regular expressions of leaves in the file that are not read.
    prefix: as for `load_pretrained`.

  Returns:
    An ingredient with the leaf names, shapes and dtypes of the model, which is
    read leaf by leaf. Name, path, metrics and hyperparameters are those of the
    source, with "family" added to the hyperparameters.

  Raises:
    ValueError: as for `load_pretrained`.
  """
  if own.is_own(model) and family is None:
    own.check(source, model, image_size)
    return source
  dropped = families.with_prefix(source, skip, prefix)
  table = detect.open_table(source, family, dropped)
  if isinstance(model, clip.CLIP):
    image = as_ingredient(
      *(source, two_towers.image_of(model)),
      family=table.name,
      image_size=image_size,
      skip=dropped,
    )
    return two_towers.as_ingredient(source, table, model, image)
  _check_model(model, table, companions.home(source))
  blocks, grid = _model_specs(model, table, image_size)
  _check_computation(model, table, [])
  dropped = table.dropped_leaves() & set(blocks)
  if dropped:
    raise ValueError(
      f"skip= leaves out {sorted(dropped)[0]} of {table.where}, which the "
      "model has: choose a model without it."
    )
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
    # Positions of tokens before the patches are added to these tokens.
    if leaf in table.family.positioned and "pos_embedding" in blocks:
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
    model: `models.ViT`, `Mixer`, `ResNet` or `models.CLIP`.
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
  if isinstance(model, clip.CLIP):
    tower = two_towers.image_of(model)
    image = export(params["img"], tower, family, like=like)
    table = None if like is None else detect.open_table(like, family)
    return two_towers.export(params, model, family, image, table)
  _check_model(model, foreign.SourceTable(family, {}))
  _check_params(params, model)
  kind = mappings.FAMILIES[family]
  leaves = foreign.unstacked(tree.flatten(params)[0])
  unnamed = [leaf for leaf in leaves if not foreign.rows_of(kind, leaf)]
  if unnamed:
    hints = {leaf: mismatch.hint(leaf) for leaf in unnamed}
    raise ValueError(
      f"{family!r} has no name for {len(unnamed)} leaves: "
      + "; ".join(f"{k} (from {v})" if v else k for k, v in hints.items())
      + ". Choose another family, or a model without them."
    )
  if getattr(model, "posemb", "") == "sincos2d" and family != "big_vision":
    raise ValueError(
      f"{family!r} has learned position embeddings, and a model with "
      "posemb='sincos2d' has none to export: use posemb='learn'."
    )
  if like is None:
    return foreign.write(kind, leaves)
  return foreign.write(kind, leaves, detect.open_table(like, family))


def save_exported(
  path: str | os.PathLike,
  params: PyTree,
  model: nn.Module,
  family: str,
  *,
  like: Ingredient | None = None,
  overwrite: bool = False,
  metadata: Mapping[str, Any] | None = None,
  rest: Ingredient | None = None,
) -> None:
  """Writes parameters to a file with the names of a family.

  Args:
    path: `*.safetensors`, or `*.npz` for families of npz files.
    params: as for `export`.
    model: as for `export`.
    family: as for `export`.
    like: as for `export`.
    overwrite: whether to replace a file at `path`.
    metadata: JSON to store with the weights, see `sj.provenance`.
    rest: a checkpoint of the family whose leaves outside the model are copied,
      such as a text tower.

  Raises:
    ValueError: as for `export`, or if the file cannot be written.
  """
  if not os.fspath(path).endswith((".safetensors", ".npz")):
    raise ValueError(
      f"{os.fspath(path)} must end in .safetensors, or .npz for big_vision."
    )
  leaves = export(params, model, family, like=like)
  if rest is not None:
    others = [leaf for leaf in rest.specs if leaf not in leaves]
    leaves |= {leaf: np.asarray(rest.read(leaf)) for leaf in others}
  # transformers before version 5 only opens files with this entry.
  text = {"format": "pt"}
  save.write(path, leaves, metadata, overwrite=overwrite, text=text)


def _check_model(
  model: nn.Module, table: foreign.SourceTable, path: str | None = None
) -> None:
  """Checks the class of a model, and warns of an unusual activation.

  Args:
    model: the model to check.
    table: the checkpoint.
    path: path of the checkpoint. If a run of soupjax wrote it, the activation
      is recorded beside it.

  Raises:
    ValueError: if the family is for another model class.
  """
  family = table.family
  kind = type(model).__name__
  if kind != family.model:
    raise ValueError(
      f"{table.name!r} is for models.{family.model}, but the model is a {kind}."
    )
  act = getattr(model, "act", None)
  if act is None or act in family.acts or act == table.said.options.get("act"):
    return
  recorded = companions.recorded_config(path).get("model", {})
  if act != (recorded.get("image") or recorded).get("act"):
    warnings.warn(
      f"Models of {table.name!r} have act={family.acts[0]!r}, but this one has "
      f"{act!r}: its outputs differ, unless the weights were trained with it.",
      stacklevel=3,
    )


def _check_computation(
  model: nn.Module, table: foreign.SourceTable, new_head: Sequence[str]
) -> None:
  """Rejects a model whose outputs would differ from those that files imply.

  Raises:
    ValueError: if an option that cannot be inferred from leaves differs from
      the config beside the weights, or must be given.
  """
  said = dict(table.said.options)
  if "rope" in table.family.options:
    said.setdefault("rope", table.family.options["rope"])
  if not said and not table.outer:
    return
  # Any pooling will do if no weights of the checkpoint come after it.
  pooling = getattr(model, "pool_type", "gap")
  tokens = pooling == "none" and model.num_classes is None
  if tokens or (new_head and not getattr(model, "proj_size", 0)):
    said.pop("pool_type", None)
  differ = [
    key
    for key in _SILENT
    if key in said and not _equal(getattr(model, key, None), said[key])
  ]
  if differ:
    meant = ", ".join(f"{key}={said[key]!r}" for key in differ)
    has = ", ".join(f"{key}={getattr(model, key)!r}" for key in differ)
    origin = table.said.path or repr(table.name)
    raise ValueError(
      f"{origin} implies {meant}, but this {type(model).__name__} has "
      f"{has}: build it with pretrained.detect({table.where!r}).options; in a "
      f"fine-tuning config, use config.model.update({meant})."
    )
  outer_head = "head/kernel" in table.outer and not new_head
  if (
    outer_head
    and model.num_classes is not None
    and "proj/kernel" in table.leaves()
    and getattr(model, "normalize", None) is None
  ):
    raise ValueError(
      f"{table.where} has a head outside CLIP, "
      f"{table.outer['head/kernel']}, and no file says whether the features "
      "are scaled to length 1 before it: build the model with normalize=True "
      "(as model-soups does) or normalize=False."
    )


def _equal(a: Any, b: Any) -> bool:
  if isinstance(a, float) and isinstance(b, float):
    return math.isclose(a, b, rel_tol=1e-6)
  return a == b


def _log_unread(table: foreign.SourceTable, specs: Iterable[str]) -> None:
  """Logs the leaves of the checkpoint that the model does not use."""
  groups = {rule: list(names) for rule, names in table.ignored.items()}
  used = table.names_of(specs)
  for name in (k for k in table.entries if k not in used):
    rule = "skip=" if name in table.dropped else "head"
    groups.setdefault(rule, []).append(name)
  for rule, names in groups.items():
    logging.info(
      "%s: %d leaves are not read (%s), such as %s",
      *(table.where, len(names), rule, names[0]),
    )


def _model_specs(model, table, image_size):
  """Returns leaf -> spec, with one leaf per block, and the grid of patches.

  The grid is None if the position embeddings of the checkpoint are kept.
  """
  if isinstance(image_size, int):
    image_size = (image_size, image_size)
  # By default, patches form a single column, since only their number matters.
  patch = getattr(model, "patch_size", 1)
  height, width = image_size or (table.tokens() * patch, patch)
  if getattr(model, "attention", None):
    model = model.clone(attention=None)  # Names do not depend on the machine.
  shape = (1, height, width, table.channels())
  specs = foreign.unstacked(_traced_specs(model, shape))
  resampled = image_size is not None and "pos_embedding" in specs
  return specs, (height // patch, width // patch) if resampled else None


@functools.lru_cache(maxsize=8)
def _traced_specs(model, shape):
  """Returns leaf -> spec; traced once, since it takes 0.4 s for a ViT-S."""
  images = jax.ShapeDtypeStruct(shape, np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  return tree.flatten(variables["params"])[0]


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
    example = _outer_module(table, specs)
    raise ValueError(
      f"{table.where}, read as {table.name!r}, does not fit this "
      f"{type(model).__name__}:\n  {problems}\nChange the model "
      f"(options({table.name!r}) has the options of the family). Leaves that "
      "the outputs do not need can be left out by their names in the file, "
      "with skip= (keys skip and init.skip of configs)"
      + (f", such as ['^{re.escape(example)}']." if example else ".")
    )


def _outer_module(table: foreign.SourceTable, specs: Iterable[str]) -> str:
  """Returns a module beside the tower that the model does not use, or ""."""
  used = table.names_of(k for k in specs if not k.startswith(HEAD))
  tower = os.path.commonprefix(sorted(used))
  tower = tower[: max(tower.rfind("."), tower.rfind("/")) + 1]
  known = table.names_of(specs) | table.dropped
  for name in (k for k in table.entries if k not in known):
    for end in re.finditer(r"[./]", name):
      module = name[: end.end()]
      if not name.startswith(tower) and not tower.startswith(module):
        return module
  return ""


def _check_params(params: PyTree, model: nn.Module) -> None:
  source = Ingredient.from_params("params", params)
  own = _OWN[type(model).__name__]
  table = foreign.SourceTable(own, foreign.entries(source))
  problems = table.compare(_model_specs(model, table, None)[0], ())
  if problems:
    raise ValueError(
      f"These are not the parameters of this {type(model).__name__}:\n  "
      f"{problems}"
    )


def _head(names: Iterable[str]) -> list[str]:
  return [name for name in names if name.startswith(("head/", "head_dist/"))]


def _head_patterns(without_head) -> list[str]:
  return [f"^{name}" for name in HEAD] if without_head else []


def _new_head(specs, table, head) -> list[str]:
  """Returns the leaves of a head that starts at zero."""
  leaves = _head(specs)
  if head == "keep" or not leaves:
    return []
  kernel = table.shape("head/kernel")
  if head == "auto" and kernel is not None:
    # If a head with as many classes does not fit, this is an error.
    if kernel[-1:] == specs["head/kernel"].shape[-1:]:
      return []
  logging.info("Starting a new head at zero for %s", table.where)
  return leaves


def _skipped(specs, table, skip, init) -> Mapping[str, Any]:
  """Returns our leaves that are taken from `init`."""
  names = [*specs, *(leaf for leaf in table.leaves() if leaf not in specs)]
  # Names in the file may match, too.
  names += [*table.entries, *(k for v in table.ignored.values() for k in v)]
  matches = tree.matches("skip", skip, list(dict.fromkeys(names)))
  matched = {k for _, leaves in matches for k in leaves}
  matched |= table.dropped_leaves()
  skipped = sorted(matched & set(specs))
  if not skipped:
    return {}
  if init is None:
    raise ValueError(
      f"skip= leaves out {len(skipped)} leaves of the model, such as "
      f"{skipped[:3]}: give init=, parameters of the model that contain them."
    )
  leaves = foreign.unstacked(tree.flatten(init)[0])
  bad = [
    leaf
    for leaf in skipped
    if leaf not in leaves or np.shape(leaves[leaf]) != specs[leaf].shape
  ]
  if bad:
    raise ValueError(
      f"init= does not have {bad} with the model's shapes (for the first, "
      f"{specs[bad[0]].shape}): give parameters of this model."
    )
  return {leaf: np.asarray(leaves[leaf]) for leaf in skipped}
