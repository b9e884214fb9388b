# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shutil
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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
  # The kernel and the commands in cells are those of this environment.
  bin_dir = str(pathlib.Path(sys.executable).parent)
  monkeypatch.setenv("PATH", bin_dir + os.pathsep + os.environ["PATH"])
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=240,
    resources={"metadata": {"path": str(tmp_path / "notebooks")}},
  )
  client.execute()
  assert "Report:" in text_of(notebook)
