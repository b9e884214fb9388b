# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The images and the config of the benchmark on PACS."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib

FOLDER = pathlib.Path(__file__).parents[3] / "benchmarks" / "evidence"
sys.path.insert(0, str(FOLDER))
common = importlib.import_module("common")
pacs = importlib.import_module("pacs")
sys.path.remove(str(FOLDER))

CONFIG = str(FOLDER / "pacs_config.py")


@pytest.fixture(name="images", scope="module")
def make_images(tmp_path_factory):
  root = tmp_path_factory.mktemp("pacs")
  for k, domain in enumerate((*pacs.TRAINED, *pacs.SHIFTS)):
    members = []
    for name in ("dog", "house"):
      for i in range(10):
        pixels = np.full((12, 12, 3), (k, i, len(name)), np.uint8)
        members.append((f"{name}/{i}.png", common.png(pixels)))
    common.write_files(root / f"{domain}.tar", members)
  sets = root / "sets"
  pacs.write_images(f"folder:{root}", sets, 8, False)
  return sets


def contents(images, split):
  source = sj.data.open_source(f"folder:{images}", split)
  decode = sj.data.Preprocess("")
  pixels = [np.asarray(decode(source[i]["image"])) for i in range(len(source))]
  assert {p.shape for p in pixels} == {(8, 8, 3)}
  return [tuple(p[0, 0].tolist()) for p in pixels]


def test_parts_share_no_image_and_have_all_domains(images):
  parts = {name: contents(images, name) for name in pacs.PARTS}
  assert {k: len(v) for k, v in parts.items()} == {
    "train": 24, "minival": 8, "test": 8
  }  # fmt: skip
  every = [pixel for part in parts.values() for pixel in part]
  assert len(set(every)) == 40 and {p[0] for p in every} == {0, 1}
  for part in parts.values():
    assert {p[0] for p in part} == {0, 1}


def test_shifts_are_whole_domains(images):
  for k, domain in enumerate(pacs.SHIFTS, 2):
    shifted = contents(images, domain)
    assert len(shifted) == 20 and {p[0] for p in shifted} == {k}


def test_the_config_and_its_sweep(images):
  arg = f"images={images},seed=2,log_rate=-4.0"
  config = config_lib.load(CONFIG, arg)
  assert config.model.variant == "init" and config.data.num_classes == 7
  assert "affine(10, 3.2," in config.data.batch_ops
  sweep = config_lib.load_sweep(CONFIG, arg)
  rates = [member["hyper.learning_rate"] for member in sweep]
  assert len(set(rates)) == 12 and 10**-4.5 < min(rates) < max(rates) < 10**-3.5
  for epochs, argument in ((5, arg), (1, f"{arg},epochs=1")):
    for member in config_lib.load_sweep(CONFIG, argument):
      steps = int(member["hyper.total"].removesuffix("steps"))
      assert 35 * epochs <= steps <= 70 * epochs
  other = config_lib.load_sweep(CONFIG, f"images={images},seed=1,log_rate=-4.0")
  assert sweep != other


def test_nothing_is_done_without_a_start(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["pacs.py", "--workdir=w", "--images=i"])
  with pytest.raises(SystemExit):
    pacs.main()
  assert "--weights" in capsys.readouterr().err
