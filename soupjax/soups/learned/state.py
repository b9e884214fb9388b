# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Initial coefficients and resumable state of a learned soup."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from soupjax.soups.core import arguments


def start(init, base, groups: Sequence[str], count: int) -> np.ndarray:
  """Returns the initial logits or, with a base, the initial coefficients.

  Args:
    init: as in `learned_soup`.
    base: the base; None for a softmax.
    groups: names of the groups of leaves.
    count: K, the number of ingredients.

  Returns:
    (groups, K) numbers in float64.

  Raises:
    ValueError: naming the group whose coefficients are invalid.
  """
  if init is None:
    init = np.ones(count) if base is None else 0.3
  if not isinstance(init, Mapping):
    return np.stack([_row("init", init, base, count)] * len(groups))
  missing, unknown = set(groups) - set(init), set(init) - set(groups)
  if missing or unknown:
    raise ValueError(
      "init must have coefficients for every group of leaves. Missing: "
      f"{sorted(missing)[:10]}, unknown: {sorted(map(str, unknown))[:10]}. "
      "Give a sequence, such as soup.alphas['model'], to start all groups "
      "from the same coefficients."
    )
  return np.stack(
    [_row(f"init[{group!r}]", init[group], base, count) for group in groups]
  )


def _row(name, value, base, count) -> np.ndarray:
  row = arguments.numbers(value)
  if row is not None and base is not None and row.ndim == 0:
    row = np.full(count, row)
  if row is None or row.shape != (count,):
    raise ValueError(
      f"{name} must be {count} numbers, in the order of the ingredients, or a "
      f"mapping from groups of leaves to {count} numbers, got {value!r:.80}."
    )
  if not np.isfinite(row).all():
    raise ValueError(f"{name} must be finite, got {value!r:.80}.")
  if base is not None:
    return row
  if (row <= 0).any():
    raise ValueError(
      f"{name} must be positive, got {value!r:.80}, because a softmax is never "
      "0. Leave that ingredient out, or pass a base."
    )
  # Equal coefficients have logits of exactly 0.
  return np.log(row / row.max())


class State:
  """The settings and the history of a run.

  Attributes:
    history: one entry per finished step.
    steps: the number of steps of the whole run.
    run: the settings that a resumed run must share.
  """

  def __init__(self, steps, optimizer, ingredients, base, layout, select):
    """Takes checked arguments of `learned_soup`."""
    self.history: list[dict[str, float]] = []
    self.steps = steps
    self.run = {
      "names": [i.name for i in ingredients],
      "base": base.name if base else None,
      "groups": list(layout.groups),
      "optimizer": optimizer.name,
      "learning_rate": optimizer.learning_rate,
      "weight_decay": optimizer.weight_decay,
      "learn_beta": bool(optimizer.learn_beta),
      "select": {k: np.asarray(v).tolist() for k, v in select.items()} or None,
    }

  def saved(self, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of the run and its optimizer, for JSON."""
    return {
      "run": self.run,
      "history": [dict(entry) for entry in self.history],
      "optimizer": _jsonable(optimizer),
    }

  def restored(self, resume: Any, count: int) -> Mapping[str, Any] | None:
    """Restores the history of an earlier run.

    Args:
      resume: from `saved`, or None.
      count: how many numbers are optimised.

    Returns:
      The state of the optimizer; None without `resume`.

    Raises:
      ValueError: if `resume` is damaged, or from another run.
    """
    if resume is None:
      return None
    try:
      run, history = dict(resume["run"]), list(resume["history"])
      optimizer = dict(resume["optimizer"])
    except (KeyError, TypeError, ValueError) as e:
      raise _damaged(e) from e
    for key, value in self.run.items():
      if run.get(key) != value:
        raise ValueError(
          f"resume is from a run with {key} {run.get(key)!r:.80}, not "
          f"{value!r:.80}. Give the same arguments, or start without resume."
        )
    try:
      steps = [int(e["step"]) for e in history]
      if not all(math.isfinite(e["loss"] + e["beta"]) for e in history):
        raise ValueError("history must hold finite numbers")
      done = _check_optimizer(self.run["optimizer"], optimizer, count)
    except (KeyError, TypeError, ValueError) as e:
      raise _damaged(e) from e
    if steps != list(range(done)) or done > self.steps:
      raise ValueError(
        f"resume has {len(steps)} steps of history and {done} of the "
        f"optimizer; this run has steps={self.steps}. Raise steps, or start "
        "without resume."
      )
    self.history[:] = [dict(entry) for entry in history]
    return optimizer


def _damaged(error: Exception) -> ValueError:
  return ValueError(
    f"resume is not a state of a learned soup ({type(error).__name__}: "
    f"{error}). Give the last argument of on_state, or start without resume."
  )


def _check_optimizer(name, state, count) -> int:
  """Returns the number of finished steps in the state of an optimizer.

  Raises:
    KeyError, TypeError, ValueError: if the state is damaged.
  """
  if name == "adamw":
    done, rows = int(state["step"]), [state]
    keys = ("x", "mu", "nu")
  else:
    rows = list(state["evaluations"])
    done, keys = len(rows), ("x", "grad")
    if not all(math.isfinite(row["loss"]) for row in rows):
      raise ValueError("a loss is not finite")
  for row in rows:
    for key in keys:
      values = np.asarray(row[key], np.float64)
      if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{key} must be {count} finite numbers")
  return done


def _jsonable(value: Any) -> Any:
  """Turns arrays into lists, which JSON preserves bit for bit."""
  if isinstance(value, Mapping):
    return {k: _jsonable(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_jsonable(v) for v in value]
  return value.tolist() if isinstance(value, np.ndarray) else value
