# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints: written by its V1 API, read by leaf and by slice.

Metadata goes through Orbax, which knows its own layouts (V0 and V1, OCDBT or
one file a chunk). Leaves are read with tensorstore from the arrays that Orbax
stored: a tenth of the CPU time of an Orbax restore for every leaf, and a slice
costs only the chunks that it touches.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import json
import re
import shutil
from typing import Any

from etils import epath
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import tensorstore as ts

from soupjax import files
from soupjax.checkpoints.formats import (
  byte_ranges,
  leaf_digest,
  orbax_writer,
  params_of_state,
)
from soupjax.soups.core import slices, tree
from soupjax.soups.core.ingredient import Ingredient, Storage

PyTree = Any

# Where a tree is in its checkpoint: V1, V1 of old, CheckpointManager, the item
# of several that is the model, V0.
_TREES = ("state", "pytree", "default", "params", "")


def save(path: str, params: PyTree, metadata: dict[str, Any] | None) -> None:
  """Writes a tree as an Orbax checkpoint; see `save_params`."""
  _check_savable(path, params)
  # Found by Orbax, it fills pages of the log.
  files.check_writable(path)
  arrays = _arrays(params)
  sizes = [x.nbytes for x in jax.tree.leaves(arrays)]
  num_bytes = sum(sizes) + 640 * len(sizes) + 8192
  files.check_room(path, num_bytes, files.free_bytes(path))
  try:
    with _raw():
      ocp.save(path, arrays, custom_metadata=metadata)
  except Exception as e:
    # Orbax leaves what it has written.
    if jax.process_index() == 0:
      shutil.rmtree(f"{path}.orbax-checkpoint-tmp", ignore_errors=True)
    found = orbax_writer.explained(e, path)
    if found is e:
      raise
    raise found from e


def save_async(path: str, params: PyTree) -> Any:
  """Begins to write a tree as an Orbax checkpoint.

  Args:
    path: a new directory.
    params: a tree of arrays; may be donated or changed after the call.

  Returns:
    A response; its `result()` waits until the checkpoint is whole.
  """
  _check_savable(path, params)
  with _raw():
    return ocp.save_async(path, _arrays(params))


def _raw() -> ocp.Context:
  context = ocp.Context()
  # Float weights hardly compress: raw files are twice as fast, 7 % larger.
  context.array.saving.use_compression = False
  return context


def _arrays(params):
  # Orbax refuses numpy scalars.
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else np.asarray(x), params
  )


def _check_savable(path: str, params: PyTree) -> None:
  """Checks what Orbax would notice too late, or never."""
  wild = sorted(set(path) & set("*?["))
  if wild:
    raise ValueError(
      f"{path} has {' and '.join(wild)} in it, which Orbax takes for a "
      "pattern: what it saves there may be lost. Choose another name."
    )
  leaves, _ = tree.flatten(params)
  paths, _ = jax.tree_util.tree_flatten_with_path(params)
  # Orbax joins keys with dots: of two leaves of one name, one would be lost.
  stored: dict[str, str] = {}
  for leaf, (keys, _) in zip(leaves, paths):
    key = jax.tree_util.keystr(keys, simple=True, separator=".")
    if key in stored:
      raise ValueError(
        f"Leaves {stored[key]!r} and {leaf!r} would both be stored as {key!r}. "
        "Rename one of them, or save to a .safetensors file."
      )
    stored[key] = leaf
  for leaf, spec in tree.value_specs(leaves, "what is to be saved").items():
    if 0 in spec.shape:
      raise ValueError(
        f"Leaf {leaf!r} has shape {spec.shape}: Orbax stores no empty arrays."
      )


@contextlib.contextmanager
def explained(path: str):
  """Turns what Orbax raises on a damaged checkpoint into a ValueError."""
  try:
    yield
  except (ValueError, OSError, KeyError, TypeError) as e:
    # Orbax's InvalidLayoutError is a ValueError too.
    reason = (str(e).splitlines() or ["no reason given"])[0]
    raise ValueError(
      f"{path} is not a whole Orbax checkpoint ({type(e).__name__}: {reason}). "
      "A save that was cut short leaves such a directory: save it again, or "
      "leave it out."
    ) from e


