# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens an adapter together with its base, as one full model."""

import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np

from soupjax.checkpoints import companions, provenance
from soupjax.checkpoints.adapters import peft_config, targets, updates
from soupjax.checkpoints.formats import byte_ranges
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.soups.core import slices, tree
from soupjax.soups.core.ingredient import (
  Ingredient,
  Storage,
  as_ingredient,
  storage_of,
)
from soupjax.soups.engine import plan as planning

# Entry of `hyperparameters.json` with the hash of the base.
BASE_HASH = "base_hash"
# Entries of configs that name the outputs of the head.
_LABELS = ("id2label", "label2id", "label_names", "label_descriptions")
# Layers that compute the outputs of a classifier.
_HEAD = re.compile(r"(^|[./])(classifier|head|score|fc)[./](weight|kernel)$")


def open_adapter(path: str | os.PathLike, base: Any) -> Ingredient:
  """Opens an adapter that PEFT saved, as a model; reads metadata only.

  Weights that LoRA (with rsLoRA and DoRA) or IA3 adapts are computed when they
  are read: a slice of a leaf needs that slice of the base and the factors of
  the leaf. Recipes accept the result like a full checkpoint.

  Args:
    path: path of the folder with `adapter_config.json` and the weights.
    base: the model that the adapter was trained on, in any form.

  Returns:
    An ingredient with the leaves of the base, named after the adapter's folder.
    Modules that the adapter saves whole replace those of the base, in their own
    shapes. Values are computed in float64 and rounded once to the dtype of the
    base.

  Raises:
    ValueError: if a file is missing, the adapter does not fit the base, or is
      of a kind that cannot be merged.

  Examples:
    >>> base = {"q.weight": jnp.zeros((2, 3))}
    >>> sj.save_params("lora/adapter_model.safetensors", {
    ...   "base_model.model.q.lora_A.weight": jnp.ones((1, 3)),
    ...   "base_model.model.q.lora_B.weight": jnp.array([[1.0], [2.0]])})
    >>> with open("lora/adapter_config.json", "w") as f:
    ...   _ = f.write('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    >>> sj.open_adapter("lora", base).read("q.weight")
    array([[2., 2., 2.],
           [4., 4., 4.]], dtype=float32)
  """
  folder, adapter, config = open_factors(path)
  base = as_ingredient(base, "base")
  adapted = targets.find(adapter.specs, base.specs, config)
  ingredient = _ingredient(folder, adapter, base, adapted)
  recorded = ingredient.hyperparameters.get(BASE_HASH)
  present = hash_of(base)
  if recorded and present and recorded != present:
    raise ValueError(
      f"{folder} was trained on a base with the hash {str(recorded)[:8]}, but "
      f"{base.path} has {present[:8]}: give that base, "
      f"{config.base_name or 'which its config does not name'}."
    )
  return ingredient


def hash_of(base: Ingredient) -> str | None:
  """Returns the content hash of a model whose file has checksums of all leaves.

  None for other models, whose leaves would have to be read.
  """
  checksums = storage_of(base).checksums
  if not checksums.keys() >= base.specs.keys():
    return None
  return provenance.content_hash(base.specs, checksums)


def open_factors(
  path: str | os.PathLike,
) -> tuple[str, Ingredient, peft_config.AdapterConfig]:
  """Opens the files of an adapter without a base.

  Args:
    path: as for `open_adapter`.

  Returns:
    The folder, the leaves of the adapter, and its config.

  Raises:
    ValueError: if a file is missing or damaged, or the method of the adapter is
      not supported.
  """
  place = pathlib.Path(absolute(path))
  if byte_ranges.is_remote(os.fspath(path)):
    raise ValueError(f"{path}: copy the adapter to a local folder first.")
  folder = place.parent if place.name in peft_config.WEIGHTS else place
  weights = _weights(folder)
  config = peft_config.read(folder)
  inner, file_format = recognise(str(weights))
  with byte_ranges.naming(inner):
    adapter = file_format.open_checkpoint(inner, folder.name, None)
  return str(folder), adapter, config


def _weights(folder: pathlib.Path) -> pathlib.Path:
  for name in peft_config.WEIGHTS:
    if (folder / name).exists():
      return folder / name
  raise ValueError(
    f"{folder} has no {' or '.join(peft_config.WEIGHTS)}: give the folder of "
    "an adapter that PEFT saved."
  )


def _ingredient(path, adapter, base, adapted) -> Ingredient:
  specs, treedef = adapted.specs, base.treedef
  if specs.keys() != base.specs.keys():
    specs, treedef = tree.nest(specs)
  storage = _storage(adapter, base, adapted)

  def changed():
    changes = (i.changed() for i in (adapter, base) if i.changed)
    return next(filter(None, changes), "")

  return dataclasses.replace(
    base,
    name=adapter.name,
    specs=specs,
    treedef=treedef,
    reader=byte_ranges.reader(path, specs, storage),
    metrics=companions.sidecar(path, "metrics.json"),
    hyperparameters=companions.sidecar(path, "hyperparameters.json"),
    configs={**_configs_of(base, adapted), **companions.read(path)},
    path=path,
    storage=storage,
    changed=changed,
    base=base,
  )


