# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of README.md and benchmarks/README.md, and rows that fail."""

import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))
digits, rows = map(importlib.import_module, ("digits", "rows"))
# Another folder has a run.py as well.
spec = importlib.util.spec_from_file_location("numbers_run", FOLDER / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
sys.path.remove(str(FOLDER))


def test_readmes_have_the_figures_of_the_results():
  blocks = run.blocks()
  assert {path for path, _ in blocks} == {run.README, run.TABLE}
  for (path, name), block in blocks.items():
    text = path.read_text()
    assert run.replaced(text, name, block) == text, (
      f"{path.name}: run `python benchmarks/run.py --report`"
    )


def test_the_other_tables_of_digits_are_those_of_the_results():
  stored = json.loads(digits.RESULTS.read_text())
  text = run.TABLE.read_text()
  for key, baseline in (
    ("runs", "best_prec@1"),
    ("runs", "best_loss"),
    ("controls", "best_prec@1"),
  ):
    assert digits.markdown(list(stored[key].values()), baseline) in text


def test_the_prose_of_readme_agrees_with_the_results():
  stored = json.loads(digits.RESULTS.read_text())
  tables = [digits.table_of(r) for r in stored["controls"].values()]
  gains = [t["uniform"][0] - t["best_prec@1"][0] for t in tables]
  points = f"{-sum(gains) / len(gains):.0f} points *below*"
  assert points in run.README.read_text()


STUBS = """
def fail(folder):
  raise ValueError("one | line\\nand another")

def skip(folder):
  raise SkippedError("no peer")

ROWS = (
  Row("met", "is met", lambda f: {"s": 1.0, "n": 3},
      (Bar("wall", "s", 2, " s"),), lambda f: f"{f['n']} things"),
  Row("missed", "is missed", lambda f: {"s": 3.0, "n": 2},
      (Bar("wall", "s", 2, " s"), Bar("count", "n", 0))),
  Row("fails", "raises", fail),
  Row("skips", "cannot", skip),
  Row("dies", "exits", lambda f: os._exit(3)),
  Row("hangs", "sleeps", lambda f: subprocess.run(["sleep", "99"]), seconds=1),
)
"""


@pytest.fixture
def project(tmp_path):
  """A folder with run.py, rows that need no time, and files to rewrite."""
  folder = tmp_path / "benchmarks"
  (folder / "results").mkdir(parents=True)
  for name in ("run.py", "contestants.py", "stream.py"):
    (folder / name).write_text((FOLDER / name).read_text())
  text = (FOLDER / "rows.py").read_text()
  (folder / "rows.py").write_text(text[: text.index("\nROWS = (")] + STUBS)
  (folder / "digits.py").write_text("def short_table():\n  return 'digits'\n")
  (folder / "README.md").write_text(
    "a\n<!-- numbers: benchmarks/run.py -->\nold\n<!-- end numbers -->\nb\n"
  )
  (tmp_path / "README.md").write_text(
    "<!-- costs: benchmarks/run.py --><!-- end costs -->\n"
    "<!-- digits: benchmarks/run.py --><!-- end digits -->\n"
  )
  return folder


def execute(folder, *arguments):
  done = subprocess.run(
    [sys.executable, str(folder / "run.py"), *arguments],
    capture_output=True,
    text=True,
    timeout=60,
  )
  record = json.loads((folder / "results" / "numbers.json").read_text())
  cells = {}
  for line in (folder / "README.md").read_text().splitlines():
    if line.startswith("| `") and "only" not in line:
      name, _, bar, cell = line.strip("| ").split(" | ", 3)
      cells[name.strip("`")] = (bar, cell)
  return done, record, cells


def test_rows_that_fail_or_are_missed_say_so_and_do_not_stop_others(project):
  done, record, cells = execute(project)
  assert done.returncode == 1, done.stderr
  assert cells == {
    "met": ("wall <= 2 s", "wall 1 s; 3 things"),
    "missed": (
      "wall <= 2 s; count <= 0",
      "wall 3 s (**missed by 50 %**); count 2 (**missed by 2**)",
    ),
    "fails": ("", "**failed**: ValueError: one \\| line"),
    "skips": ("", "not measured: no peer"),
    "dies": ("", "**failed**: ended with exit code 3"),
    "hangs": ("", "**failed**: stopped after 1 s"),
  }
  (environment,) = record["runs"].values()
  assert environment["numpy"] == np.__version__
  assert {"date", "commit", "dirty", "cores", "load_before", "load_after"} <= {
    *environment
  }
  text = (project / "README.md").read_text()
  assert text.startswith("a\n<!-- numbers") and text.endswith(
    "numbers -->\nb\n"
  )
  assert "old" not in text and "- All rows: 20" in text

  # Some rows again: the others keep their figures and their run.
  done, record, again = execute(project, "--only=missed,met")
  assert done.returncode == 0 and again == cells
  assert len(record["runs"]) == 2
  assert "- met, missed: 20" in (project / "README.md").read_text()

  # No time: rows keep their figures, too.
  done, same, _ = execute(project, "--minutes=0")
  assert done.stdout.count("left out") == 6 and same == record

  record["rows"]["met"]["figures"]["s"] = 1.5
  (project / "results" / "numbers.json").write_text(json.dumps(record))
  done, _, reported = execute(project, "--report")
  assert done.returncode == 0
  assert reported == cells | {"met": ("wall <= 2 s", "wall 1.50 s; 3 things")}


def test_unknown_rows_are_refused_before_work():
  done = subprocess.run(
    [sys.executable, str(FOLDER / "run.py"), "--only=vit_b,vitb"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and "unknown rows ['vitb']" in done.stderr


@pytest.mark.parametrize("text", ["", "<!-- a: benchmarks/run.py -->\n"])
def test_missing_markers_are_an_error(text):
  with pytest.raises(ValueError, match="<!-- end a -->"):
    run.replaced(text, "a", "block")


def test_every_note_has_its_figures():
  record = json.loads(run.RESULTS.read_text())
  for row in rows.ROWS:
    assert run.today(row, record["rows"].get(row.name))
