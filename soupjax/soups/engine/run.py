# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: a rule over K ingredients, block by block, into a writer.

Each of a few threads takes the next block, reads its part of every ingredient
into one buffer that it uses again and again, runs the rule on it and hands the
result to the writer. There are no queues: while one thread waits for the disk,
another computes. What is held depends on the size of a block and the number of
threads alone. A rule is elementwise and its bits depend on the numbers alone
(see `exact`), so that the result is the same however the work is cut up.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import threading
import time
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import crc32, slices
from soupjax.soups.core.ingredient import storage_of
from soupjax.soups.engine import blocks, first_pass
from soupjax.soups.engine import plan as planning
from soupjax.soups.rules import rule_inputs

Piece = tuple[str, slices.Slices]


class Writer(Protocol):
  """What takes the result. Called from several threads at once."""

  def write(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """Takes part of a leaf: a flat array, row-major, not to be kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What one process did in a mix.

  Attributes:
    bytes_read: of weights, as they are in memory; of what is stored in chunks
      (Orbax, or leaves that are compressed) all chunks that were decoded.
    bytes_written: of weights.
    seconds: from the first block to the last.
    checksums: source -> leaf -> CRC-32, where it was computed and complete,
      over all processes.
  """

  bytes_read: int
  bytes_written: int
  seconds: float
  checksums: tuple[Mapping[str, int], ...]


def host_bytes(plan: planning.Plan, pieces: Sequence[Piece]) -> int:
  """Bytes of all block buffers of this process, and of what is decoded."""
  widest = [
    block.capacity * block.group.bytes_an_element
    for block in blocks.pack(plan, pieces)
  ]
  decoding = blocks.decoding_bytes(plan, pieces)
  return max(
    plan.threads * (max(widest, default=0) + decoding),
    first_pass.host_bytes(plan),
  )


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
    pieces: from `plan.pieces`; in several processes each has its own.
    writer: gets every piece once, in no particular order.
    hash_inputs: computes the checksum of every leaf of every source. Without
      it, only recorded ones are computed, and compared.
    check_finite: refuses a result with NaN or infinity.
    progress: called with the bytes read so far and in all.
    processes: that mix together, each its own pieces.

  Returns:
    What was done.

  Raises:
    ValueError: naming ingredient and leaf, if integers differ, a recorded
      checksum does not fit, or a result is not finite.
  """
  start = time.perf_counter()
  plan, measured_bytes = first_pass.measured(plan, processes)
  work = _Work(plan, writer, hash_inputs, check_finite)
  packed = list(blocks.pack(plan, pieces))
  total = sum(work.cost(block) for block in packed)
  # What the compiler holds is free again before the buffers are filled.
  count = collections.Counter(id(block.group) for block in packed)
  for block in {id(block.group): block for block in packed}.values():
    if count[id(block.group)] > plan.threads:
      work.compile(block)
  todo, lock, failures = iter(packed), threading.Lock(), []

  def loop():
    buffer = blocks.Buffer()
    try:
      while not failures:
        with lock:
          block = next(todo, None)
        if block is None:
          return
        work.do(block, buffer)
        with lock:
          work.done += work.cost(block)
          if progress:
            progress(work.done, total)
    except BaseException as e:  # noqa: B036 - raised again below.
      failures.append(e)

  threads = [
    threading.Thread(target=loop, name=f"soupjax-mix-{i}", daemon=True)
    for i in range(min(plan.threads, len(packed)))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  if failures:
    raise failures[0]
  return Report(
    bytes_read=work.done + measured_bytes,
    bytes_written=work.written,
    seconds=time.perf_counter() - start,
    checksums=work.checksums(processes),
  )


@functools.partial(
  jax.jit,
  static_argnames=("combine", "dtype"),
  # The result of the block before: its memory is used again.
  donate_argnames="old",
  keep_unused=True,
)
def _combine(old, stack, base, values, *, combine, dtype):
  # One output alone. A second one, such as whether all is finite, doubles what
  # the compiler takes in time and memory, and slows the sums by a fifth.
  del old
  return combine(stack, base, values).astype(dtype)


class _Work:
  """What the threads share."""

  def __init__(self, plan, writer, hash_inputs, check_finite):
    self.plan = plan
    self.writer = writer
    self.check_finite = check_finite
    self.storages = [storage_of(source) for source in plan.sources]
    self.chunks = blocks.stored_chunks(plan)
    self.hash_inputs = hash_inputs
    self.cpu = jax.local_devices(backend="cpu")[0]
    self.done = 0
    self.written = 0
    self._lock = threading.Lock()
    self._sums: list[dict[str, list[crc32.Part]]] = [{} for _ in plan.sources]

  def cost(self, block: blocks.Block) -> int:
    """Bytes of weights that a block reads."""
    group = block.group
    base = [] if group.base is None else [group.base]
    total = 0
    for leaf, box in block.pieces:
      n = slices.size(box)
      for k in (*group.sources, *base, *group.extra):
        spec, chunk = self.plan.sources[k].specs[leaf], self.chunks[k].get(leaf)
        if group.whole:
          count = spec.size
        else:
          count = slices.touched(spec.shape, box, chunk) if chunk else n
        total += count * spec.dtype.itemsize
    return total

  def compile(self, block: blocks.Block) -> None:
    """Runs the rule on zeros, unless the shapes are those of a leaf."""
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
    jax.block_until_ready(self._merge(group, stack, base, values, None))

  def do(self, block: blocks.Block, buffer: blocks.Buffer) -> None:
    """Reads, merges and writes one block."""
    group, wanted = block.group, None
    if group.whole:
      # The rule sees the leaf as it is, whatever part of it is wanted.
      leaf, wanted = block.pieces[0][0], block
      whole = (leaf, slices.whole(self.plan.specs[leaf].shape))
      block = blocks.Block(group, (whole,), slices.size(whole[1]))
    stack = buffer.array(
      "stack", (len(group.sources), block.capacity), group.stack_dtype
    )
    for row, k in enumerate(group.sources):
      self._fill(k, block, stack[row], buffer)
    if group.combine is None:
      self._check_equal(block, stack)
      self._write(block, stack[0])
      return
    base = None
    if group.base is not None:
      base = buffer.array("base", (block.capacity,), group.base_dtype)
      self._fill(group.base, block, base, buffer)
    shape = block.shape
    result = self._merge(
      group,
      stack.reshape(len(stack), *shape),
      None if base is None else base.reshape(shape),
      self._values(block, buffer),
      # Layers come in shapes of their own: too many to keep memory for.
      None if group.whole or group.layered else buffer.results,
    )
    # Waits for the result, and with it until the buffers are free again.
    merged = np.asarray(result)
    if wanted is None:
      merged = merged.reshape(-1)
    if self.check_finite and not np.isfinite(merged).all():
      self._explain(block, stack, base)
    if wanted is not None:
      parts = [merged[box].reshape(-1) for _, box in wanted.pieces]
      block, merged = wanted, np.concatenate(parts)
    self._write(block, merged)

  def _merge(self, group, stack, base, values, results):
    """Runs the rule; the memory of results is used again if there are any."""
    shape, dtype = stack.shape[1:], group.out_dtype
    with jax.default_device(self.cpu):
      old = results.pop((shape, dtype), None) if results else None
      if old is None:
        old = jnp.empty(shape, dtype)
      result = _combine(
        old, stack, base, values, combine=group.combine, dtype=dtype
      )
    if results is not None:
      results[shape, dtype] = result
    return result

  def _values(self, block, buffer):
    """The numbers for `combine`, with what is to be read for them."""
    group, shape = block.group, block.shape
    leaf, box = block.pieces[0]
    values = rule_inputs.spread(group.values, box, len(shape))
    if group.extra:
      extra = self._extra(leaf, block, buffer)
      values["extra"] = extra if group.whole else extra.reshape(-1, *shape)
    if group.indexed:
      index = buffer.array("index", (2, block.capacity), np.dtype(np.uint32))
      rule_inputs.write_indices(self.plan.specs, block.pieces, index)
      values["index"] = index.reshape(2, *shape)
    return values

  def _extra(self, leaf, block, buffer):
    group, float32 = block.group, np.dtype(np.float32)
    if not group.whole:
      shape = (len(group.extra), block.capacity)
      extra = buffer.array("extra", shape, float32)
      for row, k in zip(extra, group.extra):
        self._fill(k, block, row, buffer)
        rule_inputs.check_numbers(
          self.plan.rule, self.plan.sources[k], leaf, row
        )
      return extra
    shape = self.plan.sources[group.extra[0]].specs[leaf].shape
    whole = (leaf, slices.whole(shape))
    block = blocks.Block(group, (whole,), slices.size(whole[1]))
    extra = buffer.array("extra", (len(group.extra), *shape), float32)
    for row, k in zip(extra, group.extra):
      self._fill(k, block, row.reshape(-1), buffer)
      rule_inputs.check_numbers(self.plan.rule, self.plan.sources[k], leaf, row)
    return extra

  def _fill(self, k, block, row, buffer):
    """Reads a block of one source into a row."""
    at, source, storage = 0, self.plan.sources[k], self.storages[k]
    for leaf, box in block.pieces:
      n, dtype = slices.size(box), source.specs[leaf].dtype
      place = row[at : at + n]
      if dtype != row.dtype:
        place = buffer.array("cast", (n,), dtype)
      storage.read_box(leaf, box, place)
      if self.hash_inputs or leaf in storage.checksums:
        self._sum(k, leaf, box, place)
      if dtype != row.dtype:
        row[at : at + n] = place.astype(row.dtype)
      at += n
    # What an earlier block left there could be NaN.
    row[at:] = 0

  def _sum(self, k, leaf, box, array):
    runs = list(
      slices.contiguous_runs(self.plan.sources[k].specs[leaf].shape, box)
    )
    bounds = [(axis.start, axis.stop) for axis in box]
    start, end = (n * array.dtype.itemsize for n in (runs[0][0], sum(runs[-1])))
    part = bounds, start, end, array.nbytes, crc32.of_runs(array, runs)
    with self._lock:
      self._sums[k].setdefault(leaf, []).append(part)

  def _check_equal(self, block, stack):
    for row, k in enumerate(block.group.sources[1:], start=1):
      at = 0
      for leaf, box in block.pieces:
        n = slices.size(box)
        mine, first = stack[row, at : at + n], stack[0, at : at + n]
        at += n
        if not np.array_equal(mine.view(np.uint8), first.view(np.uint8)):
          raise ValueError(
            f"Leaf {leaf!r} has dtype {mine.dtype}, which has no average, and "
            f"{self.plan.sources[k].name!r} and "
            f"{self.plan.sources[block.group.sources[0]].name!r} disagree on "
            "it. Leave it out with select={regex: 'skip'}, or keep that of a "
            "base."
          )

  def _explain(self, block, stack, base):
    """Says where a result that is not finite comes from."""
    group, at = block.group, 0
    rows = [(k, stack[row]) for row, k in enumerate(group.sources)]
    rows += [] if base is None else [(group.base, base)]
    for leaf, box in block.pieces:
      n = slices.size(box)
      for k, row in rows:
        bad = row[at : at + n]
        bad = bad[~np.isfinite(bad.astype(np.float32))]
        if bad.size:
          raise ValueError(
            f"Ingredient {self.plan.sources[k].name!r} has {bad[0]} in leaf "
            f"{leaf!r}; it would spoil the whole soup. Leave it out: its "
            "fine-tuning diverged. (check_finite=False lets it pass.)"
          )
      at += n
    leaves = sorted({leaf for leaf, _ in block.pieces})
    if group.out_dtype == np.float32:
      raise ValueError(
        f"In one of {leaves[:5]} models differ by more than float32 holds, "
        "3.4e38. Leave out the one with such weights: it diverged."
      )
    raise ValueError(
      f"The soup overflows {group.out_dtype} (at most "
      f"{float(jnp.finfo(group.out_dtype).max):g}) in one of {leaves[:5]}: "
      "choose a wider dtype=, such as 'float32'."
    )

  def _write(self, block, row):
    at = 0
    for leaf, box in block.pieces:
      n = slices.size(box)
      self.writer.write(leaf, box, row[at : at + n])
      at += n
    with self._lock:
      self.written += at * row.dtype.itemsize

  def checksums(
    self, processes: first_pass.Processes
  ) -> tuple[dict[str, int], ...]:
    """Checksums of leaves that were seen whole, compared with those recorded.

    Raises:
      ValueError: naming the leaf that differs.
    """
    found: tuple[dict[str, int], ...] = tuple({} for _ in self.plan.sources)
    everywhere = [
      json.loads(data)
      for data in processes.gather(json.dumps(self._sums).encode())
    ]
    for k, source in enumerate(self.plan.sources):
      for leaf, spec in source.specs.items():
        parts = [part for one in everywhere for part in one[k].get(leaf, ())]
        size = slices.size(slices.whole(spec.shape)) * spec.dtype.itemsize
        value = crc32.joined(parts, size)
        if value is None or not parts:
          continue
        expected = self.storages[k].checksums.get(leaf, value)
        if value != expected:
          raise ValueError(
            f"Leaf {leaf!r} of {source.name!r} ({source.path}) is damaged: its "
            f"checksum is {value:08x}, and {expected:08x} was recorded when it "
            "was written. Copy it again from its source."
          )
        found[k][leaf] = value
    return found


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

  def write(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """See `Writer`."""
    place = self.leaves[leaf][box]
    if place.ndim:
      np.copyto(place, array.reshape(place.shape))
    else:
      self.leaves[leaf][()] = array[0]
