# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints: written by its V1 API, read by leaf and by slice.

Orbax reads the metadata, since it knows its own layouts (V0 and V1, OCDBT or
one file per chunk). Leaves are read directly with tensorstore, which takes a
tenth of the CPU time of an Orbax restore and reads only the chunks of a slice.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import shutil
from typing import Any, NamedTuple

from absl import logging as absl_logging
from etils import epath
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import tensorstore as ts

from soupjax import files
from soupjax.checkpoints.formats import (
  byte_ranges,
  leaf_digest,
  orbax_arrays,
  orbax_writer,
  params_of_state,
)
from soupjax.soups.core import slices, tree
from soupjax.soups.core.ingredient import Ingredient, Storage, box_by_box

PyTree = Any

# Item names to try: V1, early V1, CheckpointManager, multi-item "params", V0.
_TREES = ("state", "pytree", "default", "params", "")


def save(
  path: str, params: PyTree, metadata: dict[str, Any] | None, name: str
) -> None:
  """Writes a tree as an Orbax checkpoint; see `save_params`.

  Args:
    path: path of a new directory.
    params: a tree of arrays.
    metadata: JSON to store with it.
    name: the path to name in errors.

  Raises:
    ValueError: if Orbax cannot store the tree, or the disk is full.
  """
  _check_savable(name, params)
  # Orbax would report this in pages of log.
  files.check_writable(name)
  arrays = _arrays(params)
  sizes = [x.nbytes for x in jax.tree.leaves(arrays)]
  num_bytes = sum(sizes) + 640 * len(sizes) + 8192
  files.check_room(name, num_bytes)
  try:
    with _uncompressed(), quiet():
      ocp.save(path, arrays, custom_metadata=metadata)
  except BaseException as e:
    if jax.process_index() == 0:
      shutil.rmtree(f"{path}.orbax-checkpoint-tmp", ignore_errors=True)
    orbax_writer.explain(e, name)
    raise


class _Quiet(logging.Filter):
  """Drops Orbax's logs of errors that it also raises."""

  count = 0  # Saves in progress.

  def filter(self, record):
    failed = "_SignalingThread" in str(record.msg)
    return not (self.count and failed) or absl_logging.vlog_is_on(1)


