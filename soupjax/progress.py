# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Lines of progress: stage, steps, images per second, time left."""

import contextlib
import shutil
import sys
import time
from typing import TextIO


class Progress:
  """Counts the steps of one stage and prints progress from time to time.

  On a terminal, one line is overwritten. Elsewhere, such as in a log file, a
  line is printed about every ten seconds and at the end.
  """

  def __init__(
    self,
    stage: str,
    total: int,
    *,
    unit: str = "steps",
    start: int = 0,
    step_images: int = 0,
    file: TextIO | None = None,
  ):
    """Starts the clock.

    Args:
      stage: name of the stage.
      total: total number of steps.
      unit: name of the steps, in the plural; "bytes" are shown in GB.
      start: number of steps that an interrupted run has done.
      step_images: images per step, if `add_images` counts them. A step without
        counted images is taken as done by an earlier run, and is not timed.
      file: the stream to print to; None for stdout.
    """
    self.stage, self.total, self.unit = stage, total, unit
    self.done, self.start, self.images = start, start, 0
    self.step_images, self.under_way = step_images, 0
    self.began = self.printed = time.monotonic()
    self.compiled = None  # Time at which the first call, which compiles, ended.
    self.untimed = start  # Steps done by then.
    self.file = file or sys.stdout  # None if stdout is closed.
    self.terminal = self.file is not None and self.file.isatty()

  def step(self, count: int = 1, images: int = 0, note: str = "") -> None:
    """Counts finished steps and their images; prints a line if it is due.

    Args:
      count: number of steps.
      images: number of images in them, unless `add_images` counts these.
      note: text at the end of the line.
    """
    now = time.monotonic()
    self.done += count
    if self.step_images and not self.under_way:
      self.untimed += count
    elif self.compiled is None:
      self.compiled, self.untimed = now, self.done
    else:
      self.images += images
    self.under_way = 0
    self._print_if_due(now, note)

  def add_images(self, count: int, note: str = "") -> None:
    """Counts images of the current step; prints a line if it is due."""
    now = time.monotonic()
    self.under_way += count
    if self.compiled is None:
      self.compiled = now
    else:
      self.images += count
    self._print_if_due(now, note)

  def _print_if_due(self, now: float, note: str) -> None:
    wait = 0.2 if self.terminal else 10.0
    if self.done >= self.total or now - self.printed >= wait:
      self.printed = now
      self._print(now, note)

  def _print(self, now: float, note: str) -> None:
    amount = f"{self.done}/{self.total} {self.unit}"
    if self.unit == "bytes":
      amount = f"{self.done / 1e9:.3f}/{self.total / 1e9:.3f} GB"
    parts = [f"{self.stage:<12} {amount}"]
    timed, ahead = self.done - self.untimed, self.total - self.done
    if self.step_images:
      timed = self.images / self.step_images
      ahead -= self.under_way / self.step_images
    start = now if self.compiled is None else self.compiled
    steady = max(now - start, 1e-9)
    if self.images:
      rate = self.images / steady
      parts.append(f"{rate:{',.0f' if rate >= 10 else '.2g'}} images/s")
    if self.unit == "bytes" and timed:
      parts.append(f"{timed / steady / 1e9:.2f} GB/s")
    if self.done < self.total and timed:
      parts.append(f"{_duration(steady / timed * ahead)} left")
    elif self.done >= self.total:
      parts.append(f"{now - self.began:.1f} s")
    if note:
      parts.append("".join(c if c.isprintable() else "?" for c in note))
    line = ", ".join(parts)
    if self.file is None:
      return
    end = "\n"
    if self.terminal:
      # A longer line would wrap and could not be overwritten.
      line = f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}"
      end = "\n" if self.done >= self.total else ""
    with contextlib.suppress(OSError):  # Continue if the stream is closed.
      print(line, end=end, file=self.file, flush=True)


def _duration(seconds: float) -> str:
  """Formats a duration, such as "90 s", "15 min" or "3.2 h"."""
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 120 * 60:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"
