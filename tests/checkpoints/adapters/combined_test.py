# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

import soupjax as sj

RNG = np.random.default_rng(0)
BASE = {
  "q.weight": RNG.normal(size=(9, 12)).astype("f"),
  "q.bias": RNG.normal(size=9).astype("f"),
  "conv.weight": RNG.normal(size=(6, 3, 2, 2)).astype("f"),
  "emb.weight": RNG.normal(size=(11, 4)).astype("f"),
  "head.weight": RNG.normal(size=(2, 7)).astype("f"),
}


def shapes(rank):
  return {
    "q.lora_A.weight": (rank, 12),
    "q.lora_B.weight": (9, rank),
    "conv.lora_A.weight": (rank, 3, 2, 2),
    "conv.lora_B.weight": (6, rank, 1, 1),
    "emb.lora_embedding_A": (rank, 11),
    "emb.lora_embedding_B": (4, rank),
  }


def save(folder, seed, leaves, **config):
  rng = np.random.default_rng(seed)
  values = {
    f"base_model.model.{k}": rng.normal(size=shape).astype("f")
    for k, shape in leaves.items()
  }
  sj.save_params(folder / "adapter_model.safetensors", values)
  config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3} | config
  (folder / "adapter_config.json").write_text(json.dumps(config))
  return folder


@pytest.fixture
def three(tmp_path):
  """Adapters of other ranks and scales; the last lacks a module."""
  less = {k: v for k, v in shapes(3).items() if not k.startswith("conv")}
  return [
    save(tmp_path / "a", 0, shapes(2)),
    save(tmp_path / "b", 1, shapes(1), r=1, use_rslora=True),
    save(tmp_path / "c", 2, less, r=3, lora_alpha=1),
  ]


def near(a, b, atol=2e-6):
  assert a.keys() == b.keys()
  for leaf in a:
    np.testing.assert_allclose(a[leaf], b[leaf], rtol=0, atol=atol)


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_the_exact_adapter_is_the_soup_of_the_models(tmp_path, three, weights):
  models = sj.find_ingredients(list(map(str, three)), base=BASE)
  soup = sj.mix(sj.rules.linear(weights), models).params
  out = sj.mix_adapters(three, tmp_path / "out", weights=weights)
  assert out.ranks == {"q": 6, "conv": 3, "emb": 6} and out.error == 0
  near(sj.open_adapter(tmp_path / "out", BASE).load(), soup)
  record = sj.provenance(tmp_path / "out/adapter_model.safetensors")
  assert [i["name"] for i in record["ingredients"]] == ["a", "b", "c"]


def test_weights_that_do_not_sum_to_one(tmp_path, three):
  models = [sj.TaskVector(BASE, sj.open_adapter(p, BASE)) for p in three]
  expected = (2 * models[0] - models[1] + models[2]).apply_to(BASE)
  sj.mix_adapters(three, tmp_path / "out", weights=[2, -1, 1], normalize=False)
  near(sj.open_adapter(tmp_path / "out", BASE).load(), expected, 1e-5)


def test_a_lower_rank_is_the_best_one(tmp_path, three):
  models = sj.find_ingredients(list(map(str, three)), base=BASE)
  soup = sj.mix(sj.rules.linear(), models).params
  out = sj.mix_adapters(three, tmp_path / "out", rank=2)
  reduced = sj.open_adapter(tmp_path / "out", BASE).load()
  lost = whole = 0.0
  for module in ("q", "conv", "emb"):
    leaf = f"{module}.weight"
    delta = np.asarray(soup[leaf], np.float64) - BASE[leaf]
    delta = delta.reshape(len(delta), -1)
    tail = np.linalg.svd(delta, compute_uv=False)[2:]
    error = np.linalg.norm(tail) / np.linalg.norm(delta)
    lost, whole = lost + np.sum(tail**2), whole + np.sum(delta**2)
    np.testing.assert_allclose(out.errors[module], error, rtol=1e-5)
    difference = np.linalg.norm(np.asarray(soup[leaf]) - reduced[leaf])
    np.testing.assert_allclose(difference, np.linalg.norm(tail), rtol=1e-4)
  np.testing.assert_allclose(out.error, np.sqrt(lost / whole), rtol=1e-5)


def test_vectors_of_ia3(tmp_path):
  vectors = {"q.ia3_l": (9, 1), "head.ia3_l": (1, 7)}
  config = {"peft_type": "IA3", "feedforward_modules": ["head"]}
  paths = [
    save(tmp_path / "a", 0, vectors, **config),
    save(tmp_path / "b", 1, {"q.ia3_l": (9, 1)}, **config),
  ]
  models = sj.find_ingredients(list(map(str, paths)), base=BASE)
  soup = sj.mix(sj.rules.linear([1, 3]), models).params
  sj.mix_adapters(paths, tmp_path / "out", weights=[1, 3])
  near(sj.open_adapter(tmp_path / "out", BASE).load(), soup)


def test_heads_are_averaged(tmp_path):
  leaves = shapes(2) | {"head.weight": (5, 7)}
  config = {"modules_to_save": ["head"]}
  paths = [save(tmp_path / n, k, leaves, **config) for k, n in enumerate("ab")]
  models = sj.find_ingredients(list(map(str, paths)), base=BASE)
  soup = sj.mix(sj.rules.linear(), models).params
  sj.mix_adapters(paths, tmp_path / "out")
  near(sj.open_adapter(tmp_path / "out", BASE).load(), soup)
  with pytest.raises(ValueError, match=r"'head.weight'.*sum to 2.*base="):
    sj.mix_adapters(paths, tmp_path / "new", weights=[1, 1], normalize=False)
  paths.append(save(tmp_path / "c", 2, shapes(2)))
  with pytest.raises(ValueError, match=r"head.weight.*c/adapter_config.*base="):
    sj.mix_adapters(paths, tmp_path / "new")


