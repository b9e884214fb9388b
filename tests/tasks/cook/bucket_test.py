# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cooking with ingredients and run directory in a bucket."""

import json
import pathlib

from etils import epath
import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import buckets
from soupjax.checkpoints import companions, model_card
from soupjax.tasks import preprocessing
from soupjax.tasks.cook import run as cook


def test_cook_from_and_to_a_bucket(store, bucket, tmp_path, capsys):
  sweep = helpers.three_members()
  for file in pathlib.Path(sweep).rglob("*"):
    name = file.relative_to(sweep)
    if file.is_file() and ".start.lock" not in name.parts:
      key = f"sweep/{name}"
      store.client.put_object(
        Bucket=bucket[5:], Key=key, Body=file.read_bytes()
      )
  changes = {"cook.wise_ft_points": 2, "tests": "test=test"}
  local, remote = tmp_path / "soups", f"{bucket}/soups"
  cook.run(helpers.cook_config(sweep, **changes), local)
  config = helpers.cook_config(f"{bucket}/sweep", **changes)

  # Killed after the greedy soup; what is finished is kept.
  def stop(name):
    if name.endswith("soups/greedy/params/commit_success.txt"):
      raise KeyboardInterrupt

  write = buckets.write

  def interrupted(path, data):
    write(path, data)
    stop(str(path))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(buckets, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
      cook.run(config, remote)
  assert not buckets.exists(f"{remote}/soups/learned_layer")
  page = cook.run(config, remote)
  assert str(page) == f"{remote}/report.html"
  rows = buckets.read(f"{remote}/results.jsonl").decode().splitlines()
  assert [json.loads(row) for row in rows] == helpers.result_rows(local)
  names = {name for name in store.names(bucket[5:]) if "soups/" in name}
  on_disk = {f"soups/{p.relative_to(local)}" for p in local.rglob("*.json*")}
  assert {n for n in on_disk if "/params/" not in n} <= names
  # A finished run is printed.
  capsys.readouterr()
  cook.run(config, remote)
  assert "Finished before" in capsys.readouterr().out
  buckets.write(f"{bucket}/sweep/member_000/ingredients/last/params/x", b"new")
  with pytest.raises(ValueError, match=r"member_000.*changed"):
    cook.run(config, remote)


def test_the_record_of_a_sweep_in_a_bucket(store, bucket):
  config = {"task": "finetune", "data": {"eval_ops": "value_range(-1, 1)"}}
  buckets.write(f"{bucket}/sweep/m/config.json", json.dumps(config).encode())
  for path in ("sweep/m/ingredients/last", "sweep/m/last"):
    assert preprocessing.recorded(f"{bucket}/{path}") == "value_range(-1, 1)"
  assert preprocessing.recorded(f"{bucket}/last") is None


def test_configs_and_cards_of_exports(store, bucket, tmp_path):
  config = tmp_path / "config.json"
  config.write_text('{"model_type": "vit"}')
  model = sj.Ingredient.from_params("model", {"a": np.zeros(1)})
  companions.copy([config], f"{bucket}/export/uniform", model)
  model_card.write(epath.Path(f"{bucket}/export/uniform"), "card")
  assert store.names(bucket[5:]) == [
    "export/uniform/README.md",
    "export/uniform/config.json",
  ]
