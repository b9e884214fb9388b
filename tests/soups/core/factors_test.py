# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Factors of products are refused by every recipe."""

import ml_dtypes
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import factors

LORA = ["q.lora_A.weight", "q.lora_B.weight"]
ADAPTERS = [
  LORA,
  ["m.lora_embedding_A.default", "m.lora_embedding_B.default"],
  ["unet.to_q_lora.down.weight", "unet.to_q_lora.up.weight"],
  ["lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight"],
  ["lora_te_q.hada_w1_a", "lora_te_q.hada_w1_b"],
  ["lora_te_q.lokr_w1", "lora_te_q.lokr_w2"],
  ["q.vera_lambda_b", "q.vera_lambda_d"],
  ["q.lora_A.weight", "q.lora_magnitude_vector"],
  ["encoder/q/lora_a", "encoder/q/lora_b"],
  ["q/kernel_lora_a", "q/kernel_lora_b"],
  ["q.loraA.weight", "q.loraB.weight"],
  ["q.lora.0.weight", "q.lora.1.weight"],
  ["q.oft_r.weight"],
]


def models(specs):
  make = sj.Ingredient.from_params
  return [
    make(name, {k: np.ones(2, d) for k, d in specs.items()}) for name in "ab"
  ]


@pytest.mark.parametrize("leaves", ADAPTERS, ids=lambda leaves: leaves[0])
def test_factors_of_adapters_are_named(leaves):
  specs = dict.fromkeys([*leaves, "head.weight"], np.float32)
  with pytest.raises(ValueError, match=" and ".join(map(repr, leaves))):
    sj.uniform_soup(models(specs))


@pytest.mark.parametrize(
  "recipe",
  [
    lambda ingredients: sj.mix(sj.rules.linear(), ingredients),
    lambda ingredients: sj.mix(
      sj.rules.task_arithmetic(1.0), ingredients[:1], base=ingredients[1]
    ),
    lambda ingredients: sj.wise_ft(*ingredients, 0.5),
    lambda ingredients: sj.greedy_soup(ingredients, lambda params: 1.0),
  ],
)
def test_every_recipe_refuses_factors(recipe):
  specs = dict.fromkeys(LORA, np.float32)
  with pytest.raises(ValueError, match="lora_A.*merge_and_unload"):
    recipe(models(specs))


@pytest.mark.parametrize(
  "leaves",
  [
    ["lora.weight", "lora.bias"],
    ["q.lora_A.weight", "q.lora_A.bias"],
    ["w_lora.lora.0.weight", "w_lora.lora.2.weight", "w_lora.lora.2.bias"],
    ["floraA.weight", "floraB.weight"],
  ],
)
def test_layers_with_such_names_are_averaged(leaves):
  sj.uniform_soup(models(dict.fromkeys(leaves, np.float32)))


def test_one_factor_alone_is_averaged():
  specs = dict.fromkeys([*LORA, "lora_unet_q.alpha"], np.float32)
  a, b = models(specs)
  soup = sj.uniform_soup([a, b], base=a, select={"lora_A": "keep"})
  assert set(soup) == set(specs)
  sj.uniform_soup(models({"flora_a": np.float32, "dia3_l": np.float32}))


def test_one_vector_of_ia3_is_a_factor_of_its_base():
  specs = dict.fromkeys(["head.weight", "model.q.ia3_l"], np.float32)
  with pytest.raises(ValueError, match="'model.q.ia3_l' of 'a'.*base=.*mix_ad"):
    sj.uniform_soup(models(specs))
  a, b = models(specs)
  sj.uniform_soup([a, b], select={"ia3": "skip"})


def with_shapes(shapes):
  return [
    sj.Ingredient.from_params(
      name, {k: np.ones(v, np.float32) for k, v in shapes.items()}
    )
    for name in "ab"
  ]