def is_orbax(path: Any) -> bool:
  """Whether a directory looks like an Orbax checkpoint of either layout."""
  return any(
    (path / name).exists()
    for name in ("_CHECKPOINT_METADATA", "_METADATA", "state/_METADATA")
  )


def custom_metadata(path: str) -> dict[str, Any]:
  """Returns what `save_params` stored beside the weights."""
  with explained(path):
    return _describe(path, _items(path)).custom_metadata or {}


def open_checkpoint(path: str, name: str) -> Ingredient:
  """Opens a checkpoint lazily: reads metadata, no weights.

  Args:
    path: a checkpoint directory.
    name: the ingredient's name.

  Returns:
    The ingredient. A full train state is cut down to its `params`; with
    `batch_stats` beside them, to both.

  Raises:
    ValueError: if the checkpoint is damaged or incomplete.
  """
  items = _items(path)
  roots = [epath.Path(path) / item for item in items]
  with explained(path):
    if roots:
      _check_index(roots[0])
    described = _describe(path, items)
    _check_leaves(path, described)
    found, entry = params_of_state.of_state(path, described.metadata)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(found)
  if not roots:
    raise ValueError(
      f"{path} is an Orbax checkpoint of several things, none of them called "
      f"{' or '.join(_TREES[:-1])}. Give the directory of one of them, as "
      f"{path}/NAME."
    )
  open_one = functools.cache(
    functools.partial(open_leaf, str(roots[0]), new_context())
  )
  specs, keys = {}, {}
  for key, leaf in leaves:
    name_of_leaf = tree.name_of(key)
    keys[name_of_leaf] = (f"{entry}." if entry else "") + (
      jax.tree_util.keystr(key, simple=True, separator=".")
    )
    if isinstance(leaf, str):
      raise ValueError(f"Leaf {name_of_leaf!r} of {path} is text, no array.")
    if not hasattr(leaf, "shape"):
      # Python and numpy scalars of V0, which have it beside the data only.
      with explained(path):
        array = open_one(keys[name_of_leaf])
      leaf = jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
    specs[name_of_leaf] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  if not specs:
    raise ValueError(
      f"{path} holds no arrays: it was saved from an empty tree, or is damaged."
    )

  def read_box(leaf, box, out):
    with explained(path):
      array = open_one(keys[leaf])[box]
      ts.array(out.reshape(slices.shape_of(box))).write(array).result()

  storage = Storage(
    read_box=read_box,
    order=tuple(specs),
    chunks=_Chunks(
      {leaf: functools.partial(open_one, key) for leaf, key in keys.items()}
    ),
    checksums=_recorded(described.custom_metadata or {}, entry, specs),
  )
  return Ingredient(
    name=name,
    specs=specs,
    treedef=treedef,
    reader=byte_ranges.reader(path, specs, storage),
    path=path,
    storage=storage,
  )


def _items(path: str) -> list[str]:
  """Those of `_TREES` that a checkpoint has."""
  place = epath.Path(path)
  return [item for item in _TREES if (place / item / "_METADATA").exists()]


def _describe(path: str, items: Sequence[str]) -> Any:
  """Returns Orbax's metadata of the tree that was found."""
  place = epath.Path(path)
  if items and items[0]:
    return ocp.metadata(path, checkpointable_name=items[0])
  if items and not (place / "_CHECKPOINT_METADATA").exists():
    if (place.parent / "_CHECKPOINT_METADATA").exists():
      # The directory of one item of several.
      return ocp.metadata(place.parent, checkpointable_name=place.name)
  return ocp.metadata(path)


