# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes text towers; other modules handle image towers.

A checkpoint of `models.CLIP` is read as two: the image tower by the table of
its family, and the leaves that this table ignores by one of `text_tables`.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax.models import clip, vit
from soupjax.models import text as text_lib
from soupjax.models.pretrained import (
  foreign,
  tables,
  text_configs,
  text_tables,
)
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any

# Rules by which tables of image towers ignore the leaves of text towers.
RULES = ("text tower", "temperature")
# Pattern of leaf names -> kind of text tower, if our Text does not support it.
_OTHER_KINDS = {
  r"^text_decoder\.|^(text\.)?cls_emb$": "CoCa",
  r"\.encoder\.block\.\d": "T5 or mT5",
  r"^text\.transformer\.(?!resblocks\.)|[Bb]ert": (
    "BERT, RoBERTa or another of transformers"
  ),
}
# Prefixes of image towers inside their checkpoint.
_IMAGE_PREFIXES = ("visual.trunk.", "img/")
_BLOCK_0 = tables.BLOCK_0
# Options that change outputs without changing names and shapes.
_SILENT = ("num_heads", "act", "norm_eps", "pool_type", "causal", "eos_id")


def open_text(table: foreign.SourceTable) -> foreign.SourceTable:
  """Opens the text tower, logit scale and bias beside an image tower.

  Args:
    table: the checkpoint, with the table of its image tower.

  Returns:
    All leaves outside the image tower, with one of `text_tables`.

  Raises:
    ValueError: if there is no text tower, or one that `models.Text` does not
      support.
  """
  names = [name for rule in RULES for name in table.ignored.get(rule, ())]
  names += table.ignored.get("position numbers", ())
  all_entries = {**table.entries, **table.unread}
  prefix = table.prefix
  for part in _IMAGE_PREFIXES:
    prefix = prefix.removesuffix(part)
  family = text_tables.FAMILIES.get(table.name)
  if family is None or not table.ignored.get(RULES[0]):
    raise ValueError(
      f"{table.where} has an image tower only (family {table.name!r}), but a "
      "text tower is needed: give a checkpoint with both towers."
    )
  entries = {
    name: all_entries[name]
    for name in names
    if not any(
      re.search(pattern, name.removeprefix(prefix))
      for pattern in family.ignored.values()
    )
  }
  text = foreign.SourceTable(
    table.name,
    entries,
    prefix,
    table.where,
    said=dataclasses.replace(table.said, options=text_configs.read(table.said)),
    kind=family,
  )
  if text.locate("Embed_0/embedding")[1] is None:
    example = next(iter(entries))
    raise ValueError(
      f"The text tower of {table.where} has no token embedding with a known "
      f"name, only leaves such as {example!r}{_kind(entries, prefix)}: soupjax "
      "supports those of OpenAI's CLIP, OpenCLIP, SigLIP and big_vision."
    )
  other = _kind(entries, prefix)
  if other:
    raise ValueError(
      f"The text tower of {table.where} is of another kind{other}: soupjax "
      "supports those of OpenAI's CLIP, OpenCLIP, SigLIP and big_vision."
    )
  _sizes(text)
  return text


def _kind(entries, prefix) -> str:
  for pattern, kind in _OTHER_KINDS.items():
    for name in entries:
      name = name.removeprefix(prefix)
      if re.search(pattern, name):
        return f" ({kind}, by {name!r})"
  return ""


