# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal: stage, steps, rate, time left."""

import contextlib
import sys
import time
from typing import TextIO


class Progress:
  """Counts steps of one stage and prints now and then.

  On a terminal one line is overwritten; elsewhere (a log) a line is printed
  every ten seconds and at the end.
  """

  def __init__(
    self,
    stage: str,
    total: int,
    *,
    unit: str = "steps",
    start: int = 0,
    file: TextIO | None = None,
  ):
    """Starts the clock.

    Args:
      stage: what to call it.
      total: steps in all.
      unit: what one step is called, in the plural; "bytes" are shown in GB.
      start: steps done before, by a run that was cut short.
      file: the stream to print to; None is stdout.
    """
    self.stage, self.total, self.unit = stage, total, unit
    self.done, self.start, self.images = start, start, 0
    self.began = self.printed = time.monotonic()
    self.compiled = None  # Time of the first call's end; it compiles.
    self.untimed = start  # Steps done by then.
    self.file = file or sys.stdout  # None if it was closed.
    self.terminal = self.file is not None and self.file.isatty()

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
    amount = f"{self.done}/{self.total} {self.unit}"
    if self.unit == "bytes":
      amount = f"{self.done / 1e9:.3f}/{self.total / 1e9:.3f} GB"
    parts = [f"{self.stage:<12} {amount}"]
    timed = self.done - self.untimed
    steady = max(time.monotonic() - self.compiled, 1e-9)
    if self.images:
      parts.append(f"{self.images / steady:,.0f} images/s")
    if self.unit == "bytes" and timed:
      parts.append(f"{timed / steady / 1e9:.2f} GB/s")
    if self.done < self.total and timed:
      pace = steady / timed
      parts.append(f"{pace * (self.total - self.done):.0f} s left")
    elif self.done >= self.total:
      parts.append(f"{seconds:.1f} s")
    if note:
      parts.append(note)
    line = ", ".join(parts)
    if self.file is None:
      return
    end = "\n"
    if self.terminal:
      line = f"\r\033[K{line}"
      end = "\n" if self.done >= self.total else ""
    with contextlib.suppress(OSError):  # Work goes on if nobody reads this.
      print(line, end=end, file=self.file, flush=True)
