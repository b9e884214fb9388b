# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""First passes over the weights, for rules that need statistics of them.

A leaf is cut into units whose size depends on the number of ingredients alone,
and what the units give is added in their order, whichever thread was faster:
the result does not depend on blocks, threads or mesh.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import threading
from typing import Any

import jax
import numpy as np

from soupjax.soups import boxes
from soupjax.soups import plan as planning
from soupjax.soups.ingredient import storage_of

# What a thread holds of all ingredients together; and elements, at least, for
# what is reduced to a histogram must be larger than that.
_UNIT_BYTES = 8 << 20
_UNIT_ELEMENTS = 1 << 17


class Sweep:
  """The leaves that a rule merges, to be read as often as it asks.

  Attributes:
    specs: leaf -> shape and dtype, in alphabetical order.
    count: the number of ingredients.
    bytes_read: of weights, so far.
  """

  def __init__(self, plan: planning.Plan):
    self._plan = plan
    self._storages = [storage_of(source) for source in plan.sources]
    found = [leaf for leaf, group in plan.groups.items() if group.by_rule]
    self.specs: Mapping[str, jax.ShapeDtypeStruct] = {
      leaf: plan.sources[0].specs[leaf] for leaf in sorted(found)
    }
    self.count = plan.count
    self.bytes_read = 0
    self._lock = threading.Lock()

  @property
  def unit(self) -> int:
    """Elements of a unit, unless a chunk has more."""
    return max(_UNIT_ELEMENTS, _UNIT_BYTES // (4 * (self.count + 1)))

  def host_bytes(self) -> int:
    """Memory for the units of all threads."""
    biggest = max((s.size for s in self.specs.values()), default=0)
    # All ingredients, and one more a few times while it is reduced.
    rows = self.count + 1 + 8
    return self._plan.threads * min(biggest, self.unit) * rows * 4

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
      for box in boxes.split(
        boxes.whole(self.specs[leaf].shape),
        self.unit,
        self._plan.chunks.get(leaf),
      )
    ]
    todo, totals = enumerate(units), {}
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
              key, part = units[at][0], ready.pop(at)
              totals[key] = totals[key] + part if key in totals else part
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
    return totals

  def _read(self, leaf, box, buffers):
    plan, n = self._plan, boxes.size(box)
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
      with self._lock:
        self.bytes_read += n * dtype.itemsize
    return rows[: self.count], rows[-1] if plan.rule.needs_base else None


def measured(plan: planning.Plan) -> tuple[planning.Plan, int]:
  """Runs the first passes of a rule.

  Args:
    plan: of the mix.

  Returns:
    The plan with what they found, and the bytes of weights they read.
  """
  if plan.rule.measure is None:
    return plan, 0
  sweep = Sweep(plan)
  found = plan.rule.measure(sweep) if sweep.specs else {}
  groups = {
    leaf: dataclasses.replace(group, values={**group.values, **found[leaf]})
    if leaf in found
    else group
    for leaf, group in plan.groups.items()
  }
  return dataclasses.replace(plan, groups=groups), sweep.bytes_read


def host_bytes(plan: planning.Plan) -> int:
  """Host memory that the first passes need."""
  return 0 if plan.rule.measure is None else Sweep(plan).host_bytes()
