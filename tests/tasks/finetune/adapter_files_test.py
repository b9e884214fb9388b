# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import files
from soupjax.models import pretrained
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import run as finetune


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", ["timm", "hf_vit"])
@pytest.mark.parametrize(
  "kind,targets",
  [
    ("lora", ""),
    ("lora", r"(key|out|Dense_\d)/kernel$"),
    ("ia3", ""),
    ("ia3", r"(query|out|Dense_\d)/kernel$"),
  ],
)
def test_files_stand_for_the_trained_model(
  tmp_path, kind, targets, family, scan
):
  config = helpers.finetune_config(
    **{
      "adapter.kind": kind,
      "adapter.targets": targets,
      "adapter.rank": 2,
      "adapter.alpha": 3.0,
      "adapter.family": family,
      "model.scan": scan,
    }
  )
  path, base, params = helpers.saved_adapter(tmp_path, config)
  expected = pretrained.export(params, settings.build_model(config), family)
  opened = sj.open_adapter(path, base).load()
  assert opened.keys() == expected.keys()
  for leaf, value in expected.items():
    np.testing.assert_allclose(opened[leaf], value, atol=2e-5)


def test_a_sweep_of_adapters(tmp_path):
  config = helpers.finetune_config(
    **{"adapter.kind": "lora", "hyper.total": "4steps", "hyper.ema": (0.5,)}
  )
  sweep = [{"seed": 1}, {"seed": 2, "hyper.learning_rate": 0.05}]
  finetune.run(config, tmp_path / "run", sweep=sweep)
  base = tmp_path / "run/base/model.safetensors"
  adapters = sj.find_ingredients(
    tmp_path / "run/member_*/adapters/last*", base=base
  )
  full = sj.find_ingredients(tmp_path / "run/member_*/ingredients/last*")
  assert len(adapters) == len(full) == 4
  model = settings.build_model(config)
  for adapter, ingredient in zip(adapters, full):
    assert adapter.metrics == ingredient.metrics
    expected = pretrained.export(ingredient.load(), model, "timm")
    for leaf, value in adapter.load().items():
      np.testing.assert_allclose(value, expected[leaf], atol=1e-5)
  a, b = (helpers.flat_leaves(m.load()) for m in full[::2])
  changed = {k for k in a if (np.asarray(a[k]) != np.asarray(b[k])).any()}
  assert changed and all("query" in k or "value" in k or "head" in k
                         for k in changed)  # fmt: skip
  # Another base is noticed by its hash.
  other = dict(sj.load_params(base))
  other["norm.weight"] = other["norm.weight"] + 1
  sj.save_params(tmp_path / "other.safetensors", other)
  with pytest.raises(ValueError, match="last.*hash.*other.safetensors"):
    sj.open_adapter(adapters[0].path, tmp_path / "other.safetensors")
  config = json.loads(
    (tmp_path / "run/member_000/adapters/last/adapter_config.json").read_text()
  )
  assert config["rank_pattern"] == {
    f"^blocks.{k}.attn.qkv": 16 for k in range(model.depth)
  }


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"adapter.kind": "loha"}, "adapter.kind.*lora, ia3"),
    ({"adapter.kind": "lora", "adapter.rank": 0}, "adapter.rank"),
    ({"adapter.kind": "lora", "hyper.l2_sp": 0.1}, "l2_sp.*adapter"),
    ({"adapter.kind": "lora", "adapter.family": "x"}, "family.*timm"),
    (
      {"adapter.kind": "lora", "adapter.targets": "embedding/kernel"},
      "embedding/kernel.*'timm'",
    ),
  ],
)
def test_bad_settings_are_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    finetune.run(helpers.finetune_config(**changes), tmp_path / "run")


def test_many_processes_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  config = helpers.finetune_config(**{"adapter.kind": "lora"})
  with pytest.raises(ValueError, match="adapter.kind='lora' is for one pro"):
    finetune.run(config, tmp_path / "run")


def test_members_side_by_side_share_the_base(tmp_path, monkeypatch):
  config = helpers.finetune_config(
    **{"adapter.kind": "lora", "hyper.total": "4steps"}
  )
  held, save = [], pretrained.save_exported

  def saved(path, *args):
    lock = path.parents[1] / ".base.lock"
    with pytest.raises(ValueError, match="busy"):
      files.lock(lock, "busy")
    held.append(lock)
    save(path, *args)

  monkeypatch.setattr(pretrained, "save_exported", saved)
  finetune.run(config, tmp_path / "run")
  assert held