def _configs_of(base, adapted) -> dict[str, Any]:
  """Returns the configs of the base, with the outputs of a new head.

  The classes of a new head are not those of the base, so they are numbered, as
  transformers does for a model without class names.
  """
  new = {
    leaf: update.shape
    for leaf, update in adapted.updates.items()
    if isinstance(update, updates.Replaced) and len(update.shape) > 1
  }
  if not new:
    return base.configs
  sizes = {shape[0] for leaf, shape in new.items() if _HEAD.search(leaf)}
  outputs = sizes.pop() if len(sizes) == 1 else None
  return {
    name: {k: v for k, v in config.items() if k not in _LABELS}
    | _numbered(config, outputs)
    for name, config in base.configs.items()
  }


def _numbered(config: dict[str, Any], outputs: int | None) -> dict[str, Any]:
  """Returns the entries of a config for outputs without names."""
  if outputs is None:
    return {}
  entries: dict[str, Any] = {
    key: outputs for key in ("num_classes", "num_labels") if key in config
  }
  if "model_type" in config or "architectures" in config:
    names = [f"LABEL_{k}" for k in range(outputs)]
    entries["id2label"] = {str(k): name for k, name in enumerate(names)}
    entries["label2id"] = {name: k for k, name in enumerate(names)}
  return entries


def _storage(adapter, base, adapted) -> Storage:
  """Returns a storage that reads leaves of both and computes adapted leaves."""
  below, beside = storage_of(base), storage_of(adapter)
  changes = adapted.updates
  direct = {
    leaf: update.names[0]
    for leaf, update in changes.items()
    if isinstance(update, updates.Replaced)
    and adapter.specs[update.names[0]].dtype == adapted.specs[leaf].dtype
  }
  computed = changes.keys() - direct.keys()
  latest: dict[str, dict[str, np.ndarray]] = {}

  def arrays_of(leaf):
    # Consecutive blocks often belong to one leaf.
    arrays = latest.get(leaf)
    if arrays is None:
      arrays = {
        name: np.asarray(adapter.reader(name, None), np.float64)
        for name in changes[leaf].names
      }
      latest.clear()
      latest[leaf] = arrays
    return arrays

  def fill(span, out):
    leaf, dtype = span.leaf, adapted.specs[span.leaf].dtype
    arrays, result = arrays_of(leaf), out.reshape(slices.shape_of(span.box))

    def read_base(box):
      flat = np.empty(slices.size(box), dtype)
      below.read_box(leaf, box, flat)
      return flat.reshape(slices.shape_of(box)).astype(np.float64)

    for box in updates.parts(changes[leaf], span.box):
      value = changes[leaf].compute(arrays, read_base, box)
      result[slices.inside(box, span.box)] = value

  def read(spans, out):
    below.read([s for s in spans if s.leaf not in changes], out)
    own = [s._replace(leaf=direct[s.leaf]) for s in spans if s.leaf in direct]
    beside.read(own, out)
    for span in spans:
      if span.leaf in computed:
        fill(span, out[span.start : span.stop])

  checksums = {k: v for k, v in below.checksums.items() if k not in changes}
  for leaf, name in direct.items():
    if name in beside.checksums:
      checksums[leaf] = beside.checksums[name]
  return Storage(
    read=read,
    order=(
      *below.order,
      *(leaf for leaf in adapted.specs if leaf not in base.specs),
    ),
    chunks=_chunks(below, adapted, computed),
    checksums=checksums,
    num_bytes=(below.num_bytes or base.num_bytes)
    + (beside.num_bytes or adapter.num_bytes),
    shared=[s for s in below.shared if not changes.keys() & s.sizes.keys()],
    self_checked=frozenset(below.self_checked) - changes.keys(),
  )


def _chunks(below, adapted, computed) -> dict[str, tuple[int, ...]]:
  """Returns the chunks of the base, and whole tiles of computed leaves."""
  chunks = {
    leaf: chunk
    for leaf, chunk in below.chunks.items()
    if leaf not in adapted.updates
  }
  for leaf in computed:
    update = adapted.updates[leaf]
    if isinstance(update, updates.Product):
      tile = (min(update.tile, update.shape[0]), *update.shape[1:])
      stored = below.chunks.get(leaf, tile)
      chunks[leaf] = tuple(
        min(n, size)
        for n, size in zip(planning.align([tile, stored]), update.shape)
      )
    elif leaf in below.chunks:
      chunks[leaf] = below.chunks[leaf]
  return chunks
