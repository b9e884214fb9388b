# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the code and the commands of the pages about mixing."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

import soupjax as sj

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("docs/rules.md", "docs/streaming.md")
BASH = 'set -euo pipefail; soupjax() { "$PYTHON" -m soupjax.main "$@"; }\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The working directory of a reader: configs, a base, fine-tuned models."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  for k in range(3):
    tree = {"encoderblock_0/kernel": np.full((2, 2), k + 1.0, "f")}
    tree["head/kernel"] = np.full(2, k + 1.0, "f")
    for name in ("finetuned", "ckpts"):
      (tmp_path / name).mkdir(exist_ok=True)
      sj.save_params(tmp_path / name / f"{k}.safetensors", tree)
  tree = {name: leaf - 9 for name, leaf in tree.items()}
  sj.save_params(tmp_path / "pretrained.safetensors", tree)
  return tmp_path


def blocks(page, language):
  text = (ROOT / page).read_text()
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def remove_outputs(folder):
  for name in ("soup", "merged"):
    (folder / f"{name}.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page(folder, page):
  namespace = {}
  for block in blocks(page, "python"):
    remove_outputs(folder)
    exec(compile(block, page, "exec"), namespace)
  if "get_config" in namespace:
    assert namespace["get_config"]().rule["name"] == "ties"


@pytest.mark.parametrize(
  "page,index",
  [(page, k) for page in PAGES for k in range(len(blocks(page, "sh")))],
)
def test_commands_of_a_page(folder, page, index):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  command = blocks(page, "sh")[index].replace("12345", str(port))
  done = subprocess.run(
    ["bash", "-c", BASH + command],
    env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("Wrote") == 1, done.stdout + done.stderr
