# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import models
from soupjax.soups import depth, tree


def vit(scan):
  model = models.ViT(
    num_classes=3,
    patch_size=4,
    width=8,
    depth=4,
    num_heads=2,
    pool_type="map",
    scan=scan,
  )
  image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return tree.flatten(variables["params"])[0]


def test_our_own_vit():
  found = depth.of(vit(scan=False))
  for leaf, at in found.items():
    if "encoderblock_" in leaf:
      assert at == int(leaf.split("encoderblock_")[1][0]) / 3
    else:
      assert at == (0 if "embed" in leaf else 1), leaf


def test_layers_that_are_an_axis():
  found = depth.of(vit(scan=True))
  for leaf, at in depth.of(vit(scan=False)).items():
    name, _, number = leaf.partition("encoderblock_")
    if number:
      stack = found[f"{name}encoderblock{number[1:]}"]
      assert stack.shape == (4,) and stack[int(number[0])] == at
    else:
      assert found[leaf] == at
  # Modules in modules: "encoderblock/MlpBlock_0", "encoderblock/MlpBlock_1".
  specs = {
    f"blocks/MlpBlock_{i}/Dense_{j}/{what}": jax.ShapeDtypeStruct(shape, "f")
    for i in range(2)
    for j in range(2)
    for what, shape in {"bias": (5, 8), "kernel": (5, 8, 9)}.items()
  }
  for stack in depth.of(specs).values():
    np.testing.assert_array_equal(stack, np.linspace(0, 1, 5))


def test_first_axes_that_may_not_be_layers():
  def of(**shapes):
    specs = {k: jax.ShapeDtypeStruct(s, "f") for k, s in shapes.items()}
    return depth.of(specs)

  block = {"block/Dense_0/bias": (5, 8), "block/Dense_1/kernel": (5, 8, 9)}
  assert of(**block)["block/Dense_0/bias"].shape == (5,)
  with pytest.raises(ValueError, match="have 2 axes, the first of length 8"):
    of(**{"mlp/Dense_0/kernel": (8, 9), "mlp/Dense_1/kernel": (8, 9)})
  with pytest.raises(ValueError, match="'block/Dense_0/bias', of length 5, or"):
    of(**block, **{f"tail/Block_{i}/mlp/bias": (8,) for i in range(2)})
  other = {k.replace("block", "tower"): (7, *s[1:]) for k, s in block.items()}
  with pytest.raises(ValueError, match="of length 5 or 7"):
    of(**block, **other)
  # Only a part of the block has numbers: it is a part of it all the same.
  part = {
    "layers/mlp/wi_0/kernel": (5, 8, 9),
    "layers/mlp/wi_1/kernel": (5, 8, 9),
    "layers/attention/kernel": (5, 8, 8),
    "layers/norm/scale": (5, 8),
  }
  found = of(**part, embed=(7, 8))
  assert found.pop("embed") == 0
  assert {stack.shape for stack in found.values()} == {(5,)}
  # A second stack, which nothing says to be layers.
  beside = {"norms/scale": (5, 8), "norms/bias": (5, 8)}
  with pytest.raises(ValueError, match="also that of 'norms'"):
    of(**part, **beside)
  with pytest.raises(ValueError, match="of length 1"):
    of(**{k: (1, *shape[1:]) for k, shape in block.items()})


def test_names_alone_do_not_make_norms_layers():
  with pytest.raises(ValueError, match="no layers"):
    depth.of([k for k in vit(scan=True) if "MAPHead" not in k])


def test_two_towers():
  rest = ["ln_1.weight", "attn.in_proj_weight", "mlp.c_fc.weight"]
  towers = [
    f"{tower}transformer.resblocks.{i}.{one}"
    for tower in ("visual.", "")
    for i in range(3)
    for one in rest
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
  found = depth.of([*towers, *more])
  expected = np.repeat([0, 0.5, 1, 0, 0.5, 1], 3)
  assert np.array_equal([found[leaf] for leaf in towers], expected)
  assert {leaf: found[leaf] for leaf in more} == more
  # One tower of another length: is it a part of the head?
  longer = [f"transformer.resblocks.3.{one}" for one in rest]
  with pytest.raises(ValueError, match="Which are the layers"):
    depth.of([*towers, *longer])


def test_stages_of_a_resnet():
  blocks = {1: 2, 2: 3, 3: 6, 4: 2}
  leaves = [
    f"layer{stage}.{i}.{one}.weight"
    for stage, count in blocks.items()
    for i in range(count)
    for one in ("conv1", "bn1", "conv2", "bn2")
  ]
  leaves.append("layer2.0.downsample.0.weight")
  found = depth.of([*leaves, "conv1.weight", "bn1.weight", "fc.weight"])
  for leaf in leaves:
    assert found[leaf] == (int(leaf[5]) - 1) / 3
  ends = ("conv1.weight", "bn1.weight", "fc.weight")
  assert [found[leaf] for leaf in ends] == [0, 0, 1]


def test_a_wrapper_with_a_number_hides_nothing():
  leaves = [f"ViT_0/block_{i}/Dense_0/kernel" for i in range(3)]
  assert list(depth.of(leaves).values()) == [0, 0.5, 1]


def test_layers_without_modules_in_them():
  found = depth.of(["Dense_0/w", "Dense_1/w", "head/w"])
  assert list(found.values()) == [0, 1, 1]
  assert list(depth.of(["mlp.w.2", "mlp.w.10", "embed"]).values()) == [0, 1, 0]


@pytest.mark.parametrize(
  "leaves,text",
  [
    (["a/w", "b/w"], "No leaf has a numbered layer"),
    (["block_0/w", "head/w"], "No leaf has a numbered layer"),
    (["Conv_0/w", "Conv_1/w", "Dense_0/w", "Dense_1/w"], "Which are"),
    (["part_0/a/w", "part_0/b/w", "part_1/c/w"], "not alike"),
  ],
)
def test_what_is_not_clear(leaves, text):
  with pytest.raises(ValueError, match=text):
    depth.of(leaves)


@pytest.mark.parametrize("action", ["keep", "skip", 0.5])
@pytest.mark.parametrize("last", ["block_3", "block_0"])
def test_select_leaves_the_depth_of_others_alone(action, last):
  one = {f"block_{i}": {"w": np.ones(2, "f")} for i in range(4)}
  base = jax.tree.map(np.zeros_like, one)

  def run(rule, **more):
    models = [
      sj.Ingredient.from_params("a", one),
      sj.Ingredient.from_params("b", one),
    ]
    found = sj.mix(
      rule, models, base=sj.Ingredient.from_params("base", base), **more
    )
    return {k: float(v["w"][0]) for k, v in found.params.items()}

  whole = run(sj.rules.lerp([0.0, 1.0]))
  assert np.allclose(list(whole.values()), [0, 1 / 3, 2 / 3, 1])
  part = run(sj.rules.lerp([0.0, 1.0]), select={last: action})
  for leaf in set(whole) - {last}:
    assert part[leaf] == whole[leaf]


def test_select_and_slerp():
  a = {f"block_{i}": np.array([1, 0], "f") for i in range(3)}
  b = {f"block_{i}": np.array([0, 1], "f") for i in range(3)}
  models = [sj.Ingredient.from_params(n, t) for n, t in (("a", a), ("b", b))]
  found = sj.mix(
    sj.rules.slerp([0.0, 1.0]), models, select={"block_2": "skip"}
  ).params
  assert np.allclose(found["block_0"], a["block_0"])
  assert np.allclose(found["block_1"], [0.5**0.5] * 2)  # Halfway.