def _check_leaves(path: str, described: Any) -> None:
  """Compares the leaves with those that soupjax wrote, if it did."""
  custom = described.custom_metadata or {}
  if leaf_digest.KEY not in custom:
    return
  leaves, _ = tree.flatten(described.metadata)
  specs = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in leaves.items()
  }
  names = custom.get("soupjax", {}).get("crc32", {})
  leaf_digest.check(path, specs, custom[leaf_digest.KEY], names)


def _check_index(root: epath.Path) -> None:
  """Reads the lists of what a tree holds, so that damage shows.

  Orbax logs it page by page, and goes on with a tree without leaves.
  """
  text = (root / "_METADATA").read_text(encoding="utf-8")
  try:
    described = json.loads(text)
    described["tree_metadata"]
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f"{root / '_METADATA'} is damaged: {e!r}") from e
  if (root / "manifest.ocdbt").exists():
    # Of every node of the index, with its checksum; of no weights.
    store = _database(str(root))
    ts.KvStore.open(store, context=new_context()).result().list().result()
  elif described.get("use_ocdbt"):
    raise ValueError(f"{root / 'manifest.ocdbt'} is missing")


class _Chunks(Mapping):
  """Leaf -> shape of what is read at once; a leaf is opened when asked for."""

  def __init__(self, arrays):
    self._arrays = arrays

  def __getitem__(self, leaf):
    array = self._arrays[leaf]()
    # 0-d arrays have no chunks.
    return tuple(array.chunk_layout.read_chunk.shape or array.shape)

  def __iter__(self):
    return iter(self._arrays)

  def __len__(self):
    return len(self._arrays)


def _recorded(
  custom: Mapping[str, Any], entry: str, specs: Mapping[str, Any]
) -> dict[str, int]:
  """Checksums that soupjax left in the metadata, of leaves that are here."""
  record = custom.get("soupjax")
  found = record.get("crc32", {}) if isinstance(record, dict) else {}
  names = {leaf: f"{entry}/{leaf}" if entry else leaf for leaf in specs}
  return {
    leaf: int(found[name], 16) for leaf, name in names.items() if name in found
  }


def new_context() -> ts.Context:
  """Makes what arrays that are opened together should share."""
  # Without a cache every open reads the OCDBT index again.
  return ts.Context(
    {
      "cache_pool": {"total_bytes_limit": 0},
      "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000},
    }
  )


def _database(root: str) -> dict[str, Any]:
  """The tensorstore spec of the database that a tree is in."""
  return {
    "driver": "ocdbt",
    "base": _store(root),
    "cache_pool": "cache_pool#ocdbt",
  }


def open_leaf(root: str, context: ts.Context, key: str) -> ts.TensorStore:
  """Opens one array of a tree.

  Args:
    root: the directory with its `_METADATA`.
    context: of tensorstore.
    key: the keys of the leaf, joined by dots.
  """
  place = epath.Path(root)
  text = (place / "_METADATA").read_text(encoding="utf-8")
  zarr3 = re.search(r'"use_zarr3":\s*true', text) is not None
  store = _store(root)
  if (place / "manifest.ocdbt").exists():
    store = {**_database(root), "path": f"{key}/"}
  else:
    store["path"] += f"{key}/"
  spec = {
    "driver": "zarr3" if zarr3 else "zarr",
    "kvstore": store,
    # Orbax writes zeros too: what is missing is lost, not zero.
    "fill_missing_data_reads": False,
  }
  return ts.open(spec, context=context, open=True, read=True).result()


def _store(root: str) -> dict[str, Any]:
  """What tensorstore calls a directory, which may be in a bucket."""
  kind, is_address, rest = root.partition("://")
  if not is_address:
    # Not a file:// address, in which '?', '#' and '%' would mean something.
    return {"driver": "file", "path": f"{root}/"}
  drivers = {"gs": "gcs", "s3": "s3"}
  if kind not in drivers:
    raise ValueError(
      f"{root}: Orbax checkpoints are read from gs:// and s3://. Copy it."
    )
  bucket, _, path = rest.partition("/")
  return {"driver": drivers[kind], "bucket": bucket, "path": f"{path}/"}