def options(
  table: foreign.SourceTable, image: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the options of `models.CLIP`.

  Args:
    table: the checkpoint, as for `open_text`.
    image: options of its image tower.

  Raises:
    ValueError: as for `open_text`, or if the projections of the towers differ
      in size.
  """
  text = open_text(table)
  leaves = set(text.leaves())
  measured = _sizes(text)
  sizes = image.get("proj_size"), measured.get("proj_size")
  if "num_classes" not in image and all(sizes) and sizes[0] != sizes[1]:
    raise ValueError(
      f"The projections of {text.where} differ: image embeddings have size "
      f"{sizes[0]}, but text embeddings {sizes[1]}. Its towers belong to "
      "different models: take both from one."
    )
  usual = {**text.family.options, "num_heads": _usual_heads(measured)}
  if "MAPHead_0/probe" in leaves:
    measured["pool_type"] = "map"
  said = {k: v for k, v in text.said.options.items() if k not in measured}
  return {
    "image": {k: v for k, v in image.items() if k != "posemb" or v != "learn"},
    "text": {**usual, **said, **measured},
    "bias": "b" in leaves,
  }


def _sizes(text: foreign.SourceTable) -> dict[str, Any]:
  """Returns the options that are sizes of leaves; checks the config by them."""
  norm = re.compile(r"Transformer/encoderblock_\d+/LayerNorm_0/scale")
  sizes: dict[str, Any] = {
    "depth": sum(bool(norm.fullmatch(k)) for k in text.leaves())
  }
  for key, leaf, axis in (
    ("vocab_size", "Embed_0/embedding", 0),
    ("width", "Embed_0/embedding", 1),
    ("context_length", "pos_embedding", 1),
    ("mlp_dim", f"{_BLOCK_0}MlpBlock_0/Dense_0/kernel", 1),
    ("proj_size", "proj/kernel", 1),
    ("num_classes", "head/kernel", 1),
  ):
    if (shape := text.shape(leaf)) and len(shape) > axis:
      sizes[key] = shape[axis]
  query = text.shape(f"{_BLOCK_0}MultiHeadDotProductAttention_0/query/kernel")
  if query and len(query) == 3:
    sizes["num_heads"] = query[1]
  for key, value in text.said.options.items():
    if key in sizes and sizes[key] != value:
      raise ValueError(
        f"{text.said.path} has {key}={value} for the text tower, but the "
        f"weights of {text.where} have {sizes[key]}: it belongs to another "
        "model. Replace or remove it."
      )
  return sizes


def _usual_heads(sizes) -> int | None:
  for size in vit.VARIANTS.values():
    if all(size[k] == sizes.get(k) for k in ("width", "depth", "mlp_dim")):
      return size["num_heads"]
  width = sizes.get("width", 1)
  return None if width % 64 else width // 64


def load(table: foreign.SourceTable, model: clip.CLIP, image: PyTree) -> PyTree:
  """Reads the text tower, logit scale and bias.

  Args:
    table: the checkpoint, as for `open_text`.
    model: the whole model.
    image: parameters of its image tower.

  Returns:
    Parameters of the model.

  Raises:
    ValueError: as for `open_text`, or if the text tower does not fit the model.
  """
  text, specs = _fitting(table, model)
  leaves = foreign.stacked(text.read(specs, None), _tower(model).scan)
  named, treedef = tree.nest(
    {text_tables.tree_name(leaf): leaves[leaf] for leaf in list(leaves)}
  )
  params = jax.tree.unflatten(treedef, list(named.values()))
  return {"img": image, **params}


def as_ingredient(
  source: Ingredient,
  table: foreign.SourceTable,
  model: clip.CLIP,
  image: Ingredient,
) -> Ingredient:
  """Adapts a checkpoint to the whole model; reads no weights yet.

  Args:
    source: the checkpoint.
    table: the same checkpoint, as for `open_text`.
    model: the whole model.
    image: `source`, adapted to the image tower.

  Raises:
    ValueError: as for `load`.
  """
  text, blocks = _fitting(table, model)
  names_of = foreign.blocks_of(blocks, _tower(model).scan)
  specs = {f"img/{leaf}": spec for leaf, spec in image.specs.items()}
  for leaf, names in names_of.items():
    spec = blocks[names[0]]
    if names != (leaf,):
      spec = jax.ShapeDtypeStruct((len(names), *spec.shape), spec.dtype)
    specs[text_tables.tree_name(leaf)] = spec
  specs, treedef = tree.nest(specs)

  def read(leaf, index):
    if leaf.startswith("img/"):
      return image.read(leaf.removeprefix("img/"), index=index)
    leaf = text_tables.table_name(leaf)
    names = names_of[leaf]
    arrays = text.read({name: blocks[name] for name in names}, None)
    stacked = foreign.stacked(arrays, _tower(model).scan)[leaf]
    return stacked if index is None else stacked[index]

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
  model: clip.CLIP,
  family: str,
  image: Mapping[str, Any],
  like: foreign.SourceTable | None,
) -> dict[str, Any]:
  """Adds the text tower, logit scale and bias to an exported image tower.

  Args:
    params: parameters of the whole model.
    model: the whole model.
    family: a key of `text_tables.FAMILIES`.
    image: name -> array of the image tower.
    like: a checkpoint of the family, None for the usual names.

  Returns:
    Name -> array of the whole model.

  Raises:
    ValueError: if the family lacks a name for a leaf, or the parameters do not
      belong to the model.
  """
  if family not in text_tables.FAMILIES:
    raise ValueError(
      f"{family!r} has no text towers: choose one of "
      f"{', '.join(text_tables.FAMILIES)}."
    )
  if family == "timm" and like is None:
    raise ValueError(
      "family='timm' is a model of OpenCLIP with an image tower of timm: give "
      "like=, a checkpoint of such a model, for the names."
    )
  rest = {name: value for name, value in params.items() if name != "img"}
  leaves = {
    text_tables.table_name(leaf): value
    for leaf, value in tree.flatten(rest)[0].items()
  }
  leaves = foreign.unstacked(leaves)
  specs = specs_of(model)
  shapes = {leaf: np.shape(value) for leaf, value in leaves.items()}
  if shapes != {leaf: spec.shape for leaf, spec in specs.items()}:
    bad = sorted(
      k
      for k in shapes.keys() | specs.keys()
      if k not in specs or shapes.get(k) != specs[k].shape
    )
    raise ValueError(
      f"These are not the parameters of this CLIP: {len(bad)} leaves outside "
      f"the image tower differ, such as {text_tables.tree_name(bad[0])}."
    )
  kind = text_tables.FAMILIES[family]
  unnamed = [leaf for leaf in leaves if not foreign.rows_of(kind, leaf)]
  if unnamed:
    raise ValueError(
      f"{family!r} has no name for {len(unnamed)} leaves outside the image "
      f"tower, such as {text_tables.tree_name(unnamed[0])}: choose another "
      "family."
    )
  if family == "big_vision" and like is None:
    image = {f"img/{name}": value for name, value in image.items()}
  table = None if like is None else open_text(like)
  return {**image, **foreign.write(kind, leaves, table)}


def _fitting(
  table: foreign.SourceTable, model: clip.CLIP
) -> tuple[foreign.SourceTable, dict[str, jax.ShapeDtypeStruct]]:
  """Opens the text tower, checks that it fits, and returns it with specs."""
  text, specs = open_text(table), specs_of(model)
  _check_computation(model, text)
  problems = text.compare(specs, ())
  positions = text.shape("pos_embedding")
  if not problems and positions != specs["pos_embedding"].shape:
    problems = (
      f"positions of {positions[1]} tokens, but context_length is "
      f"{_tower(model).context_length}"
    )
  if problems:
    raise ValueError(
      f"The text tower of {table.where}, read as {table.name!r}, does not fit "
      f"this CLIP:\n  {problems}\nBuild it with the options of "
      f"pretrained.detect({table.where!r}, text=True)."
    )
  groups = {k: v for k, v in table.ignored.items() if k not in RULES}
  for rule, names in groups.items():
    logging.info(
      "%s: %d leaves are not read (%s), such as %s",
      *(table.where, len(names), rule, names[0]),
    )
  return text, specs


def _check_computation(model: clip.CLIP, text: foreign.SourceTable) -> None:
  """Rejects a model whose text tower differs from the config.

  Raises:
    ValueError: if an option of the text tower differs from the config beside
      the weights.
  """
  said = text.said.options
  tower = {k: getattr(_tower(model), k) for k in _SILENT}
  differ = {k: v for k, v in said.items() if k in tower and tower[k] != v}
  if differ:
    raise ValueError(
      f"{text.said.path} implies {differ} for the text tower, but this CLIP "
      f"has { {k: tower[k] for k in differ} }: build it with the options of "
      f"pretrained.detect({text.where!r}, text=True)."
    )


def image_of(model: clip.CLIP) -> vit.ViT:
  """Returns the image tower of a model, without its parameters."""
  return vit.ViT(**model.image)


def _tower(model: clip.CLIP) -> text_lib.Text:
  return text_lib.Text(**model.text)


def specs_of(model: clip.CLIP) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns table leaf -> spec, for all leaves outside the image tower."""
  specs = dict(_traced_specs(_tower(model)))
  scalar = jax.ShapeDtypeStruct((1,), np.float32)
  specs |= {"t": scalar, **({"b": scalar} if model.bias else {})}
  return foreign.unstacked(specs)


@functools.lru_cache(maxsize=8)
def _traced_specs(tower: text_lib.Text) -> dict[str, jax.ShapeDtypeStruct]:
  tokens = jax.ShapeDtypeStruct((1, tower.context_length), np.int32)
  variables = jax.eval_shape(tower.init, jax.random.key(0), tokens)
  leaves, _ = tree.flatten(variables["params"])
  return {text_tables.table_name(leaf): spec for leaf, spec in leaves.items()}
