# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints: written by its V1 API, read by leaf and by slice.

Orbax reads the metadata, since it knows its own layouts (V0 and V1, OCDBT or
one file per chunk). Leaves are read directly with tensorstore, which takes a
tenth of the CPU time of an Orbax restore and only the chunks of a slice.
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

# Item names to try: V1, early V1, CheckpointManager, multi-item "params", V0.
_TREES = ("state", "pytree", "default", "params", "")


def save(path: str, params: PyTree, metadata: dict[str, Any] | None) -> None:
  """Writes a tree as an Orbax checkpoint; see `save_params`."""
  _check_savable(path, params)
  # Orbax would report this in pages of log.
  files.check_writable(path)
  arrays = _arrays(params)
  sizes = [x.nbytes for x in jax.tree.leaves(arrays)]
  num_bytes = sum(sizes) + 640 * len(sizes) + 8192
  files.check_room(path, num_bytes)
  try:
    with _uncompressed():
      ocp.save(path, arrays, custom_metadata=metadata)
  except Exception as e:
    if jax.process_index() == 0:
      shutil.rmtree(f"{path}.orbax-checkpoint-tmp", ignore_errors=True)
    orbax_writer.explain(e, path)
    raise


def save_async(path: str, params: PyTree) -> Any:
  """Starts to write a tree as an Orbax checkpoint.

  Args:
    path: a new directory.
    params: a tree of arrays; may be donated or changed after the call.

  Returns:
    A response; its `result()` waits until the checkpoint is complete.
  """
  _check_savable(path, params)
  with _uncompressed():
    return ocp.save_async(path, _arrays(params))


def _uncompressed() -> ocp.Context:
  context = ocp.Context()
  # Float weights hardly shrink: this is twice as fast and 7 % larger.
  context.array.saving.use_compression = False
  return context


def _arrays(params):
  # Orbax rejects NumPy scalars.
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else np.asarray(x), params
  )


def _check_savable(path: str, params: PyTree) -> None:
  """Checks for errors that Orbax reports late or never."""
  wildcards = sorted(set(path) & set("*?["))
  if wildcards:
    raise ValueError(
      f"{path} contains {' and '.join(wildcards)}, which Orbax takes for a "
      "pattern: a checkpoint there may be lost. Choose another name."
    )
  leaves, _ = tree.flatten(params)
  paths, _ = jax.tree_util.tree_flatten_with_path(params)
  # Orbax joins keys with dots and would lose one of two leaves with one name.
  stored: dict[str, str] = {}
  for leaf, (keys, _) in zip(leaves, paths):
    key = jax.tree_util.keystr(keys, simple=True, separator=".")
    if key in stored:
      raise ValueError(
        f"Leaves {stored[key]!r} and {leaf!r} would both be stored as {key!r}. "
        "Rename one of them, or save to a .safetensors file."
      )
    stored[key] = leaf
  orbax_writer.check(tree.value_specs(leaves, "the tree to save"))


@contextlib.contextmanager
def explained(path: str):
  """Turns Orbax's errors about a damaged checkpoint into a ValueError."""
  try:
    yield
  except (ValueError, OSError, KeyError, TypeError) as e:
    # Orbax's InvalidLayoutError is a ValueError too.
    reason = (str(e).splitlines() or ["no reason given"])[0]
    raise ValueError(
      f"{path} is not a whole Orbax checkpoint ({type(e).__name__}: {reason}). "
      "It may be an interrupted save: save it again or leave it out."
    ) from e


def is_orbax(path: Any) -> bool:
  """Whether a directory looks like an Orbax checkpoint of either layout."""
  return any(
    (path / name).exists()
    for name in ("_CHECKPOINT_METADATA", "_METADATA", "state/_METADATA")
  )


def custom_metadata(path: str) -> dict[str, Any]:
  """Returns the custom metadata, such as that of `save_params`."""
  with explained(path):
    return _describe(path, _items(path)).custom_metadata or {}


