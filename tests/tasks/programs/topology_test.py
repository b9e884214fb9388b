# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of soupjax.tasks.programs.topology."""

import importlib.util
import json
import os

import helpers
import jax
import pytest

from soupjax.tasks.programs import topology

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed: pip install 'soupjax[tpu]'",
)


@pytest.mark.parametrize(
  "name,layout",
  [
    ("v5e:4x4", "v5e:4x4"),
    ("v5litepod-4", "v5e:2x2"),
    ("v5litepod-8", "v5e:2x4"),
    ("v5litepod-16", "v5e:4x4"),
    ("v5litepod-256", "v5e:16x16"),
    ("v6e-32", "v6e:4x8"),
    # Their numbers count cores.
    ("v4-8", "v4:2x2x1"),
    ("v4-32", "v4:2x2x4"),
    ("v5p-16", "v5p:2x2x2"),
    ("v5p-128", "v5p:4x4x4"),
    ("v5p-256", "v5p:4x4x8"),
  ],
)
def test_types_of_google_cloud_have_layouts(name, layout):
  assert topology.layout_of(name) == layout


@pytest.mark.parametrize(
  "name,reason",
  [
    ("v5e", "AxB"),
    ("v5e:4by4", "AxB"),
    ("v5litepod-12", "layout of this number"),
    ("v5p-9", "layout of this number"),
    ("v5e:4x4x4", "like 2x2"),
    ("v5p:2x2", "like 2x2x1"),
    ("v5e:16x32", "at most 256 chips"),
    ("v5litepod-512", "at most 256 chips"),
  ],
)
def test_a_slice_that_does_not_exist(monkeypatch, name, reason):
  monkeypatch.setattr(topology, "_devices", lambda layout: ())
  with pytest.raises(ValueError, match=f"{name} .*{reason}.*v5e:2x2.*v5p-N"):
    topology.layout_of(name)


def test_only_what_libtpu_accepts_is_named(monkeypatch):
  def devices(layout):
    if "v5e" not in layout:
      raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: TPU v6")

  monkeypatch.setattr(topology, "_devices", devices)
  with pytest.raises(ValueError, match="It knows v5e:2x2 and multiples"):
    topology.layout_of("v9")


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"soupjax\[tpu\]"):
    topology.get("v5e:4x4")


@pytest.mark.parametrize(
  "given,then",
  [
    ("", "--fibers_default_thread_stack_size=4194304"),
    ("--a=b", "--a=b --fibers_default_thread_stack_size=4194304"),
    ("--fibers_default_thread_stack_size=9", None),
  ],
)
def test_the_compiler_gets_larger_stacks(monkeypatch, given, then):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
  topology._enlarge_stacks()
  assert os.environ["LIBTPU_INIT_ARGS"] == (then or given)


@pytest.mark.parametrize(
  "error,sizes",
  [
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
      "in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity "
      "by 4.75G.",
      (20.5 * 2**30, 15.75 * 2**30),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (2.00T) exceeds available HBM (15.75G).",
      (2 * 2**40, 15.75 * 2**30),
    ),
    ("RESOURCE_EXHAUSTED: Used up", None),
    ("INVALID_ARGUMENT: Used 20.50G of 15.75G hbm.", None),
  ],
)
def test_errors_of_the_compiler_tell_sizes(error, sizes):
  assert topology.needed(error) == sizes


# In a process of its own: libtpu stays loaded, and variables stay set.
LIST = """
import json, jax
from soupjax.tasks.programs import topology
for name in ("v5e:4x4", "v5litepod-16", "v5p:4x4x4"):
  tpu = topology.get(name)
  print(json.dumps([tpu.layout, len(tpu.devices), tpu.kind, tpu.memory]))
for name in ("v9:2x2", "v5e:3x3"):
  try:
    topology.get(name)
  except ValueError as e:
    print(json.dumps(str(e)))
print(json.dumps([d.platform for d in jax.devices()]))
"""


@pytest.mark.slow
@needs_libtpu
def test_a_small_step_is_compiled_for_tpus(tmp_path):
  """Split over 16 chips: kernels are gathered, losses reduced."""
  config = tmp_path / "tiny.py"
  config.write_text(
    "from soupjax.tasks.finetune import config\n\n"
    "def get_config(arg=None):\n"
    "  c = config.default_config()\n"
    "  c.data.update(name='digits', minival='minival', num_classes=10,\n"
    "                num_train=1000, image_size=32, batch_size=64)\n"
    "  c.model.update(variant='mu/4', scan=True, dtype_mm='bfloat16')\n"
    "  c.sharding.update(preset='fsdp', fsdp_min_size=64)\n"
    "  return c.lock()\n"
  )
  command = [f"--config={config}", "--dry_run"]
  done = helpers.soupjax(*command, "--topology=v5litepod-16")
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  assert "Mesh {'data': 16} of 16 devices (TPU v5 lite)" in done.stdout
  table = done.stdout[done.stdout.index("Compiled for v5e:4x4") :]
  assert "16 devices (TPU v5 lite) of 16.9 GB" in table
  for name in ("train step", "evaluation of 64 images"):
    assert f"{name}, on each device" in table
  for row in ("temporaries", "arguments", "in matrix products"):
    assert table.count(row) >= 2
  assert "all-gather" in table and "all-reduce" in table
  # The images alone take 50 GB on each chip.
  large = [
    "--config.data.batch_size=67108864",
    "--config.data.eval_batch_size=64",
  ]
  done = helpers.soupjax(*command, *large, "--topology=v5e:4x4")
  assert done.returncode == 1
  assert "train step does not fit v5e:4x4: it needs" in done.stderr
  assert "accumulate=" in done.stderr


@pytest.mark.slow
@needs_libtpu
def test_slices_without_a_tpu():
  done = helpers.soupjax(code=LIST)
  assert done.returncode == 0, done.stderr
  *slices, unknown, odd, platforms = map(json.loads, done.stdout.splitlines())
  v5e = ["v5e:4x4", 16, "TPU v5 lite", int(15.75 * 2**30)]
  assert slices[:2] == [v5e, v5e]
  assert slices[2][:2] == ["v5p:4x4x4", 64] and slices[2][3] > 90e9
  assert "--topology=v9:2x2" in unknown and "v5e:2x2, v5p:2x2x1" in unknown
  assert "v5e:3x3" in odd and "not divisible" in odd
  assert set(platforms) == {"cpu"}  # No TPU was touched.
