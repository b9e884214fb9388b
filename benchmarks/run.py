# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares figures with the bars of the project, and writes the tables.

  python benchmarks/run.py                      # at most 40 minutes, 2 cores
  python benchmarks/run.py --only=vit_b,orbax   # these rows; others stay
  python benchmarks/run.py --report             # only writes, from the JSON

The rows are those of `rows.py`. Each is measured in its own process, with an
empty cache of compiled programs. If a row fails, the table says so, and the
others continue. A row that no longer fits into --minutes keeps its figures and
their date. Figures are stored in results/numbers.json. The lines between
markers in README.md and benchmarks/README.md are made from this file and from
results/digits.json. Checkpoints are written to a temporary folder in --folder,
at most 12 GB. Other tools run with the interpreter --peers-python, which may
be that of another environment; by default it is this one.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import rows

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "numbers.json"
TABLE, README = HERE / "README.md", ROOT / "README.md"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore", "numpy")
ROWS = {row.name: row for row in rows.ROWS}


# --- Measuring ----------------------------------------------------------------


def git(*arguments: str) -> str | None:
  """Output of git, or None outside a repository."""
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    return subprocess.run(
      ["git", *arguments],
      cwd=ROOT,
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()
  return None


def environment() -> dict:
  """The commit, versions and machine of a run."""
  # Files that this script writes do not count as changes of the code.
  written = [f":!{p.relative_to(ROOT)}" for p in (RESULTS, TABLE, README)]
  commit = git("rev-parse", "--short", "HEAD")
  return {
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "commit": commit,
    "dirty": bool(commit and git("status", "--porcelain", "--", *written)),
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in PACKAGES},
    "cores": len(os.sched_getaffinity(0)),
    "cpu": cpu_name(),
  }


def cpu_name() -> str:
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text()
    if found := re.search(r"model name\s*: (.*)", text):
      return found[1]
  return platform.machine()


def load() -> float:
  """Load average of the last minute."""
  return round(os.getloadavg()[0], 2)


def rounded(value):
  """Rounds floats to four digits, and those in dicts."""
  if isinstance(value, dict):
    return {k: rounded(v) for k, v in value.items()}
  return float(f"{value:.4g}") if isinstance(value, float) else value


def measure(row: rows.Row, folder: str, seconds: float) -> dict:
  """Measures a row in its own process; returns its entry in the JSON."""
  result = os.path.join(folder, f"{row.name}.json")
  cache = tempfile.mkdtemp(prefix="cache_", dir=folder)
  # This checkout takes precedence over an installed soupjax.
  path = os.pathsep.join(
    filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
  )
  env = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": path}
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  start, error = time.monotonic(), None
  process = subprocess.Popen(
    [sys.executable, __file__, f"--measure={row.name}", f"--folder={folder}"],
    env=env,
    start_new_session=True,
    stdout=sys.stderr,
  )
  try:
    code = process.wait(seconds)
    if code:
      error = f"ended with exit code {code}"
  except subprocess.TimeoutExpired:
    error = f"stopped after {seconds:.0f} s"
  finally:
    # Kills the processes that the row has started, too.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  entry = {"error": error}
  with contextlib.suppress(FileNotFoundError):
    entry = json.loads(pathlib.Path(result).read_text())
  entry["seconds"] = time.monotonic() - start
  return rounded(entry)


def measure_here(name: str, folder: str) -> None:
  """Measures a row in this process, and writes its entry into the folder."""
  try:
    entry = {"figures": ROWS[name].measure(folder)}
  except rows.SkippedError as e:
    entry = {"skipped": str(e)}
  except Exception as e:
    print(f"{type(e).__name__}: {e}", file=sys.stderr)
    entry = {"error": f"{type(e).__name__}: {e}".partition("\n")[0]}
  path = pathlib.Path(folder) / f"{name}.json"
  path.write_text(json.dumps(entry))


