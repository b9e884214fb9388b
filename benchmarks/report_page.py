# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Measures the report of 100 models on 20 sets: its size and opening time.

  python benchmarks/report_page.py      # half a minute; needs Chromium

The results are made up: 88 ingredients with 12 hyperparameters, soups, WiSE-FT
and ensembles, each with accuracy, loss, calibration and a recorded difference
on minival, test and 18 shifts. A headless browser opens the page five times.
Prints megabytes, and the milliseconds from the start of the navigation to the
load event and to the second frame after it, when everything is drawn.
"""

import json
import pathlib
import random
import statistics
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
MODELS, SHIFTS, REPEATS = 100, 18, 5
_DRAWN = """
addEventListener("load", () => requestAnimationFrame(() =>
  requestAnimationFrame(() => { window.drawn = performance.now(); })));
"""
_TIMES = """new Promise((resolve) => {
  const look = () => window.drawn ? resolve([
    performance.getEntriesByType("navigation")[0].loadEventEnd, window.drawn,
  ]) : setTimeout(look, 5);
  look();
})"""


def make_run(folder: pathlib.Path) -> pathlib.Path:
  """Writes the files of a finished run with made-up results."""
  import helpers

  rng = random.Random(0)
  shifts = tuple(f"gaussian_noise_{k}" for k in range(SHIFTS))
  others = {line["model"] for line in helpers.records(1)} - {"ingredient_00"}
  size = MODELS - len(others)
  helpers.write_run(folder, size, shifts)
  lines = []
  for line in helpers.records(size, shifts):
    line["value"] = max(line["value"] + rng.uniform(-0.04, 0.02), 1e-3)
    line["n"] = 5000
    if line["metric"] == "prec@1":
      line["value"] = round(5000 * line["value"]) / 5000
      ends = {"difference": rng.uniform(-0.02, 0.02), "low": -rng.random() / 20}
      line |= {**ends, "high": rng.random() / 20, "p": rng.random()}
      for metric in ("ece", "ece_t", "loss_t"):
        value = rng.uniform(0.01, 0.3)
        lines.append({**line, "metric": metric, "value": value})
    lines.append(line)
  helpers.write_results(folder, lines)
  for path in folder.glob("ingredients/*/hyperparameters.json"):
    values = {f"hyperparameter_{k}": rng.random() for k in range(12)}
    path.write_text(json.dumps(values))
  return folder


def main() -> None:
  """Writes the page, opens it, and prints its figures as JSON."""
  sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
  import browser

  from soupjax import report
  from soupjax.report.web import drawings

  drawings.FORMATS = ("svg",)  # Other pictures are not in the page.
  with tempfile.TemporaryDirectory() as folder:
    page = report.write_report(make_run(pathlib.Path(folder)))
    size = page.stat().st_size
    with browser.Browser() as tab:
      tab.call("Page.addScriptToEvaluateOnNewDocument", source=_DRAWN)
      times = []
      for _ in range(REPEATS):
        tab.open(page)
        times.append(tab.evaluate(_TIMES))
  loads, draws = (sorted(values) for values in zip(*times))
  print(
    json.dumps(
      {
        "megabytes": round(size / 1e6, 2),
        "load_ms": round(statistics.median(loads)),
        "drawn_ms": round(statistics.median(draws)),
        "drawn_ms_range": [round(draws[0]), round(draws[-1])],
      }
    )
  )


if __name__ == "__main__":
  main()
