# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Notebooks run from top to bottom, and are stored with their outputs."""

import os
import pathlib
import shutil
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHORTER = {
  "digits.py:pretrain ": "digits.py:pretrain,runlocal ",
  "digits.py ": "digits.py:runlocal ",
  "config.tests.values()": '("test", "noise")',
  "np.linspace(0, 1, 6)": "(0, 1)",
  "steps=30": "steps=3",
}


def text_of(notebook):
  outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
  return "".join(
    o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs
  )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_kept_and_metadata_stripped(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert "colab-badge" in notebook.cells[0].source
  assert set(notebook.metadata) <= {"language_info"}
  code = [c for c in notebook.cells if c.cell_type == "code"]
  assert all(not c.metadata for c in notebook.cells)
  assert any("image/png" in o.get("data", {}) for c in code for o in c.outputs)
  assert all(o.output_type != "error" for c in code for o in c.outputs)
  assert str(ROOT) not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  (tmp_path / "notebooks").mkdir()
  # The kernel and the commands in cells use this environment.
  bin_dir = str(pathlib.Path(sys.executable).parent)
  monkeypatch.setenv("PATH", bin_dir + os.pathsep + os.environ["PATH"])
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  notebook = nbformat.read(path, as_version=4)
  # Two members, few steps, two test sets; stored outputs come from full runs.
  for cell in notebook.cells:
    for command, shorter in SHORTER.items():
      cell.source = cell.source.replace(command, shorter)
  client = nbclient.NotebookClient(
    notebook,
    timeout=240,
    resources={"metadata": {"path": str(tmp_path / "notebooks")}},
  )
  client.execute()
  outputs = text_of(notebook)
  assert "member_000" in outputs and "member_001" in outputs
  code = [c for c in notebook.cells if c.cell_type == "code"]
  assert any("image/png" in o.get("data", {}) for c in code for o in c.outputs)