def measure_all(names: list[str], folder: str, minutes: float) -> bool:
  """Measures rows and stores each at once; returns whether all worked.

  A row whose last measurement took longer than the time left keeps its entry.
  """
  deadline = time.monotonic() + 60 * minutes
  stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  entries = stored.get("rows", {})
  run = environment() | {"load_before": load()}
  key = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
  runs = stored.get("runs", {}) | {key: run}
  worked = True
  for name in names:
    left = deadline - time.monotonic()
    if entries.get(name, {}).get("seconds", 1) > left:
      print(f"{name}: left out, since {minutes:.0f} minutes are too short")
      continue
    limit = min(ROWS[name].seconds, left)
    entries[name] = measure(ROWS[name], folder, limit) | {"run": key}
    worked &= "error" not in entries[name]
    print(f"{name}: {today(ROWS[name], entries[name])}", flush=True)
    run["load_after"] = load()
    used = {entry["run"] for entry in entries.values()}
    record = {
      "runs": {k: v for k, v in runs.items() if k in used},
      "rows": {k: entries[k] for k in ROWS if k in entries},
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
  return worked


# --- Tables -------------------------------------------------------------------


def number(value: float) -> str:
  """Formats a figure with about three digits."""
  if isinstance(value, int) or value == int(value) or abs(value) >= 100:
    return f"{value:,.0f}"
  return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def today(row: rows.Row, entry: dict | None) -> str:
  """Formats the figures of a row, and marks those that exceed their bars."""
  if entry is None:
    return "not measured"
  if "figures" not in entry:
    if "skipped" in entry:
      return f"not measured: {entry['skipped']}"
    return f"**failed**: {entry['error']}".replace("|", "\\|")
  figures, cells = entry["figures"], []
  for bar in row.bars:
    value = figures[bar.key]
    cell = f"{bar.label} {number(value)}{bar.unit}"
    if value > bar.at_most:
      by = f"{number(value - bar.at_most)}"
      if bar.at_most:
        by = f"{100 * (value / bar.at_most - 1):.0f} %"
      cell += f" (**missed by {by}**)"
    cells.append(cell)
  return "; ".join(filter(None, (*cells, row.note(figures))))


def numbers_table(record: dict) -> str:
  """Formats the table of all rows, and when and where they were measured."""
  lines = ["| `--only=` | what | bar | today |", "|---|---|---|---|"]
  for row in rows.ROWS:
    bars = "; ".join(
      f"{bar.label} <= {number(bar.at_most)}{bar.unit}" for bar in row.bars
    )
    cell = today(row, record["rows"].get(row.name))
    lines.append(f"| `{row.name}` | {row.title} | {bars} | {cell} |")
  lines.append("")
  for key, run in record["runs"].items():
    names = [n for n, entry in record["rows"].items() if entry["run"] == key]
    minutes = sum(record["rows"][name]["seconds"] for name in names) / 60
    which = (
      "All rows" if len(names) == len(record["rows"]) else ", ".join(names)
    )
    versions = ", ".join(f"{name} {run[name]}" for name in PACKAGES)
    lines.append(
      wrapped(
        f"{which}: {run['date']}, commit {run['commit'] or 'unknown'}"
        f"{' with changes' if run['dirty'] else ''}, {minutes:.0f} minutes on "
        f"{run['cores']} cores ({run['cpu']}), load average "
        f"{run['load_before']} before and {run['load_after']} after; "
        f"Python {run['python']}, {versions}.",
        initial_indent="- ",
        subsequent_indent="  ",
      )
    )
  return "\n".join(lines)


def wrapped(text: str, **options) -> str:
  return textwrap.fill(
    text, 80, break_long_words=False, break_on_hyphens=False, **options
  )


def costs(record: dict) -> str:
  """Returns README.md's sentences about time and memory."""

  def figures(name):
    return record["rows"].get(name, {}).get("figures")

  sentences = []
  if job := figures("main_job"):
    sentences.append(
      "`launch/local.sh` repeats one of these runs from a fresh clone, in "
      f"{job['first_s']:.0f} seconds on two cores after installation, and "
      "prints its three commands."
    )
  if soup := figures("vit_b"):
    sentences.append(
      "The mean of eight ViT-B files (2.8 GB), flushed and read back, takes "
      f"{soup['warm_s']:.1f} seconds, {soup['warm_ratio']:.1f} times as long "
      "as `cat` + `cp` + fsync."
    )
  if memory := figures("memory"):
    sentences.append(
      f"It needs at most {memory['most_mb']:.0f} MB of memory beyond imports, "
      "and the same for larger models and for 32 of them."
    )
  return wrapped(" ".join(sentences))


def blocks() -> dict[tuple[pathlib.Path, str], str]:
  """Returns the lines between markers: (file, name) -> text."""
  import digits

  record = json.loads(RESULTS.read_text())
  return {
    (TABLE, "numbers"): numbers_table(record),
    (README, "costs"): costs(record),
    (README, "digits"): digits.short_table(),
  }


def replaced(text: str, name: str, block: str) -> str:
  """Replaces the lines between the markers of a block.

  Raises:
    ValueError: if the text does not have both markers once.
  """
  begin, end = f"<!-- {name}: benchmarks/run.py -->", f"<!-- end {name} -->"
  if text.count(begin) != 1 or text.count(end) != 1:
    raise ValueError(f"needs {begin!r} and {end!r} once each")
  head, _, rest = text.partition(begin)
  return f"{head}{begin}\n\n{block}\n\n{end}{rest.partition(end)[2]}"


def report() -> None:
  """Rewrites the lines between markers."""
  for (path, name), block in blocks().items():
    path.write_text(replaced(path.read_text(), name, block))


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", help="names of rows, with commas")
  parser.add_argument("--skip", help="names of rows, with commas")
  parser.add_argument("--minutes", type=float, default=40)
  parser.add_argument("--report", action="store_true")
  parser.add_argument("--folder", help="parent of the folder for checkpoints")
  parser.add_argument("--peers-python", default=sys.executable)
  parser.add_argument("--measure", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    measure_here(args.measure, args.folder)
    return 0
  worked = True
  if not args.report:
    names = args.only.split(",") if args.only else list(ROWS)
    skipped = args.skip.split(",") if args.skip else []
    if unknown := {*names, *skipped} - ROWS.keys():
      parser.error(f"unknown rows {sorted(unknown)}; there are {[*ROWS]}")
    os.environ["PEERS_PYTHON"] = args.peers_python
    # sys.exit runs the blocks that stop the row and remove the folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = tempfile.mkdtemp(prefix="soupjax_numbers_", dir=args.folder)
    try:
      names = [n for n in ROWS if n in names and n not in skipped]
      worked = measure_all(names, folder, args.minutes)
    finally:
      shutil.rmtree(folder)
  report()
  return 0 if worked else 1


if __name__ == "__main__":
  sys.exit(main())
