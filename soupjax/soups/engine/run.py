# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: a rule over K ingredients, block by block, into a writer.

Each of a few threads takes the next block, reads its part of every ingredient
into its buffer, runs the rule and passes the result to the writer. There are no
queues: while one thread waits for the disk, another computes. Memory depends
only on block size and number of threads. The bits of a result depend only on
the numbers (see `core.compensated`), not on the blocks.
"""

import collections
from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import json
import threading
import time
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import crc32, nonfinite, slices, tree
from soupjax.soups.core.ingredient import (
  check_unchanged,
  explaining_changes,
  storage_of,
)
from soupjax.soups.engine import blocks, combine, first_pass, groups, threads
from soupjax.soups.engine import plan as planning
from soupjax.soups.rules import rule_inputs

Piece = tuple[str, slices.Slices]


class Writer(Protocol):
  """Destination of the result; called in several threads at once."""

  def write(self, spans: Sequence[slices.Span], row: np.ndarray) -> None:
    """Writes boxes of leaves from a flat, contiguous array that is reused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Bytes, seconds and checksums of one process in a mix.

  Attributes:
    bytes_read: of weights, at their size in memory; for chunked leaves (of
      Orbax, or compressed), all decoded chunks count.
    bytes_written: of weights.
    seconds: duration of `run`, including first passes and compilation.
    checksums: for each source, leaf -> CRC-32, if all processes together read
      the whole leaf.
    verified: for each source, the leaves whose recorded checksum was compared.
  """

  bytes_read: int
  bytes_written: int
  seconds: float
  checksums: tuple[Mapping[str, int], ...]
  verified: tuple[Collection[str], ...]


def host_bytes(plan: planning.Plan, pieces: Sequence[Piece]) -> int:
  """Returns the bytes of this process's buffers, for blocks or first passes."""
  per_thread = blocks.host_bytes(plan, pieces)
  per_thread += blocks.decoding_bytes(plan, pieces)
  return max(plan.threads * per_thread, first_pass.host_bytes(plan))


def run(
  plan: planning.Plan,
  pieces: Sequence[Piece],
  writer: Writer,
  *,
  hash_inputs: bool = False,
  check_finite: bool = True,
  progress: Callable[[int, int], None] | None = None,
  processes: first_pass.Processes = first_pass.ALONE,
) -> Report:
  """Mixes pieces of leaves into a writer.

  Args:
    plan: from `plan.make`.
    pieces: of this process, from `plan.pieces`.
    writer: gets every piece once, in any order.
    hash_inputs: whether to compute the checksum of every leaf of every source.
      If False, only leaves with recorded checksums are checked.
    check_finite: whether to reject a result with NaN or infinity.
    progress: called with the bytes read so far and in total.
    processes: those that mix together, each with its own pieces.

  Returns:
    The report of this process.

  Raises:
    ValueError: naming ingredient and leaf, if integers differ, a recorded
      checksum does not match, or a result is not finite; naming ingredient and
      file, if an input has changed since it was opened; or if there is not
      enough memory.
  """
  start = time.perf_counter()
  with explaining_changes(plan.sources):
    plan, measured_bytes = first_pass.measured(plan, processes)
  work = _Work(plan, writer, hash_inputs, check_finite)
  packed = list(blocks.pack(plan, pieces))
  costs = [work.cost(block) for block in packed]
  total = sum(costs)
  # Compiles first, to free the compiler's memory before buffers are filled.
  counts = collections.Counter(block.group for block in packed)
  for block in {block.group: block for block in packed}.values():
    if counts[block.group] > plan.threads:
      work.compile(block)
  lock = threading.Lock()

  def mix_block(item, buffer):
    block, cost = item
    work.mix(block, buffer)
    with lock:
      work.done += cost
      if progress:
        progress(work.done, total)

  try:
    with explaining_changes(plan.sources):
      threads.for_each(
        list(zip(packed, costs)),
        mix_block,
        count=plan.threads,
        name="soupjax-mix",
        make_buffer=blocks.Buffer,
      )
  except MemoryError as e:
    raise ValueError(
      f"There is not enough memory for this mix, which needs "
      f"{host_bytes(plan, pieces) / 1e6:.1f} MB for its blocks. Lower "
      "block_bytes or threads. Compressed leaves are read whole."
    ) from e
  checksums = work.checksums(processes)
  return Report(
    bytes_read=work.done + measured_bytes,
    bytes_written=work.written,
    seconds=time.perf_counter() - start,
    checksums=checksums,
    verified=work.verified(checksums),
  )


