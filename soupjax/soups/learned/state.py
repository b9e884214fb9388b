# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Initial coefficients and resumable state of a learned soup."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from soupjax.soups.core import arguments


def start(init, base, groups: Sequence[str], count: int) -> np.ndarray:
  """Returns the numbers that the first coefficients are made from.

  Args:
    init: as given to `learned_soup`.
    base: the base, None for a softmax.
    groups: of leaves.
    count: K, the number of ingredients.

  Returns:
    (groups, K) in float64: logits, or with a base the coefficients.

  Raises:
    ValueError: naming the group whose coefficients do not fit.
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
      "Give a sequence, as soup.alphas['model'], to start all groups alike."
    )
  return np.stack(
    [_row(f"init[{group!r}]", init[group], base, count) for group in groups]
  )


def _row(name, value, base, count) -> np.ndarray:
  found = arguments.numbers(value)
  if found is not None and base is not None and found.ndim == 0:
    found = np.full(count, found)
  if found is None or found.shape != (count,):
    raise ValueError(
      f"{name} must be {count} numbers, in the order of the ingredients, or a "
      f"mapping from groups of leaves to that, got {value!r:.80}."
    )
  if not np.isfinite(found).all():
    raise ValueError(f"{name} must be finite, got {value!r:.80}.")
  if base is not None:
    return found
  if (found <= 0).any():
    raise ValueError(
      f"{name} must be positive, got {value!r:.80}: a softmax never reaches 0 "
      "and could not leave it. Leave that ingredient out, or pass a base."
    )
  # Exactly 0 where all are equal.
  return np.log(found / found.max())


class State:
  """What run this is, and how far it got.

  Attributes:
    history: of the steps done.
  """

  def __init__(self, settings, ingredients, base, layout, learn_beta, select):
    """Args: as in `learned_soup`, checked."""
    self.history: list[dict[str, float]] = []
    self.steps = settings.steps
    self.run = {
      "names": [i.name for i in ingredients],
      "base": base.name if base else None,
      "groups": list(layout.groups),
      "optimizer": settings.optimizer,
      "learning_rate": settings.learning_rate,
      "weight_decay": settings.weight_decay,
      "learn_beta": bool(learn_beta),
      "select": {k: np.asarray(v).tolist() for k, v in select.items()} or None,
    }

  def saved(self, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all of it as JSON, with the state of the optimizer."""
    return {
      "run": self.run,
      "history": [dict(entry) for entry in self.history],
      "optimizer": _plain(optimizer),
    }

  def restored(self, resume: Any, count: int) -> Mapping[str, Any] | None:
    """Takes over an earlier run.

    Args:
      resume: from `saved`, or None.
      count: of the optimizer's numbers.

    Returns:
      The state of the optimizer.

    Raises:
      ValueError: if it is damaged, or of another run.
    """
    if resume is None:
      return None
    try:
      run, history = dict(resume["run"]), list(resume["history"])
      optimizer = dict(resume["optimizer"])
    except (KeyError, TypeError, ValueError) as e:
      raise _no_state(e) from e
    for key, value in self.run.items():
      if run.get(key) != value:
        raise ValueError(
          f"resume is of a run with {key} {run.get(key)!r:.80}, not "
          f"{value!r:.80}. Give the same arguments, or start afresh."
        )
    try:
      steps = [int(e["step"]) for e in history]
      if not all(math.isfinite(e["loss"] + e["beta"]) for e in history):
        raise ValueError("history must hold finite numbers")
      done = _check_optimizer(self.run["optimizer"], optimizer, count)
    except (KeyError, TypeError, ValueError) as e:
      raise _no_state(e) from e
    if steps != list(range(done)) or done > self.steps:
      raise ValueError(
        f"resume has {len(steps)} steps of history and {done} of the "
        f"optimizer; this run has steps={self.steps}. Raise steps, or start "
        "afresh."
      )
    self.history[:] = [dict(entry) for entry in history]
    return optimizer


def _no_state(error: Exception) -> ValueError:
  return ValueError(
    f"resume is no state of a learned soup ({type(error).__name__}: {error}). "
    "Give what on_state was called with last, or start afresh."
  )


def _check_optimizer(name, state, count) -> int:
  """Returns the number of steps done.

  Raises:
    KeyError, TypeError, ValueError: if it is damaged.
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


def _plain(value: Any) -> Any:
  """Arrays as lists, which JSON keeps bit for bit."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_plain(v) for v in value]
  return value.tolist() if isinstance(value, np.ndarray) else value
