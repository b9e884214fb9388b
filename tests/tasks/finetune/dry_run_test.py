# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every fine-tuning config on paper; ViT-G on 32 devices that are not there."""

import re

import helpers
import jax
import numpy as np
import pytest

from soupjax import config as config_lib
from soupjax.data import preprocess
from soupjax.models import pretrained
from soupjax.tasks import estimate
from soupjax.tasks.finetune import config as finetune_config
from soupjax.tasks.finetune import dry_run, needs, programs, step

CONFIGS = helpers.ROOT / "configs" / "finetune"


def number(text, pattern):
  return re.search(pattern, text).group(1)


def test_vit_g_on_32_fake_devices():
  done = helpers.soupjax(
    f"--config={CONFIGS / 'vit_g14_i1k.py'}", "--dry_run", "--fake_devices=32"
  )
  assert done.returncode == 0, done.stderr
  said = done.stdout
  # 1.84 B of arXiv 2106.04560, table 2, and 0.04 B of its MAP head.
  assert number(said, r"parameters \((\d\.\d\d) B\)") == "1.88"
  assert "Mesh {'data': 32} of 32 devices" in said
  rows = dict(re.findall(r"  (\w[^\n]*?) +[\d.]+ GB of +([\d.]+) GB", said))
  shares = dict(re.findall(r"  (\w[^\n]*?) +([\d.]+) GB of", said))
  params = float(rows["parameters"])
  assert params == pytest.approx(7.53, abs=0.05)
  averages = "moving averages (0.999, 0.9999999)"
  assert float(rows[averages]) == pytest.approx(2 * params, abs=0.01)
  # A first moment in half precision, and rows and columns.
  assert 0.5 < float(rows["optimizer (adafactor)"]) / params < 0.53
  for name in ("parameters", averages):
    share = float(shares[name]) / float(rows[name])
    assert 1 / 32 < share < 1.1 / 32
  block = "Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
  assert re.search(
    rf"{block} +float32\[48, 1664, 8192\] +\(None, None, data\)", said
  )
  assert "58 members" in said
  members = re.findall(r"member_\d+: ([\d,]+) steps", said)
  assert len(members) == 58 and set(members) == {"10,000", "20,000"}
  sam = re.findall(r"hyper\.sam_rho=0\.05", said)
  assert len(sam) == 4


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=str)
@pytest.mark.parametrize("arg", ["", "runlocal"])
def test_every_config_and_its_sweep_have_a_plan(path, arg):
  config = config_lib.load(str(path), arg)
  # Eight devices do not divide all of their batches.
  config = config_lib.updated(config, {"data.batch_size": 64})
  sweep = config_lib.load_sweep(str(path), arg)
  if config.init.head == "zeroshot" and not config.init.path:
    with pytest.raises(ValueError, match="needs init.path, a checkpoint with"):
      dry_run.plan(config, sweep)
    return
  if config.model.variant == "init" and not config.init.path:
    with pytest.raises(ValueError, match="init.path, which is empty"):
      dry_run.plan(config, sweep)
    return
  said = dry_run.plan(config, sweep)
  assert f"{len(sweep)} members" in said
  assert f"Mesh {{'data': {jax.device_count()}}}" in said


@pytest.mark.parametrize(
  "arg,members",
  [("sweep=standard", 48), ("sweep=extreme", 48), ("sweep=seeds", 5)],
)
def test_the_searches_of_the_paper_fit_the_config(arg, members):
  path = str(CONFIGS / "vit_b16_i1k.py")
  sweep = config_lib.load_sweep(path, arg)
  assert len(sweep) == members
  said = dry_run.plan(config_lib.load(path, arg), sweep)
  # A seed, a rate, mixup and augmentation compile nothing new.
  assert f"{members} members, 1 compilation\n" in said
  with pytest.raises(ValueError, match="'best'"):
    config_lib.load_sweep(path, "sweep=best")


