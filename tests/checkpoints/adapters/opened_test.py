# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj

RNG = np.random.default_rng(0)
PREFIX = "base_model.model."
BLOCK = "encoder.layer.3"


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


BASE = {
  "q.weight": normal(700, 300),
  "q.bias": normal(700),
  "conv.weight": normal(6, 3, 2, 2),
  "c1d.weight": normal(5, 8),
  "emb.weight": normal(11, 4),
  "head.weight": normal(2, 7),
}


def save(folder, leaves, **config):
  """Writes an adapter; returns its path."""
  named = {PREFIX + k: v for k, v in leaves.items()}
  sj.save_params(folder / "adapter_model.safetensors", named)
  config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
  (folder / "adapter_config.json").write_text(json.dumps(config))
  return folder


def lora(module="q", out=700, into=300, rank=2):
  return {
    f"{module}.lora_A.weight": normal(rank, into),
    f"{module}.lora_B.weight": normal(out, rank),
  }


def test_a_weight_gets_the_scaled_product(tmp_path):
  leaves = lora()
  a, b = leaves.values()
  model = sj.open_adapter(save(tmp_path / "a", leaves), BASE)
  expected = BASE["q.weight"] + 2 * b.astype("d") @ a.astype("d")
  assert model.name == "a" and model.specs.keys() == BASE.keys()
  np.testing.assert_array_equal(
    model.read("q.weight"), expected.astype(np.float32)
  )
  np.testing.assert_array_equal(model.read("q.bias"), BASE["q.bias"])


@pytest.mark.parametrize(
  "index",
  [
    (slice(430, 440),),
    (slice(0, 700), slice(5, 6)),
    (slice(3, 690, 7), slice(1, 300, 9)),
    (slice(5, 5),),
  ],
)
@pytest.mark.parametrize("dora", [False, True])
def test_parts_have_the_bits_of_the_whole(tmp_path, index, dora):
  leaves = lora()
  if dora:
    leaves["q.lora_magnitude_vector"] = normal(700)
  model = sj.open_adapter(save(tmp_path, leaves, use_dora=dora), BASE)
  np.testing.assert_array_equal(
    model.read("q.weight", index=index), model.read("q.weight")[index]
  )


def test_the_soup_is_that_of_products(tmp_path):
  folders, products = [], []
  for k, alpha in enumerate((4, 16)):
    leaves = lora()
    a, b = leaves.values()
    folders.append(save(tmp_path / f"run{k}", leaves, lora_alpha=alpha))
    products.append(alpha / 2 * b.astype("d") @ a.astype("d"))
  models = sj.find_ingredients(tmp_path / "run*", base=BASE)
  assert [m.name for m in models] == ["run0", "run1"]
  out = tmp_path / "soup.safetensors"
  sj.mix(sj.rules.linear(), models, out=out, block_bytes=1 << 16)
  np.testing.assert_allclose(
    sj.load_params(out)["q.weight"],
    BASE["q.weight"] + sum(products) / 2,
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "leaves,config,message",
  [
    ({"q.lora_A.weight": (2, 300)}, {}, r"'q'.*lacks.*lora_B"),
    ({"q.lora_B.weight": (700, 2)}, {}, r"'q'.*lacks.*lora_A"),
    (lora(), {"r": 3}, r"'q'.*\(2, 300\).*\(700, 2\).*rank 3"),
    (lora(), {"rank_pattern": {"q": 4}}, "'q'.*rank 4"),
    (
      lora() | {"q.lora_B.weight": (700, 3)},
      {},
      r"'q'.*\(2, 300\).*\(700, 3\)",
    ),
    (lora(into=301), {}, r"'q'.*\(700, 301\).*q.weight.*\(700, 300\)"),
    (
      lora("other"),
      {"base_model_name_or_path": "org/vit"},
      r"\['other'\].*c1d.weight.*org/vit",
    ),
    ({"q.bias": (7,)}, {"bias": "all"}, r"\(7,\).*q.bias.*\(700,\)"),
    (lora(), {"use_dora": True}, "lora_magnitude_vector"),
    (lora() | {"q.lora_magnitude_vector": (700,)}, {}, "use_dora=False"),
    (lora(), {"peft_type": "LOHA"}, "LOHA.*merge_and_unload"),
    (lora(), {"init_lora_weights": "pissa"}, "pissa.*base"),
    (lora(), {"use_qalora": True}, "use_qalora.*merge_and_unload"),
    (lora(), {"use_something": True}, "use_something.*does not know"),
    (lora(), {"lora_alpha": None}, "lora_alpha.*None"),
    ({"q.ia3_l": (701, 1)}, {"peft_type": "IA3"}, r"\(701, 1\).*q.weight"),
    (
      {**lora(), "q.weight": (700, 300)},
      {"modules_to_save": ["q"]},
      "'q.weight' is adapted and saved whole",
    ),
    (
      {"mha.lora_A.weight": (2, 4), "mha.lora_B.weight": (12, 2)},
      {},
      "'mha' is a torch.nn.MultiheadAttention",
    ),
  ],
)
def test_what_cannot_be_applied_is_named(tmp_path, leaves, config, message):
  leaves = {
    k: normal(*v) if isinstance(v, tuple) else v for k, v in leaves.items()
  }
  base = BASE | {"mha.in_proj_weight": normal(12, 4)}
  with pytest.raises(ValueError, match=message):
    sj.open_adapter(save(tmp_path, leaves, **config), base)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match="no adapter_model.safetensors"):
    sj.open_adapter(tmp_path, BASE)
  save(tmp_path, lora())
  (tmp_path / "adapter_config.json").unlink()
  with pytest.raises(ValueError, match="no adapter_config.json.*lora_alpha"):
    sj.open_adapter(tmp_path, BASE)


