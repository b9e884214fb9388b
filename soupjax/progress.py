# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal: stage, steps, rate, time left."""

import sys
import time


class Progress:
  """Counts steps of one stage and prints now and then.

  On a terminal one line is overwritten; elsewhere (a log) a line is printed
  every ten seconds and at the end.
  """

  def __init__(
    self, stage: str, total: int, *, unit: str = "steps", start: int = 0
  ):
    """Starts the clock.

    Args:
      stage: what to call it.
      total: steps in all.
      unit: what one step is called, in the plural.
      start: steps done before, by a run that was cut short.
    """
    self.stage, self.total, self.unit = stage, total, unit
    self.done, self.start, self.images = start, start, 0
    self.began = self.printed = time.monotonic()
    self.compiled = None  # Time of the first call's end; it compiles.
    self.untimed = start  # Steps done by then.
    self.terminal = sys.stdout.isatty()

  def step(self, count: int = 1, images: int = 0, note: str = "") -> None:
    """Counts steps, and the images that they took."""
    now = time.monotonic()
    self.done += count
    if self.compiled is None:
      self.compiled, self.untimed = now, self.done
    else:
      self.images += images
    wait = 0.2 if self.terminal else 10.0
    if self.done >= self.total or now - self.printed >= wait:
      self.printed = now
      self._print(now - self.began, note)

  def _print(self, seconds: float, note: str) -> None:
    parts = [f"{self.stage:<12} {self.done}/{self.total} {self.unit}"]
    timed = self.done - self.untimed
    steady = max(time.monotonic() - self.compiled, 1e-9)
    if self.images:
      parts.append(f"{self.images / steady:,.0f} images/s")
    if self.done < self.total and timed:
      pace = steady / timed
      parts.append(f"{pace * (self.total - self.done):.0f} s left")
    elif self.done >= self.total:
      parts.append(f"{seconds:.1f} s")
    if note:
      parts.append(note)
    line = ", ".join(parts)
    if self.terminal:
      end = "\n" if self.done >= self.total else ""
      print(f"\r\033[K{line}", end=end, flush=True)
    else:
      print(line, flush=True)
