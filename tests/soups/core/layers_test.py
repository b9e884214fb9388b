# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
from helpers import vit_specs
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import layers, tree


def vit(scan):
  return tree.flatten(vit_specs(width=8, depth=4, scan=scan))[0]


def test_depths_of_the_vit_of_this_package():
  depths = layers.depths(vit(scan=False))
  for leaf, at in depths.items():
    if "encoderblock_" in leaf:
      assert at == int(leaf.split("encoderblock_")[1][0]) / 3
    else:
      assert at == (0 if "embed" in leaf else 1), leaf


def test_layers_that_are_an_axis():
  with pytest.raises(ValueError, match="'Transformer/encoderblock'.*scanned"):
    layers.depths(vit(scan=True))
  # Modules in modules: "encoderblock/MlpBlock_0", "encoderblock/MlpBlock_1".
  specs = {
    f"blocks/MlpBlock_{i}/Dense_{j}/{what}": jax.ShapeDtypeStruct(shape, "f")
    for i in range(2)
    for j in range(2)
    for what, shape in {"bias": (5, 8), "kernel": (5, 8, 9)}.items()
  }
  with pytest.raises(ValueError, match="scanned"):
    layers.depths(specs)


def test_layers_that_are_an_axis_beside_numbered_modules():
  specs = {
    "layers/attn/kernel": (6, 4, 4),
    "layers/norm/scale": (6, 4),
    "head/Dense_0/kernel": (4, 4),
    "head/Dense_0/bias": (4,),
    "head/Dense_1/kernel": (4, 3),
    "head/Dense_1/bias": (3,),
  }
  specs = {k: jax.ShapeDtypeStruct(v, "f") for k, v in specs.items()}
  with pytest.raises(ValueError, match="'layers'.*stack 6 layers"):
    layers.depths(specs)


def test_names_alone_do_not_make_norms_layers():
  with pytest.raises(ValueError, match="numbered layer"):
    layers.depths([k for k in vit(scan=True) if "MAPHead" not in k])


def test_two_towers():
  rest = ["ln_1.weight", "attn.in_proj_weight", "mlp.c_fc.weight"]
  towers = [
    f"{tower}transformer.resblocks.{i}.{name}"
    for tower in ("visual.", "")
    for i in range(3)
    for name in rest
  ]
  more = {
    "visual.conv1.weight": 0,
    "visual.class_embedding": 0,
    "visual.ln_pre.weight": 0,
    "visual.ln_post.weight": 1,
    "token_embedding.weight": 0,
    "ln_final.weight": 1,
    "text_projection": 1,
  }
  depths = layers.depths([*towers, *more])
  expected = np.repeat([0, 0.5, 1, 0, 0.5, 1], 3)
  assert np.array_equal([depths[leaf] for leaf in towers], expected)
  assert {leaf: depths[leaf] for leaf in more} == more
  # One tower of another length: is it a part of the head?
  longer = [f"transformer.resblocks.3.{name}" for name in rest]
  with pytest.raises(ValueError, match="'resblocks.', 4 .*'visual.*', 3 "):
    layers.depths([*towers, *longer])


def test_stages_of_a_resnet():
  blocks = {1: 2, 2: 3, 3: 6, 4: 2}
  leaves = [
    f"layer{stage}.{i}.{name}.weight"
    for stage, count in blocks.items()
    for i in range(count)
    for name in ("conv1", "bn1", "conv2", "bn2")
  ]
  leaves.append("layer2.0.downsample.0.weight")
  depths = layers.depths([*leaves, "conv1.weight", "bn1.weight", "fc.weight"])
  for leaf in leaves:
    assert depths[leaf] == (int(leaf[5]) - 1) / 3
  ends = ("conv1.weight", "bn1.weight", "fc.weight")
  assert [depths[leaf] for leaf in ends] == [0, 0, 1]


def test_a_wrapper_with_a_number_hides_nothing():
  leaves = [f"ViT_0/block_{i}/Dense_0/kernel" for i in range(3)]
  assert list(layers.depths(leaves).values()) == [0, 0.5, 1]


