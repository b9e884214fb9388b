# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""First passes over the weights, for rules that need statistics of them.

A leaf is cut into units whose size depends on the number of ingredients alone,
and what the units give is added in their order, whichever thread was faster and
whichever process read them: the result does not depend on blocks, threads, mesh
or processes.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import io
import json
import threading
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import storage_of
from soupjax.soups.engine import blocks
from soupjax.soups.engine import plan as planning
from soupjax.soups.rules import rule_inputs

# What a thread holds of all ingredients together; and elements, at least, for
# what is reduced to a histogram must be larger than that.
_UNIT_BYTES = 8 << 20
_UNIT_ELEMENTS = 1 << 17


@dataclasses.dataclass(frozen=True)
class Processes:
  """Several processes that mix together; by default there is one.

  Attributes:
    index: of this process.
    count: of all.
    gather: gives what every process passed, in their order; all of them call it
      equally often.
  """

  index: int = 0
  count: int = 1
  gather: Callable[[bytes], list[bytes]] = lambda data: [data]


ALONE = Processes()


class LeafReader:
  """The leaves that a rule merges, to be read as often as it asks.

  Attributes:
    specs: leaf -> shape and dtype, in alphabetical order.
    every: the same of all leaves of the models, also those it does not merge.
    count: the number of ingredients.
    bytes_read: of weights, so far, by this process.
  """

  def __init__(self, plan: planning.Plan, processes: Processes = ALONE):
    self._plan = plan
    self._processes = processes
    self._chunks = blocks.stored_chunks(plan)
    self._storages = [storage_of(source) for source in plan.sources]
    found = [leaf for leaf, group in plan.groups.items() if group.by_rule]
    self.specs: Mapping[str, jax.ShapeDtypeStruct] = {
      leaf: plan.sources[0].specs[leaf] for leaf in sorted(found)
    }
    models = plan.count + (plan.base is not None)
    self.every = rule_inputs.all_specs(plan.sources[:models])
    self.count = plan.count
    self.bytes_read = 0
    self._lock = threading.Lock()

  @property
  def unit(self) -> int:
    """Elements of a unit, unless a chunk has more."""
    return max(_UNIT_ELEMENTS, _UNIT_BYTES // (4 * (self.count + 1)))

  def host_bytes(self) -> int:
    """Memory for the units of all threads."""
    pieces = [(leaf, box) for leaf in self.specs for box in self._cut(leaf)]
    biggest = max((slices.size(box) for _, box in pieces), default=0)
    # All ingredients, and one more a few times while it is reduced.
    rows = self.count + 1 + 8
    decoding = blocks.decoding_bytes(self._plan, pieces)
    return self._plan.threads * (biggest * rows * 4 + decoding)

  def _cut(self, leaf: str) -> list[slices.Slices]:
    """The units of a leaf."""
    shape, chunk = self.specs[leaf].shape, self._plan.chunks.get(leaf)
    return slices.split(slices.whole(shape), self.unit, chunk)

  def total(self, reduce: Callable[..., Any], leaves: Iterable[str]) -> Any:
    """Sums what `reduce` gives over some leaves; see `each`."""
    return self._fold(reduce, [(None, leaf) for leaf in leaves]).get(None)

  def each(self, reduce: Callable[..., Any]) -> dict[str, Any]:
    """Sums what `reduce` gives over every leaf by itself.

    Args:
      reduce: `reduce(stack, base)` returns an array, to be added up; `stack` is
        (K, n) and `base` (n,), or None, both float32. They may be overwritten
        and must not be kept. Called in several threads.

    Returns:
      Leaf -> sum; leaves without elements are not in it.
    """
    return self._fold(reduce, [(leaf, leaf) for leaf in self.specs])

  def _fold(self, reduce, leaves):
    units = [
      (key, leaf, box)
      for key, leaf in leaves
      if self.specs[leaf].size
      for box in self._cut(leaf)
    ]
    sizes = [slices.size(box) for _, _, box in units]
    units = planning.share(
      units, sizes, self._processes.index, self._processes.count
    )
    todo, sums = enumerate(units), _Sums(self._processes)
    ready: dict[int, Any] = {}
    lock, failures, at = threading.Lock(), [], 0

    def loop():
      nonlocal at
      buffers: dict[str, np.ndarray] = {}
      try:
        while not failures:
          with lock:
            i, (key, leaf, box) = next(todo, (None, (None, None, None)))
          if i is None:
            return
          part = reduce(*self._read(leaf, box, buffers))
          with lock:
            ready[i] = part
            while at in ready:
              sums.add(units[at][0], ready.pop(at))
              at += 1
      except BaseException as e:  # noqa: B036 - raised again below.
        failures.append(e)

    threads = [
      threading.Thread(target=loop, name=f"soupjax-measure-{i}", daemon=True)
      for i in range(min(self._plan.threads, len(units)))
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    if failures:
      raise failures[0]
    return sums.totals()

  def _read(self, leaf, box, buffers):
    plan, n = self._plan, slices.size(box)
    used = [*range(self.count), *([plan.base] if plan.rule.needs_base else [])]
    if "rows" not in buffers or buffers["rows"].shape[1] < n:
      buffers["rows"] = np.empty((self.count + 1, n), np.float32)
    rows = buffers["rows"][: len(used), :n]
    for row, k in zip(rows, used):
      dtype = plan.sources[k].specs[leaf].dtype
      if dtype == np.float32:
        self._storages[k].read_box(leaf, box, row)
      else:
        part = np.empty(n, dtype)
        self._storages[k].read_box(leaf, box, part)
        row[:] = part.astype(np.float32)
      chunk = self._chunks[k].get(leaf)
      shape = self.specs[leaf].shape
      count = slices.touched(shape, box, chunk) if chunk else n
      with self._lock:
        self.bytes_read += count * dtype.itemsize
    return rows[: self.count], rows[-1] if plan.rule.needs_base else None


class _Sums:
  """What units give, added up in their order over all processes."""

  def __init__(self, processes):
    self._processes = processes
    self._parts: list[tuple[str | None, Any]] = []

  def add(self, key, part):
    last = self._parts[-1] if self._parts else (None, None)
    # Floats of several processes are added when all are there: the order of
    # their sum is that of one process. The order of integers does not matter.
    may = self._processes.count == 1 or np.asarray(part).dtype.kind in "iub"
    if self._parts and last[0] == key and may:
      self._parts[-1] = (key, last[1] + part)
    else:
      self._parts.append((key, part))

  def totals(self) -> dict[str | None, Any]:
    totals: dict[str | None, Any] = {}
    for key, part in self._everywhere():
      totals[key] = totals[key] + part if key in totals else part
    return totals

  def _everywhere(self):
    if self._processes.count == 1:
      return self._parts
    stream = io.BytesIO()
    keys = json.dumps([key for key, _ in self._parts]).encode()
    np.savez(
      stream, np.frombuffer(keys, np.uint8), *(p for _, p in self._parts)
    )
    found = []
    for data in self._processes.gather(stream.getvalue()):
      with np.load(io.BytesIO(data)) as arrays:
        keys = json.loads(arrays["arr_0"].tobytes())
        found += [(k, arrays[f"arr_{i}"]) for i, k in enumerate(keys, start=1)]
    return found


def measured(
  plan: planning.Plan, processes: Processes = ALONE
) -> tuple[planning.Plan, int]:
  """Runs the first passes of a rule.

  Args:
    plan: of the mix.
    processes: that each take a share of the passes.

  Returns:
    The plan with what they found, and the bytes of weights read here.
  """
  if plan.rule.measure is None:
    return plan, 0
  reader = LeafReader(plan, processes)
  found = plan.rule.measure(reader) if reader.specs else {}
  groups = {
    leaf: dataclasses.replace(group, values={**group.values, **found[leaf]})
    if leaf in found
    else group
    for leaf, group in plan.groups.items()
  }
  return dataclasses.replace(plan, groups=groups), reader.bytes_read


def host_bytes(plan: planning.Plan) -> int:
  """Host memory that the first passes need."""
  return 0 if plan.rule.measure is None else LeafReader(plan).host_bytes()