_QUIET = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps Orbax from logging pages about an error that it also raises."""
  absl_logging.get_absl_logger().addFilter(_QUIET)  # No-op if present.
  _QUIET.count += 1
  try:
    yield
  finally:
    _QUIET.count -= 1


def save_async(path: str, params: PyTree) -> Any:
  """Starts writing a tree as an Orbax checkpoint.

  Args:
    path: a new directory.
    params: a tree of arrays; may be donated or changed after the call.

  Returns:
    A response; its `result()` waits until the checkpoint is complete.
  """
  _check_savable(path, params)
  with _uncompressed(), quiet():
    return ocp.save_async(path, _arrays(params))


def _uncompressed() -> ocp.Context:
  context = ocp.Context()
  # Float weights hardly compress: this is twice as fast for 7% larger files.
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
  orbax_writer.check(tree.value_specs(leaves, "the tree to save"))


@contextlib.contextmanager
def explained(path: str):
  """Turns Orbax's errors about a damaged checkpoint into a ValueError."""
  try:
    yield
  # Damaged metadata can raise any error.
  except Exception as e:
    reason = (str(e).splitlines() or ["no reason given"])[0]
    raise ValueError(
      f"{path} is not a complete Orbax checkpoint ({type(e).__name__}: "
      f"{reason}). It may be an interrupted save: save it again or leave it "
      "out."
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
    items = _items(path)
    described = _describe(path, items)
    if items:
      _check_leaves(path, epath.Path(path) / items[0], described)
    return described.custom_metadata or {}


def record(path: str) -> dict[str, Any]:
  """Returns the record that soupjax left in a checkpoint, {} if none."""
  return custom_metadata(path).get("soupjax") or {}


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens a checkpoint lazily: reads metadata, but no weights.

  Args:
    path: a checkpoint directory.
    name: name of the ingredient.
    entry: the model's entry in a train state; None follows the rule of
      `params_of_state`.

  Returns:
    The ingredient. A train state is reduced to its weights, such as `params`,
    or `params` and `batch_stats`.

  Raises:
    ValueError: if the checkpoint is damaged or incomplete.
  """
  items = _items(path)
  roots = [epath.Path(path) / item for item in items]
  if byte_ranges.is_remote(path) and items[:1] == ["state"]:
    # `_CHECKPOINT_METADATA` is uploaded last.
    if not (epath.Path(path) / "_CHECKPOINT_METADATA").exists():
      raise ValueError(
        f"{path} is not a complete Orbax checkpoint: it has no "
        "_CHECKPOINT_METADATA. It may be an interrupted save: save it again or "
        "leave it out."
      )
  identities = {}
  with explained(path):
    if roots:
      identities = orbax_arrays.identities(path, roots[0])
      orbax_arrays.check_index(roots[0])
    described = _describe(path, items)
    recorded = _check_leaves(path, roots[0] if roots else None, described)
    state = described.metadata
  params, outer, ignored = params_of_state.of_state(path, state, entry)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  if not roots:
    raise ValueError(
      f"{path} is an Orbax checkpoint of several items, none of which is "
      f"called {' or '.join(_TREES[:-1])}. Give the directory of one item, "
      f"such as {path}/NAME."
    )
  num_bytes = orbax_arrays.num_bytes(path, identities)
  with explained(path):
    opened = orbax_arrays.opener(str(roots[0]), num_bytes)

  def open_array(key):
    with explained(path):
      return opened(key)

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
      array = open_array(keys[leaf])
      specs[leaf] = jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
  for leaf, spec in specs.items():
    byte_ranges.check_claims(path, leaf, spec)
  if not specs:
    raise ValueError(
      f"{path} holds no arrays: it was saved from an empty tree or is damaged."
    )

  def read_box(leaf, box, out):
    array = open_array(keys[leaf])
    with explained(path):
      array = array[box]
      ts.array(out.reshape(slices.shape_of(box))).write(array).result()

  storage = Storage(
    read=box_by_box(read_box),
    order=tuple(specs),
    chunks=_Chunks(open_array, keys),
    checksums={
      leaf: recorded[prefix + leaf]
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
    changed=byte_ranges.changed(identities),
  )


def _items(path: str) -> list[str]:
  """Returns the names in `_TREES` that a checkpoint has."""
  place = epath.Path(path)
  return [item for item in _TREES if (place / item / "_METADATA").exists()]


class _Described(NamedTuple):
  """The parts of Orbax's metadata that are used here."""

  metadata: Any
  custom_metadata: Any


def _describe(path: str, items: Sequence[str]) -> Any:
  """Returns the metadata of the first item, read by Orbax where necessary."""
  place = epath.Path(path)
  outer = place / "_CHECKPOINT_METADATA"
  if items and items[0] and outer.exists():
    specs = orbax_arrays.tree_of_specs(place / items[0])
    if specs is not None:
      custom = orbax_arrays.metadata(outer).get("custom_metadata")
      return _Described(specs, custom)
  if items and items[0]:
    return ocp.metadata(path, checkpointable_name=items[0])
  if items and not (place / "_CHECKPOINT_METADATA").exists():
    if (place.parent / "_CHECKPOINT_METADATA").exists():
      # The path is the directory of one item.
      return ocp.metadata(place.parent, checkpointable_name=place.name)
  return ocp.metadata(path)


def _check_leaves(
  path: str, root: epath.Path | None, described: Any
) -> dict[str, int]:
  """Compares the leaves with the seal of soupjax, if there is one.

  Returns:
    The checksums that soupjax recorded.
  """
  custom = described.custom_metadata or {}
  record, seal = custom.get("soupjax"), custom.get(leaf_digest.KEY)
  # Metadata of other programs may have such an entry.
  if not (isinstance(record, dict) and "crc32" in record) and seal is None:
    record = None
  if root is not None:
    seal = _other_seal(path, root, seal)
  if seal is None and record is None:
    return {}
  leaves, _ = tree.flatten(described.metadata)
  specs = {
    leaf: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for leaf, array in leaves.items()
  }
  return leaf_digest.check(path, specs, seal, record)


def _other_seal(path, root, seal):
  """Compares the copies of the seal in both metadata files, and returns it."""
  inner = orbax_arrays.metadata(root / "_METADATA")
  inner = (inner.get("custom_metadata") or {}).get(leaf_digest.KEY)
  texts = [
    file.read_bytes()
    for file in (root / "_METADATA", epath.Path(path) / "_CHECKPOINT_METADATA")
    if file.exists()
  ]
  mentioned = any(leaf_digest.KEY.encode() in text for text in texts)
  # Older soups have only the outer copy, which covers only the leaves.
  if inner != seal and not (inner is None and len(str(seal)) == 64):
    raise leaf_digest.damaged(path, "its metadata files disagree")
  if mentioned and seal is None:
    raise leaf_digest.damaged(path, "its record is not where it should be")
  return seal


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