def test_a_quantised_base_is_refused(tmp_path):
  base = BASE | {"q.weight": np.ones((700, 300), np.int8)}
  with pytest.raises(ValueError, match="'q.weight'.*int8.*quantised"):
    sj.open_adapter(save(tmp_path, lora()), base)


@pytest.mark.parametrize(
  "door",
  [
    sj.open_ingredient,
    sj.find_ingredients,
    sj.load_params,
    lambda path: sj.uniform_soup([path]),
    lambda path: sj.mix(sj.rules.linear(), [path]),
  ],
)
def test_without_a_base_the_advice_is_to_give_one(tmp_path, door):
  save(tmp_path / "run", lora())
  with pytest.raises(ValueError, match="run is an adapter.*open_adapter.*base"):
    door(str(tmp_path / "run"))


def test_a_change_of_either_file_is_noticed(tmp_path):
  sj.save_params(tmp_path / "base.safetensors", BASE)
  folder = save(tmp_path / "run", lora())
  model = sj.open_adapter(folder, tmp_path / "base.safetensors")
  model.read("q.weight")
  (folder / "adapter_model.safetensors").unlink()
  sj.save_params(folder / "adapter_model.safetensors", {"x": np.ones(2, "f")})
  with pytest.raises(ValueError, match="run.*changed.*adapter_model"):
    model.read("q.weight")


def test_a_new_head_replaces_that_of_the_base(tmp_path):
  leaves = lora() | {
    "head.weight": normal(5, 7),
    "extra.bias": normal(3),
  }
  folder = save(tmp_path, leaves, modules_to_save=["head", "extra"])
  model = sj.open_adapter(folder, BASE)
  params = model.load()
  assert set(params) == {*BASE, "extra.bias"}
  np.testing.assert_array_equal(params["head.weight"], leaves["head.weight"])
  np.testing.assert_array_equal(params["extra.bias"], leaves["extra.bias"])
  part = model.read("head.weight", index=(slice(1, 3),))
  np.testing.assert_array_equal(part, leaves["head.weight"][1:3])