class _Work:
  """The state that the threads of a mix share."""

  def __init__(self, plan, writer, hash_inputs, check_finite):
    self.plan = plan
    self.writer = writer
    self.check_finite = check_finite
    self.storages = [storage_of(source) for source in plan.sources]
    self.summed = [storage.summed for storage in self.storages]
    self.chunks = blocks.stored_chunks(plan)
    self.hash_inputs = hash_inputs
    self.done = 0
    self.written = 0
    self._lock = threading.Lock()
    self._sums: list[dict[str, list[crc32.Part]]] = [{} for _ in plan.sources]

  def cost(self, block: blocks.Block) -> int:
    """Bytes of weights that a block reads."""
    group, total = block.group, 0
    for k in (*group.models, *group.extra):
      specs, chunks = self.plan.sources[k].specs, self.chunks[k]
      if group.whole:
        count = sum(specs[span.leaf].size for span in block.spans)
      elif chunks:
        count = sum(
          slices.touched(specs[leaf].shape, box, chunks.get(leaf))
          for leaf, box, *_ in block.spans
        )
      else:
        count = block.filled
      total += count * specs[block.spans[0].leaf].dtype.itemsize
    return total

  def compile(self, block: blocks.Block) -> None:
    """Runs the rule on zeros, unless its shapes differ by leaf."""
    group, n = block.group, block.capacity
    if group.combine is None or group.whole or group.extra or group.layered:
      return
    zeros = blocks.Buffer(np.zeros)
    stack = zeros.array("stack", (len(group.sources), n), group.stack_dtype)
    base, values = None, dict(group.values)
    if group.base is not None:
      base = zeros.array("base", (n,), group.base_dtype)
    if group.indexed:
      values["index"] = zeros.array("index", (2, n), np.dtype(np.uint32))
    jax.block_until_ready(combine.run(group, stack, base, values, None))

  def mix(self, block: blocks.Block, buffer: blocks.Buffer) -> None:
    """Reads, merges and writes one block."""
    group, target = block.group, block
    if group.whole:
      # The rule needs the whole leaf, even if only parts of it are written.
      leaf = block.spans[0].leaf
      block = blocks.whole_leaf(group, leaf, self.plan.specs[leaf].shape)
    stack = buffer.array(
      "stack", (len(group.sources), block.capacity), group.stack_dtype
    )
    for row, k in enumerate(group.sources):
      self._fill(k, block, stack[row], buffer)
    if group.combine is None:
      self._check_equal(block, stack)
      self._write(block, stack[0, : block.filled])
      return
    base = None
    if group.base is not None:
      base = buffer.array("base", (block.capacity,), group.base_dtype)
      self._fill(group.base, block, base, buffer)
    shape = block.shape
    inputs = (
      stack.reshape(len(stack), *shape),
      None if base is None else base.reshape(shape),
      self._values(block, buffer),
    )
    # Layers have too many shapes to reuse memory.
    results = None if group.whole or group.layered else buffer.results
    # Waits for the result, so that the buffers can be filled again.
    merged = np.asarray(combine.run(group, *inputs, results))
    row = merged.reshape(-1)[: block.filled]
    if self.check_finite and not nonfinite.is_finite(row):
      if group.affine:  # Perhaps only a difference overflows.
        large = groups.of_large(group.combine)
        again = dataclasses.replace(group, combine=large)
        merged = np.asarray(combine.run(again, *inputs, None))
        row = merged.reshape(-1)[: block.filled]
      if not nonfinite.is_finite(row):
        self._explain(block, stack, base)
    if group.whole:
      parts = [merged[span.box].reshape(-1) for span in target.spans]
      row = np.concatenate(parts)
    self._write(target, row)

  def _values(self, block, buffer):
    """Returns the numbers for `combine`, with extra arrays and indices."""
    group, shape = block.group, block.shape
    values = rule_inputs.spread(group.values, block.spans[0].box, len(shape))
    if group.extra:
      values["extra"] = self._extra(block, buffer)
    if group.indexed:
      index = buffer.array("index", (2, block.capacity), np.dtype(np.uint32))
      pieces = [(leaf, box) for leaf, box, *_ in block.spans]
      rule_inputs.write_indices(self.plan.specs, pieces, index)
      values["index"] = index.reshape(2, *shape)
    return values

  def _extra(self, block, buffer):
    """Reads the extra sources of the rule, as a stack."""
    group, leaf, sources = block.group, block.spans[0].leaf, self.plan.sources
    if group.whole:
      # Statistics may have another shape than the leaf.
      shape = sources[group.extra[0]].specs[leaf].shape
      block = blocks.whole_leaf(group, leaf, shape)
    shape = (len(group.extra), block.capacity)
    extra = buffer.array("extra", shape, np.dtype(np.float32))
    for row, k in zip(extra, group.extra):
      self._fill(k, block, row, buffer)
      row = row[: block.filled]
      rule_inputs.check_numbers(self.plan.rule, sources[k], leaf, row)
    return extra.reshape(len(extra), *block.shape)

  def _fill(self, k, block, row, buffer):
    """Reads a block of one source into a row."""
    row = row[: block.filled]  # The rest may hold numbers of an earlier block.
    # The leaves of a group have the same dtype in each source.
    dtype = self.plan.sources[k].specs[block.spans[0].leaf].dtype
    part = row
    if dtype != row.dtype:
      part = buffer.array("cast", row.shape, dtype)
    self.storages[k].read(block.spans, part)
    if self.hash_inputs or self.summed[k]:
      self._sum(k, block, part)
    if dtype != row.dtype:
      np.copyto(row, part, casting="unsafe")

  def _sum(self, k, block, row):
    """Adds a block to the checksums of its leaves."""
    specs, summed = self.plan.sources[k].specs, self.summed[k]
    parts = [
      (leaf, crc32.part_of(specs[leaf].shape, box, row[start:stop]))
      for leaf, box, start, stop, _ in block.spans
      if self.hash_inputs or leaf in summed
    ]
    with self._lock:
      for leaf, part in parts:
        self._sums[k].setdefault(leaf, []).append(part)

  def _check_equal(self, block, stack):
    """Raises a ValueError if a leaf that is copied differs between sources."""
    names = [self.plan.sources[k].name for k in block.group.sources]
    for name, row in zip(names[1:], stack[1:]):
      for leaf, _, start, stop, _ in block.spans:
        a, b = (x[start:stop].view(np.uint8) for x in (stack[0], row))
        if not np.array_equal(a, b):
          raise tree.differing(
            leaf,
            self.plan.sources[0].specs,
            (name, names[0]),
            self.plan.count,
            self.plan.base is not None,
          )

  def _explain(self, block, stack, base):
    """Raises the error for a result that is not finite."""
    group, rows = block.group, [*stack, *([] if base is None else [base])]
    for leaf, _, start, stop, _ in block.spans:
      for k, row in zip(group.models, rows):
        bad = row[start:stop]
        if bad.dtype != np.float64:
          bad = bad.astype(np.float32)
        bad = bad[~np.isfinite(bad)]
        if bad.size:
          raise ValueError(
            f"Ingredient {self.plan.sources[k].name!r} has {bad[0]} in leaf "
            f"{leaf!r}; it would spoil the whole soup. Leave it out: its "
            "fine-tuning diverged. (check_finite=False disables this check.)"
          )
    leaves = sorted({span.leaf for span in block.spans})
    if group.out_dtype == np.float32 and not group.affine:
      raise ValueError(
        f"Models differ by more than the float32 range of 3.4e38 in one of "
        f"{leaves[:5]}, which the rule {self.plan.rule.name!r} cannot merge. "
        "Leave out the model with such weights: it diverged."
      )
    raise ValueError(
      f"The soup overflows {group.out_dtype} (at most "
      f"{float(jnp.finfo(group.out_dtype).max):g}) in one of {leaves[:5]}: "
      + (
        "extrapolate less, or leave out the model with such weights."
        if group.out_dtype in (np.float32, np.float64)
        else "choose a wider dtype=, such as 'float32'."
      )
    )

  def _write(self, block, row):
    self.writer.write(block.spans, row)
    with self._lock:
      self.written += row.nbytes

  def checksums(
    self, processes: first_pass.Processes
  ) -> tuple[dict[str, int], ...]:
    """Returns checksums of leaves that all processes together read whole.

    Raises:
      ValueError: naming the first leaf that differs from its recorded checksum,
        or an input that has changed. All processes raise it.
    """
    checksums: tuple[dict[str, int], ...] = tuple({} for _ in self.plan.sources)
    change = ""
    try:
      check_unchanged(self.plan.sources)
    except ValueError as e:
      change = str(e)
    gathered = processes.gather(json.dumps([change, self._sums]).encode())
    changes, sums_of_processes = zip(*map(json.loads, gathered))
    for change in filter(None, changes):
      raise ValueError(change)
    for k, source in enumerate(self.plan.sources):
      recorded = self.storages[k].checksums
      for leaf, spec in source.specs.items():
        parts = [p for sums in sums_of_processes for p in sums[k].get(leaf, ())]
        value = crc32.joined(parts, spec.size * spec.dtype.itemsize)
        if value is None or not parts:
          continue
        name = f"{source.name!r} ({source.path})"
        crc32.check(name, leaf, value, recorded.get(leaf, value))
        checksums[k][leaf] = value
      for shared in self.storages[k].shared:
        shared.check(f"{source.name!r} ({source.path})", checksums[k])
    return checksums

  def verified(
    self, checksums: Sequence[Mapping[str, int]]
  ) -> tuple[Collection[str], ...]:
    """Returns the leaves of every source whose checksums were compared.

    Args:
      checksums: from `checksums`.
    """
    verified = []
    for storage, values in zip(self.storages, checksums):
      leaves = {*(storage.checksums.keys() & values), *storage.self_checked}
      for shared in storage.shared:
        if shared.sizes.keys() <= values.keys():
          leaves.update(shared.sizes)
      verified.append(leaves)
    return tuple(verified)


class Arrays:
  """A writer into host memory.

  Attributes:
    leaves: leaf name -> array; complete after the mix.
  """

  def __init__(self, plan: planning.Plan):
    self.leaves = {
      leaf: np.empty(spec.shape, spec.dtype)
      for leaf, spec in plan.specs.items()
    }

  def write(self, spans: Sequence[slices.Span], row: np.ndarray) -> None:
    """See `Writer`."""
    for leaf, box, start, stop, _ in spans:
      self.leaves[leaf][box] = row[start:stop].reshape(slices.shape_of(box))
