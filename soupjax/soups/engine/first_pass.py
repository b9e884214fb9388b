# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""First passes over the weights, for rules that need statistics of them.

A leaf is cut into units whose size depends only on the number of ingredients,
and the results of the units are added in their order. The sums do not depend on
blocks, threads, mesh or processes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import io
import json
import threading
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import storage_of
from soupjax.soups.engine import blocks, threads
from soupjax.soups.engine import plan as planning
from soupjax.soups.rules import rule_inputs

# Bytes per thread over all ingredients, and the least number of elements, which
# keeps a unit larger than its histogram. With more than 128 ingredients, units
# have fewer elements, so that their bytes stay bounded.
_UNIT_BYTES = 8 << 20
_UNIT_ELEMENTS = 1 << 17
_MOST_BYTES = 4 * 129 * _UNIT_ELEMENTS


@dataclasses.dataclass(frozen=True)
class Processes:
  """The processes that mix together; one by default.

  Attributes:
    index: of this process.
    count: number of processes.
    gather: takes data of this process, and returns those of all processes, in
      their order. All processes must call it the same number of times.
  """

  index: int = 0
  count: int = 1
  gather: Callable[[bytes], list[bytes]] = lambda data: [data]


ALONE = Processes()


class LeafReader:
  """Reads the leaves that a rule merges, in as many passes as it needs.

  Attributes:
    specs: leaf -> shape and dtype, in alphabetical order.
    all_specs: the same for all leaves of the models, merged or not.
    count: the number of ingredients.
    bytes_read: of weights, so far, by this process.
  """

  def __init__(self, plan: planning.Plan, processes: Processes = ALONE):
    self._plan = plan
    self._processes = processes
    self._chunks = blocks.stored_chunks(plan)
    self._storages = [storage_of(source) for source in plan.sources]
    self.specs: Mapping[str, jax.ShapeDtypeStruct] = {
      leaf: plan.sources[0].specs[leaf]
      for leaf in sorted(plan.groups)
      if plan.groups[leaf].by_rule
    }
    models = plan.count + (plan.base is not None)
    self.all_specs = rule_inputs.all_specs(plan.sources[:models])
    self.count = plan.count
    self.bytes_read = 0
    self._lock = threading.Lock()

  def host_bytes(self) -> int:
    """Returns the host memory for the units of all threads, in bytes."""
    pieces = [
      (leaf, box) for leaf in self.specs for box in self._cut(leaf, self.count)
    ]
    biggest = max((slices.size(box) for _, box in pieces), default=0)
    # All ingredients and the base, and a few temporary rows of a reduction.
    rows = self.count + 1 + 8
    decoding = blocks.decoding_bytes(self._plan, pieces)
    return self._plan.threads * (biggest * rows * 4 + decoding)

  def _cut(self, leaf: str, count: int) -> list[slices.Slices]:
    """Cuts a leaf into units for `count` models; chunks may enlarge them."""
    shape, chunk = self.specs[leaf].shape, self._plan.chunks.get(leaf)
    unit = max(_UNIT_ELEMENTS, _UNIT_BYTES // (4 * (count + 1)))
    unit = max(1, min(unit, _MOST_BYTES // (4 * (count + 1))))
    return slices.split(slices.whole(shape), unit, chunk)

  def total(
    self,
    reduce: Callable[..., Any],
    leaves: Iterable[str],
    models: Sequence[int] | None = None,
  ) -> Any:
    """Sums the results of `reduce` over some leaves; see `each`.

    Args:
      reduce: as in `each`.
      leaves: their names.
      models: positions of the ingredients that are read; None is all.

    Returns:
      The sum; None if the leaves have no elements.
    """
    keys = [(None, leaf) for leaf in leaves]
    return self._fold(reduce, keys, models).get(None)

  def each(self, reduce: Callable[..., Any]) -> dict[str, Any]:
    """Sums the results of `reduce` for every leaf separately.

    Args:
      reduce: `reduce(stack, base)` returns an array to add; `stack` is (K, n)
        and `base` (n,) or None, both float32. It may overwrite them and must
        not keep them. Called in several threads.

    Returns:
      Leaf -> sum; leaves without elements are missing.
    """
    return self._fold(reduce, [(leaf, leaf) for leaf in self.specs])

  def _fold(self, reduce, leaves, models=None):
    models = range(self.count) if models is None else models
    units = [
      (key, leaf, box)
      for key, leaf in leaves
      if self.specs[leaf].size
      for box in self._cut(leaf, len(models))
    ]
    sizes = [slices.size(box) for _, _, box in units]
    units = planning.share(
      units, sizes, self._processes.index, self._processes.count
    )
    sums, parts = _Sums(self._processes), {}
    lock, position = threading.Lock(), 0

    def reduce_unit(unit, buffers):
      nonlocal position
      i, (_, leaf, box) = unit
      part = reduce(*self._read(leaf, box, models, buffers))
      with lock:
        parts[i] = part
        while position in parts:
          sums.add(units[position][0], parts.pop(position))
          position += 1

    threads.for_each(
      list(enumerate(units)),
      reduce_unit,
      count=self._plan.threads,
      name="soupjax-measure",
      make_buffer=dict,
    )
    return sums.totals()

  def _read(self, leaf, box, models, buffers):
    plan, n = self._plan, slices.size(box)
    used = [*models, *([plan.base] if plan.rule.needs_base else [])]
    if "rows" not in buffers or buffers["rows"].shape[1] < n:
      buffers["rows"] = np.empty((len(models) + 1, n), np.float32)
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
      count = slices.touched(self.specs[leaf].shape, box, chunk)
      with self._lock:
        self.bytes_read += count * dtype.itemsize
    return rows[: len(models)], rows[-1] if plan.rule.needs_base else None


class _Sums:
  """Sums of the results of units, added in their order over all processes."""

  def __init__(self, processes):
    self._processes = processes
    self._parts: list[tuple[str | None, Any]] = []

  def add(self, key, part):
    # Floats of several processes are added after gathering, in the same order
    # as by one process. The order of integers does not matter.
    add_now = self._processes.count == 1 or np.asarray(part).dtype.kind in "iub"
    if add_now and self._parts and self._parts[-1][0] == key:
      self._parts[-1] = (key, self._parts[-1][1] + part)
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
    parts = []
    for data in self._processes.gather(stream.getvalue()):
      with np.load(io.BytesIO(data)) as arrays:
        keys = json.loads(arrays["arr_0"].tobytes())
        parts += [(k, arrays[f"arr_{i}"]) for i, k in enumerate(keys, start=1)]
    return parts


def measured(
  plan: planning.Plan, processes: Processes = ALONE
) -> tuple[planning.Plan, int]:
  """Runs the first passes of a rule.

  Args:
    plan: of the mix.
    processes: those that share the passes.

  Returns:
    The plan with the measured values, and the bytes of weights that this
    process read.
  """
  if plan.rule.measure is None:
    return plan, 0
  reader = LeafReader(plan, processes)
  values = plan.rule.measure(reader) if reader.specs else {}
  groups = dict(plan.groups)
  for leaf in groups.keys() & values.keys():
    merged = {**groups[leaf].values, **values[leaf]}
    groups[leaf] = dataclasses.replace(groups[leaf], values=merged)
  return dataclasses.replace(plan, groups=groups), reader.bytes_read


def host_bytes(plan: planning.Plan) -> int:
  """Returns the host memory of the first passes, in bytes."""
  return 0 if plan.rule.measure is None else LeafReader(plan).host_bytes()