@pytest.mark.parametrize(
  "shapes",
  [
    {"conv.weight_g": (1, 1, 5), "conv.weight_v": (2, 3, 5)},
    {"last_layer.weight_g": (7, 1), "last_layer.weight_v": (7, 2)},
    {"l.weight_hh_l0_g": (), "l.weight_hh_l0_v": (2, 3)},
    {
      "q.parametrizations.weight.original0": (4, 1),
      "q.parametrizations.weight.original1": (4, 2),
    },
  ],
)
def test_norm_and_direction_of_a_weight_are_factors(shapes):
  names = " and ".join(map(repr, shapes))
  with pytest.raises(ValueError, match=f"{names} of 'a'.*remove_weight_norm"):
    sj.uniform_soup(with_shapes({**shapes, "q.bias": (4,)}))


def test_leaves_with_names_as_in_weight_normalisation():
  for other in ({"weight_g": (4, 2), "weight_v": (4, 2)}, {"weight_g": (4,)}):
    sj.uniform_soup(with_shapes(other))


@pytest.mark.parametrize(
  "leaf,dtype,scale",
  [
    ("q.weight", ml_dtypes.float8_e4m3fn, "q.weight_scale"),
    ("q.weight", ml_dtypes.float8_e4m3fn, "q.weight_scale_inv"),
    ("q.weight", ml_dtypes.float8_e5m2, "q.scale_weight"),
    ("q/kernel", np.int8, "q/kernel_scale"),
    ("q.weight", np.int8, "q.SCB"),
    ("q.weight", np.uint8, "q.weight.absmax"),
    ("q.qweight", np.int32, "q.scales"),
    ("experts.up_blocks", np.uint8, "experts.up_scales"),
    ("q.weight", np.uint8, "q.weight.quant_state.absmax"),  # bitsandbytes
    ("q.W_q", np.uint8, "q.scale"),  # HQQ
    ("q/W_q", np.int32, "q/meta/scale_q"),
    ("q.weight._data", np.int8, "q.weight._scale"),  # quanto
    ("q.weight._data", ml_dtypes.float8_e4m3fn, "q.weight._scale"),
    ("q/frozen/qvalue", np.int8, "q/frozen/scale/0"),  # AQT
    ("q/kernel/array/qvalue", np.int8, "q/kernel/array/scale"),  # Qwix
    ("q._weight_qdata", np.int8, "q._weight_scale"),  # torchao
  ],
)
def test_quantised_leaves_are_named_with_their_scale(leaf, dtype, scale):
  with pytest.raises(ValueError, match=f"{leaf!r} of 'a'.*{scale!r}.*Deq"):
    sj.uniform_soup(models({scale: np.float32, leaf: dtype, "b": np.float32}))


@pytest.mark.parametrize("action", ["keep", "skip"])
def test_a_kept_scale_does_not_fit_an_average(action):
  leaves = {
    "q.weight_scale": np.float32,
    "q.weight": ml_dtypes.float8_e4m3fn,
    "b": np.float32,
  }
  a, b = models(leaves)
  with pytest.raises(ValueError, match="'q.weight'.*'q.weight_scale'"):
    sj.uniform_soup([a, b], base=a, select={"scale": action})
  sj.uniform_soup([a, b], base=a, select={"q": "keep"})


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.float8_e4m3fn])
def test_norms_have_scales_too(dtype):
  specs = {"norm/scale": dtype, "norm/bias": dtype, "kernel": dtype}
  factors.check({k: np.ones(2, d) for k, d in specs.items()}, "a")
  ids = {"pos/ids": np.ones(2, np.int32), "pos/scale": np.ones(2)}
  factors.check(ids, "a")


def test_last_names_of_many_leaves_are_searched_once():
  factors._scale_suffix.cache_clear()
  specs = {
    f"layer{i}.{name}": np.zeros(2, np.float32)
    for i in range(200)
    for name in ("norm.scale", "dense.kernel")
  }
  factors.check(specs, "a")
  assert factors._scale_suffix.cache_info().misses == 2