def test_adapters_of_heads_alone(tmp_path):
  leaves = {"head.weight": (3, 7)}
  paths = [
    save(tmp_path / name, k, leaves, modules_to_save=["head"])
    for k, name in enumerate("ab")
  ]
  mixed = sj.mix_adapters(paths, tmp_path / "out")
  assert mixed.ranks == {}
  models = [sj.open_adapter(path, BASE).load() for path in paths]
  expected = {
    leaf: (models[0][leaf] + models[1][leaf]) / 2 for leaf in models[0]
  }
  near(sj.open_adapter(tmp_path / "out", BASE).load(), expected)


@pytest.mark.parametrize(
  "leaves,config,message",
  [
    (shapes(2), {"fan_in_fan_out": True}, "fan_in_fan_out: False and True"),
    (
      shapes(2),
      {"base_model_name_or_path": "other"},
      "base_name: 'vit' and 'other'",
    ),
    ({"q.ia3_l": (9, 1)}, {"peft_type": "IA3"}, "kind: 'LORA' and 'IA3'"),
    (
      {**shapes(2), "q.lora_A.weight": (2, 13)},
      {},
      r"'q' has factors of several shapes.*13",
    ),
    (shapes(2), {"r": 3}, r"b/adapter_config.*\(6, 2, 1, 1\).*rank 3"),
    (
      {
        "q.lora_A.weight": (2, 12),
        "q.lora_B.weight": (9, 2),
        "q.lora_magnitude_vector": (9,),
      },
      {"use_dora": True},
      "b/adapter_config.json is a DoRA adapter.*base=",
    ),
  ],
)
def test_adapters_that_differ_are_named(tmp_path, leaves, config, message):
  same = {"base_model_name_or_path": "vit"}
  paths = [
    save(tmp_path / "a", 0, shapes(2), **same),
    save(tmp_path / "b", 1, leaves, **{**same, **config}),
  ]
  with pytest.raises(ValueError, match=message):
    sj.mix_adapters(paths, tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_biases_of_factors_that_only_some_have(tmp_path, order):
  linear = {k: v for k, v in shapes(2).items() if k.startswith("q.")}
  biased = linear | {"q.lora_B.bias": (9,)}
  paths = [
    save(tmp_path / "a", 0, linear),
    save(tmp_path / "b", 1, biased, lora_bias=True),
  ]
  paths = [paths[k] for k in order]
  models = sj.find_ingredients(list(map(str, paths)), base=BASE)
  soup = sj.mix(sj.rules.linear(), models).params
  sj.mix_adapters(paths, tmp_path / "out")
  near(sj.open_adapter(tmp_path / "out", BASE).load(), soup)
  config = json.loads((tmp_path / "out/adapter_config.json").read_text())
  assert config["lora_bias"] is True


def test_hashes_of_bases(tmp_path, three):
  def record(path, text):
    (path / "hyperparameters.json").write_text(json.dumps({"base_hash": text}))

  record(three[0], "abc")
  sj.mix_adapters(three, tmp_path / "out")
  content = (tmp_path / "out/hyperparameters.json").read_text()
  assert json.loads(content) == {"base_hash": "abc"}
  record(three[2], "abd")
  with pytest.raises(ValueError, match="a/adapter.* and .*c/adapter.*hashes"):
    sj.mix_adapters(three, tmp_path / "new")


def test_names_of_two_versions_of_one_library(tmp_path):
  names = [
    "vit.encoder.layer.0.attention.attention.query",
    "vit.layers.0.attention.q_proj",
  ]
  leaves = [
    {f"{n}.lora_A.weight": (2, 12), f"{n}.lora_B.weight": (9, 2)} for n in names
  ]
  paths = [save(tmp_path / n, k, leaves[k]) for k, n in enumerate("ab")]
  with pytest.raises(ValueError, match="query' and 'vit.layers.*same layer"):
    sj.mix_adapters(paths, tmp_path / "out")
  both = save(tmp_path / "c", 2, leaves[0] | leaves[1])
  with pytest.raises(ValueError, match="query' and 'vit.layers.*same layer"):
    sj.open_adapter(both, {f"{names[0]}.weight": BASE["q.weight"]})


def test_nothing_is_replaced(tmp_path, three):
  with pytest.raises(ValueError, match="s3://b/a: adapters .* local"):
    sj.mix_adapters(three, "s3://b/a")
  # Before anything is read: the other adapters do not exist.
  with pytest.raises(ValueError, match="a exists already"):
    sj.mix_adapters([three[0], tmp_path / "missing"], three[0])
  for name in ("out.safetensors", "out.bin"):
    with pytest.raises(ValueError, match=rf"{name}: .*folder .*without"):
      sj.mix_adapters(three, tmp_path / name)
    assert not (tmp_path / name).exists()
  sj.mix_adapters(three, tmp_path / "lr_0.1")
  with pytest.raises(ValueError, match="rank must.*0"):
    sj.mix_adapters(three, tmp_path / "out", rank=0)