def test_a_new_head_of_timm_has_other_classes(tmp_path):
  leaves = lora() | {"head.weight": normal(5, 7)}
  folder = save(tmp_path / "lora", leaves, modules_to_save=["head"])
  (tmp_path / "base").mkdir()
  sj.save_params(tmp_path / "base/model.safetensors", BASE)
  config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3}
  file = tmp_path / "base/config.json"
  file.write_text(json.dumps({**config, "label_names": ["a", "b", "c"]}))
  sj.mix(
    sj.rules.linear(),
    [sj.open_adapter(folder, tmp_path / "base")],
    out=tmp_path / "soup/model.safetensors",
  )
  written = json.loads((tmp_path / "soup/config.json").read_text())
  assert written == {**config, "num_classes": 5}


@pytest.mark.parametrize(
  "written,inside",
  [
    ("vit.layers.3.attention.q_proj", f"{BLOCK}.attention.attention.query"),
    ("vit.layers.3.mlp.fc2", f"vit.{BLOCK}.output.dense"),
    (f"{BLOCK}.output.dense", f"vit.{BLOCK}.output.dense"),
    ("d.encoder.layer.0.mlp.fc1", "d.encoder.layer.0.mlp.fc1"),
    ("d.layer.0.attention.o_proj", "d.layer.0.attention.output.dense"),
  ],
)  # fmt: skip
def test_names_of_transformers_5_are_found(tmp_path, written, inside):
  base = {f"{inside}.weight": normal(6, 4), "head.weight": normal(2)}
  if inside.startswith("d.enc"):
    base["d.encoder.layer.0.attention.attention.query.weight"] = normal(2)
  leaves = lora(written, 6, 4)
  a, b = leaves.values()
  model = sj.open_adapter(save(tmp_path, leaves), base)
  np.testing.assert_allclose(
    model.read(f"{inside}.weight"),
    base[f"{inside}.weight"] + 2 * b @ a,
    rtol=1e-5,
    atol=1e-6,
  )


def test_dtypes_are_those_of_the_base(tmp_path):
  base = {"q.weight": normal(4, 3).astype(jnp.bfloat16), "q.bias": normal(4)}
  leaves = lora(out=4, into=3) | {"q.bias": normal(4).astype(np.float16)}
  a, b, bias = leaves.values()
  model = sj.open_adapter(save(tmp_path, leaves, bias="all"), base)
  expected = base["q.weight"].astype("d") + 2 * b.astype("d") @ a.astype("d")
  np.testing.assert_array_equal(
    model.read("q.weight"), expected.astype(jnp.bfloat16)
  )
  np.testing.assert_array_equal(model.read("q.bias"), bias.astype("f"))


def test_a_base_in_chunks(tmp_path):
  sj.save_params(tmp_path / "base", BASE)  # Orbax.
  folder = save(tmp_path / "run", lora())
  model = sj.open_adapter(folder, tmp_path / "base")
  expected = sj.open_adapter(folder, BASE).read("q.weight")
  out = tmp_path / "soup.npz"
  sj.mix(sj.rules.linear(), [model], out=out, block_bytes=1 << 12)
  np.testing.assert_array_equal(sj.load_params(out)["q.weight"], expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("recorded", [("vit-b",) * 2, ("vit-b", None)])
def test_adapters_of_one_base_do_not_warn(tmp_path, recorded):
  for k, name in enumerate(recorded):
    save(tmp_path / f"m{k}", lora(), base_model_name_or_path=name)
  assert len(sj.find_ingredients(tmp_path / "m*", base=BASE)) == 2


def test_adapters_of_two_bases_are_named(tmp_path):
  for k, name in enumerate(("vit-b", "vit-b", "deit-b")):
    save(tmp_path / f"m{k}", lora(), base_model_name_or_path=name)
  with pytest.warns(UserWarning, match=r"'vit-b' \(m0\), 'deit-b' \(m2\)"):
    sj.find_ingredients(tmp_path / "m*", base=BASE)
  for k in range(3):  # Hashes were compared instead, where they are recorded.
    path = tmp_path / f"m{k}" / "hyperparameters.json"
    path.write_text(json.dumps({"base_hash": "1234"}))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sj.find_ingredients(tmp_path / "m*", base=BASE)
