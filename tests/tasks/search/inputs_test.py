# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tasks, their heads, and inputs that do not fit."""

import json
import shutil

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.tasks import heads
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search import frozen_heads
from soupjax.tasks.search import inputs as inputs_lib

CONFIG = str(helpers.ROOT / "configs" / "search.py")


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


def config_of(sweep, tasks, method="addition", **changes):
  values = {
    "initial": str(sweep / "initial"),
    "ingredients": str(sweep / "member_00[12]/ingredients/last"),
    "tasks": tasks,
    "data.eval_ops": "value_range(-1, 1)",
  }
  return config_lib.load(CONFIG, method, **{**values, **changes})


def opened(sweep, tasks, **changes):
  config = config_of(sweep, tasks, **changes)
  search_config.check(config)
  inputs = inputs_lib.open_inputs(config)
  frozen_heads.make_heads(inputs, None)
  return inputs


@pytest.mark.parametrize(
  "tasks,message",
  [
    ("a=digits,a=digits:test=test", "'a' occurs twice"),
    (
      "a=digits:minival=minival,b=digits:minival=minival",
      "tasks.a and tasks.b",
    ),
    ("a=digits:heads=own", "tasks.a.*'digits:heads=own'"),
    ("a=digits:head=mine", "tasks.a: head='mine'"),
    ("a=digits:minival=minival|flip_lr", "tasks.a: 'flip_lr'"),
    ("a=digits:minival=minival:head=own", "tasks.a: head=own.*member_001"),
    ("a=digits:minival=minival:model=x", "tasks.a: model='x'.*member_001"),
    ("a=digits:minival=minival:test=minival", "tasks.a: 300 images"),
    (
      "a=digits:minival=minival:train=test:test=test:head=probe",
      "tasks.a: 499 images .* fits the probe",
    ),
    (
      "a=digits:minival=minival:head=initial,b=digits:minival=test",
      "tasks.a has a frozen head and tasks.b",
    ),
    (
      "a=digits:minival=minival:test=test,b=digits:minival=test",
      "tasks.a: 499 images of its test set are in the minival of b",
    ),
    (
      "a=digits:minival=minival:train=minival:head=probe",
      "tasks.a: 300 images",
    ),
  ],
)
def test_tasks_that_cannot_be(sweep, tasks, message):
  with pytest.raises(ValueError, match=message):
    opened(sweep, tasks)


def test_only_encoders_must_share_their_start(sweep, tmp_path):
  """Tasks with other classes start from other frozen heads."""
  for k in (1, 2):
    folder = tmp_path / f"member_{k:03d}/ingredients/last"
    shutil.copytree(sweep / folder.relative_to(tmp_path), folder)
  record = folder / "hyperparameters.json"
  values = json.loads(record.read_text())
  pattern = str(tmp_path / "member_*/ingredients/last")
  merged = "a=digits:minival=minival"
  frozen = f"{merged}:head=own:model=member_001"

  def rewrite(**changes):
    record.write_text(json.dumps({**values, **changes}))

  rewrite(init_hash="0123456789")
  opened(sweep, frozen, ingredients=pattern)
  with pytest.raises(ValueError, match="'member_001' and 'member_002'"):
    opened(sweep, merged, ingredients=pattern)
  rewrite(encoder_init_hash="0123456789")
  with pytest.raises(ValueError, match="'member_001' and 'member_002'"):
    opened(sweep, frozen, ingredients=pattern)


def test_heads_that_do_not_fit(sweep, tmp_path):
  path = tmp_path / "head.safetensors"
  tasks = f"a=digits:minival=minival:head=file:{path}"
  for kernel, message in (
    ((8, 10), r"tasks.a: head/kernel has the shape \(8, 10\).*16 features"),
    ((16, 3), r"tasks.a: head/kernel has the shape \(16, 3\).*10 classes"),
  ):
    path.unlink(missing_ok=True)
    sj.save_params(path, {"kernel": np.zeros(kernel, "f")})
    with pytest.raises(ValueError, match=message):
      opened(sweep, tasks)
  path.unlink()
  sj.save_params(path, {"body": np.zeros(3, "f")})
  with pytest.raises(ValueError, match="tasks.a: .*'body'"):
    opened(sweep, tasks)


def test_heads_of_files(sweep, tmp_path):
  kernel = np.arange(160, dtype="f").reshape(16, 10)
  # As torch writes a layer, and as our own models have it.
  sj.save_params(tmp_path / "a.safetensors", {"fc": {"weight": kernel.T}})
  member = sweep / "member_001/ingredients/last"
  inputs = opened(
    sweep,
    f"a=digits:minival=minival:head=file:{tmp_path / 'a.safetensors'},"
    f"b=digits:minival=minival:head=file:{member}",
  )
  head = inputs.frozen_heads["a"].leaves["head"]
  np.testing.assert_array_equal(head["kernel"], kernel)
  np.testing.assert_array_equal(head["bias"], np.zeros(10))
  jax.tree.map(
    np.testing.assert_array_equal,
    dict(inputs.frozen_heads["b"].leaves["head"]),
    dict(sj.load_params(member)["head"]),
  )
  assert not any("head" in leaf for leaf in inputs.ingredients[0].specs)


def test_heads_in_files_record_that_features_have_length_1(sweep, tmp_path):
  kernel = np.arange(160, dtype="f").reshape(16, 10)
  for name, more in (("yes", {"normalize": np.array(True)}), ("no", {})):
    np.savez(tmp_path / f"{name}.npz", **{"head/kernel": kernel, **more})
  tasks = [
    f"{name}=digits:minival=minival:head=file:{tmp_path / name}.npz"
    for name in ("yes", "no")
  ]
  inputs = opened(sweep, ",".join(tasks))
  assert inputs.tasks["yes"].model.normalize
  assert not inputs.tasks["no"].model.normalize
  frozen_heads.make_heads(inputs, tmp_path / "heads")
  for name in ("yes", "no"):
    with np.load(tmp_path / "heads" / f"{name}.npz") as stored:
      assert ("normalize" in stored.files) == (name == "yes")
  frozen_heads.make_heads(inputs, tmp_path / "heads")  # Those of the files.
  leaves = inputs.frozen_heads["yes"].leaves["head"]
  np.testing.assert_array_equal(leaves["kernel"], kernel)


def test_a_probe_is_that_of_finetuning(sweep, tmp_path):
  tasks = "a=digits:minival=minival:head=probe"
  config = config_of(sweep, tasks, **{"probe.steps": 5})
  inputs = inputs_lib.open_inputs(config)
  frozen_heads.make_heads(inputs, tmp_path)
  expected = heads.fit(
    inputs.model,
    inputs.initial.load(),
    sj.data.open_source("digits", "train"),
    preprocess="value_range(-1, 1)",
    batch_size=100,
    num_classes=10,
    l2=1e-3,
    steps=5,
    mesh=inputs.mesh,
  )
  head = inputs.frozen_heads["a"].leaves["head"]
  np.testing.assert_allclose(head["kernel"], expected["kernel"], atol=1e-5)
  assert np.abs(head["kernel"]).max() > 0
  again = inputs_lib.open_inputs(config)
  with np.load(tmp_path / "a.npz") as stored:
    leaves = {k: stored[k] + 1 for k in stored.files}
  np.savez(tmp_path / "a.npz", **leaves)
  frozen_heads.make_heads(again, tmp_path)  # That of the file is used.
  np.testing.assert_array_equal(
    again.frozen_heads["a"].leaves["head"]["kernel"],
    np.asarray(head["kernel"]) + 1,
  )