@pytest.mark.parametrize("arg", ["clip", "clip,runlocal"])
def test_clip_gets_the_pixels_that_it_was_trained_with(arg):
  config = config_lib.load(str(CONFIGS / "vit_b16_i1k.py"), arg)
  for which in ("train_ops", "eval_ops"):
    text = finetune_config.ops(config, which)
    assert text.endswith('|standardize("clip")') or (
      text == 'standardize("clip")'
    )
    assert "value_range" not in text
    resized = text.startswith(("inception_crop(224", "resize_small(224"))
    assert resized == ("'bicubic')" in text)


def test_other_weights_get_images_resized_as_in_their_pretraining():
  config = config_lib.load(str(CONFIGS / "vit_b16_i1k.py"), "res=384")
  for which, start in {
    "train_ops": "inception_crop(384, 8.0, method='linear')|flip_lr|",
    "eval_ops": "resize_small(384, 'linear', 'big_vision')|"
    "central_crop(384, 'big_vision')|",
  }.items():
    text = finetune_config.ops(config, which)
    assert text.startswith(start) and text.endswith("|value_range(-1, 1)")
    preprocess.Preprocess(text)


def test_steps_that_depend_on_unknown_data_are_said_to():
  path = str(CONFIGS / "digits.py")
  config = config_lib.load(path, **{"hyper.total": "3epochs"})
  said = dry_run.plan(config, None)
  assert "1 member, 1 compilation\n  run: 3epochs (" in said
  config = config_lib.updated(config, {"data.num_train": 96})
  assert "run: 9 steps, 288 images" in dry_run.plan(config, None)


def test_a_population_is_planned_in_groups():
  config = config_lib.load(str(CONFIGS / "digits.py"), population=3)
  sweep = config_lib.load_sweep(str(CONFIGS / "digits.py"))
  said = dry_run.plan(config, sweep)
  assert "16 members, 1 compilation, up to 3 at once in 6 groups" in said


def test_a_plan_writes_nothing_and_needs_no_workdir(tmp_path):
  done = helpers.soupjax(
    f"--config={CONFIGS / 'digits.py'}", "--dry_run", "--fake_devices=1",
    f"--workdir={tmp_path / 'run'}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / "run").exists()


def test_the_first_member_has_index_0():
  done = helpers.soupjax(
    f"--config={CONFIGS / 'digits.py'}", "--dry_run", "--fake_devices=1",
    "--sweep_index=0",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "\n1 member, " in done.stdout


@pytest.mark.parametrize(
  "arguments,problem",
  [
    ([], "Give --workdir"),
    (["--workdir=/tmp/x", "--sweep_index=99"], "--sweep_index=99"),
    (["--workdir=ftp://bucket/x"], "addresses begin with gs://"),
    (["--dry_run", "--config.hyper.total=5"], "must have a unit"),
    (["--dry_run", "--config.model.remat_policy=x"], "'remat_policy'"),
    (
      ["--workdir=/dev/null/x", "--sweep", "--config.hyper.total=9steps"],
      "get_sweep() sets hyper.total in all members",
    ),
  ],
)
def test_what_is_wrong_on_the_command_line_is_said(arguments, problem):
  done = helpers.soupjax(f"--config={CONFIGS / 'digits.py'}", *arguments)
  assert done.returncode != 0
  assert problem in done.stderr + done.stdout


def test_the_model_of_the_start_is_estimated(tmp_path, monkeypatch):
  config = helpers.finetune_config()
  model = finetune_config.build_model(config)
  shapes = step.abstract_params(config, model)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  start = tmp_path / "start.npz"
  pretrained.save_exported(start, params, model, "big_vision")
  config = helpers.finetune_config(
    **{"model.variant": "init", "init.path": str(start)}
  )
  monkeypatch.setattr(estimate, "can_compile", lambda *_: False)
  found = needs.needs(config, None, None, None)
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  assert found.disk["the start"] == size
  assert next(programs.programs(config, None, None, jax.devices()))