def record(path: str) -> dict[str, Any]:
  """Returns the record that soupjax left in a checkpoint, {} if none."""
  return custom_metadata(path).get("soupjax") or {}


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens a checkpoint lazily: reads metadata, but no weights.

  Args:
    path: a checkpoint directory.
    name: of the ingredient.
    entry: of a train state that is the model; None follows the rule of
      `params_of_state`.

  Returns:
    The ingredient. A train state is cut to its `params`, or to `params` and
    `batch_stats`.

  Raises:
    ValueError: if the checkpoint is damaged or incomplete.
  """
  items = _items(path)
  roots = [epath.Path(path) / item for item in items]
  with explained(path):
    if roots:
      _check_index(roots[0])
    described = _describe(path, items)
    recorded = _check_leaves(path, described)
    state = described.metadata
  params, outer, ignored = params_of_state.of_state(path, state, entry)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  if not roots:
    raise ValueError(
      f"{path} is an Orbax checkpoint of several items, none of which is "
      f"called {' or '.join(_TREES[:-1])}. Give the directory of one item, "
      f"such as {path}/NAME."
    )
  open_array = functools.cache(
    functools.partial(open_leaf, str(roots[0]), new_context())
  )
  prefix = "".join(f"{key}/" for key in outer)
  specs, keys = {}, {}
  for key_path, array in leaves:
    leaf = tree.name_of(key_path)
    keys[leaf] = "".join(f"{key}." for key in outer) + (
      jax.tree_util.keystr(key_path, simple=True, separator=".")
    )
    if isinstance(array, str):
      raise ValueError(f"Leaf {leaf!r} of {path} is text, not an array.")
    if hasattr(array, "shape"):
      specs[leaf] = jax.ShapeDtypeStruct(array.shape, array.dtype)
    else:
      # The metadata of V0 has no specs of scalars.
      with explained(path):
        array = open_array(keys[leaf])
      specs[leaf] = jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
  if not specs:
    raise ValueError(
      f"{path} holds no arrays: it was saved from an empty tree or is damaged."
    )

  def read_box(leaf, box, out):
    with explained(path):
      array = open_array(keys[leaf])[box]
      ts.array(out.reshape(slices.shape_of(box))).write(array).result()

  storage = Storage(
    read_box=read_box,
    order=tuple(specs),
    chunks=_Chunks(open_array, keys),
    checksums={
      leaf: int(recorded[prefix + leaf], 16)
      for leaf in specs
      if prefix + leaf in recorded
    },
  )
  return Ingredient(
    name=name,
    specs=specs,
    treedef=treedef,
    reader=byte_ranges.reader(path, specs, storage),
    path=path,
    storage=storage,
    ignored=ignored,
  )


def _items(path: str) -> list[str]:
  """Returns the names in `_TREES` that a checkpoint has."""
  place = epath.Path(path)
  return [item for item in _TREES if (place / item / "_METADATA").exists()]


def _describe(path: str, items: Sequence[str]) -> Any:
  """Returns Orbax's metadata of the first item."""
  place = epath.Path(path)
  if items and items[0]:
    return ocp.metadata(path, checkpointable_name=items[0])
  if items and not (place / "_CHECKPOINT_METADATA").exists():
    if (place.parent / "_CHECKPOINT_METADATA").exists():
      # The path is the directory of one item.
      return ocp.metadata(place.parent, checkpointable_name=place.name)
  return ocp.metadata(path)


def _check_leaves(path: str, described: Any) -> dict[str, str]:
  """Compares the leaves with the digest of soupjax, if there is one.

  Returns:
    The checksums that soupjax recorded.
  """
  custom = described.custom_metadata or {}
  soup = custom.get("soupjax")
  checksums = soup.get("crc32", {}) if isinstance(soup, dict) else {}
  if leaf_digest.KEY in custom:
    leaves, _ = tree.flatten(described.metadata)
    specs = {
      leaf: jax.ShapeDtypeStruct(array.shape, array.dtype)
      for leaf, array in leaves.items()
    }
    leaf_digest.check(path, specs, custom[leaf_digest.KEY], checksums)
  return checksums


def _check_index(root: epath.Path) -> None:
  """Reads the index of a tree, so that damage raises an error.

  Orbax only logs such an error and returns a tree without leaves.
  """
  text = (root / "_METADATA").read_text(encoding="utf-8")
  try:
    described = json.loads(text)
    described["tree_metadata"]
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f"{root / '_METADATA'} is damaged: {e!r}") from e
  if (root / "manifest.ocdbt").exists():
    # Verifies the checksum of every index node without reading weights.
    store = _database(str(root))
    ts.KvStore.open(store, context=new_context()).result().list().result()
  elif described.get("use_ocdbt"):
    raise ValueError(f"{root / 'manifest.ocdbt'} is missing")


class _Chunks(Mapping):
  """Leaf -> chunk shape; an array is opened when its leaf is asked for."""

  def __init__(self, open_array, keys):
    self._open_array, self._keys = open_array, keys

  def __getitem__(self, leaf):
    array = self._open_array(self._keys[leaf])
    # 0-d arrays have no chunks.
    return tuple(array.chunk_layout.read_chunk.shape or array.shape)

  def __iter__(self):
    return iter(self._keys)

  def __len__(self):
    return len(self._keys)


def new_context() -> ts.Context:
  """Returns a context to share among arrays that are opened together."""
  # Without a cache every open reads the OCDBT index again.
  return ts.Context(
    {
      "cache_pool": {"total_bytes_limit": 0},
      "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000},
    }
  )


def _database(root: str) -> dict[str, Any]:
  """Returns the tensorstore spec of the OCDBT database of a tree."""
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
    # Orbax stores zeros too, so a missing chunk is damage.
    "fill_missing_data_reads": False,
  }
  return ts.open(spec, context=context, open=True, read=True).result()


def _store(root: str) -> dict[str, Any]:
  """Returns the tensorstore spec of a local directory or one in a bucket."""
  kind, is_address, rest = root.partition("://")
  if not is_address:
    # A file:// address would give '?', '#' and '%' a meaning.
    return {"driver": "file", "path": f"{root}/"}
  drivers = {"gs": "gcs", "s3": "s3"}
  if kind not in drivers:
    raise ValueError(
      f"{root}: Orbax checkpoints are read from gs:// and s3:// only. Copy it "
      "to a local path."
    )
  bucket, _, path = rest.partition("/")
  return {"driver": drivers[kind], "bucket": bucket, "path": f"{path}/"}