def test_layers_without_modules_in_them():
  depths = layers.depths(["Dense_0/w", "Dense_1/w", "head/w"])
  assert list(depths.values()) == [0, 1, 1]
  assert list(layers.depths(["mlp.w.2", "mlp.w.10", "embed"]).values()) == [
    0,
    1,
    0,
  ]


@pytest.mark.parametrize(
  "leaves,text",
  [
    (["a/w", "b/w"], "numbered layer"),
    (["block_0/w", "head/w"], "numbered layer"),
    (["Conv_0/w", "Conv_1/w", "Dense_0/w", "Dense_1/w"], "Conv_.*Dense_"),
    (["part_0/a/w", "part_0/b/w", "part_1/c/w"], "part_"),
  ],
)
def test_ambiguous_layers_are_an_error(leaves, text):
  with pytest.raises(ValueError, match=text):
    layers.depths(leaves)


@pytest.mark.parametrize("action", ["keep", "skip", 0.5])
@pytest.mark.parametrize("last", ["block_3", "block_0"])
def test_select_leaves_the_depth_of_others_alone(action, last):
  params = {f"block_{i}": {"w": np.ones(2, "f")} for i in range(4)}
  base = jax.tree.map(np.zeros_like, params)

  def run(rule, **more):
    models = [
      sj.Ingredient.from_params("a", params),
      sj.Ingredient.from_params("b", params),
    ]
    mixed = sj.mix(
      rule, models, base=sj.Ingredient.from_params("base", base), **more
    )
    return {k: float(v["w"][0]) for k, v in mixed.params.items()}

  whole = run(sj.rules.lerp([0.0, 1.0]))
  assert np.allclose(list(whole.values()), [0, 1 / 3, 2 / 3, 1])
  part = run(sj.rules.lerp([0.0, 1.0]), select={last: action})
  for leaf in set(whole) - {last}:
    assert part[leaf] == whole[leaf]


def test_select_and_slerp():
  a = {f"block_{i}": np.array([1, 0], "f") for i in range(3)}
  b = {f"block_{i}": np.array([0, 1], "f") for i in range(3)}
  models = [sj.Ingredient.from_params(n, t) for n, t in (("a", a), ("b", b))]
  soup = sj.mix(
    sj.rules.slerp([0.0, 1.0]), models, select={"block_2": "skip"}
  ).params
  assert np.allclose(soup["block_0"], a["block_0"])
  assert np.allclose(soup["block_1"], [0.5**0.5] * 2)  # Halfway.


@pytest.mark.parametrize(
  "leaf,layer",
  [
    ("Transformer/block_3/LayerNorm_0/scale", "Transformer/block_3"),
    ("Transformer/block_13/MlpBlock_0/Dense_1/bias", "Transformer/block_13"),
    ("Transformer/encoder_norm/scale", "Transformer/encoder_norm"),
    ("blocks.3.norm1.weight", "blocks.3"),
    ("layer3.0.conv1.weight", "layer3"),
    ("layers/7/attn/q", "layers/7"),
    ("head/kernel", "head"),
    ("embedding/kernel", "embedding"),
    ("pos_embedding", "pos_embedding"),
    ("cls", "cls"),
  ],
)
def test_layer_of(leaf, layer):
  assert layers.layer_of(leaf) == layer


def test_a_name_is_split_at_its_first_number():
  assert layers.split_number("blocks.03.norm1.w") == ("blocks.", 3, ".norm1.w")
  assert layers.split_number("a/h_7") == ("a/h_", 7, "")
  assert layers.split_number("head/kernel") is None


def test_scanned_blocks_have_the_names_of_single_ones():
  names = layers.block_names("img/Transformer/encoderblock/x/w", 2)
  assert names == [f"img/Transformer/encoderblock_{i}/x/w" for i in (0, 1)]
  assert layers.block_names("encoderblock_0/x", 2) == []
  assert layers.block_names("my_encoderblock/x", 2) == []


def test_ranks_are_integers_around_the_layers():
  leaves = ["embed/w", "h.0.a.w", "h.2.a.w", "h.10.a.w", "head/w"]
  ranks, count = layers.ranks(leaves)
  assert count == 3 and list(ranks.values()) == [-1, 0, 1, 2, 3]
