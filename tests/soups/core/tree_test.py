# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import tree


def test_flatten_names_leaves_in_tree_order():
  params = {"b": [np.ones(1), (np.ones(2), 3.0)], "a": {"x.y": np.ones(3)}}
  leaves, treedef = tree.flatten(params)
  assert list(leaves) == ["a/x.y", "b/0", "b/1/0", "b/1/1"]
  assert jax.tree.structure(params) == treedef


@pytest.mark.parametrize("empty", [{}, [], None, {"a": {}}])
def test_flatten_refuses_an_empty_tree(empty):
  with pytest.raises(ValueError, match="no leaves"):
    tree.flatten(empty)


def test_flatten_refuses_names_that_clash():
  with pytest.raises(ValueError, match="'a/b'"):
    tree.flatten({"a": {"b": np.ones(1)}, "a/b": np.ones(1)})


@pytest.mark.parametrize("leaf", ["text", object(), {"a"}])
def test_spec_refuses_leaves_that_are_not_arrays(leaf):
  with pytest.raises(ValueError, match=f"a {type(leaf).__name__}"):
    tree.spec(leaf)


@pytest.mark.parametrize(
  "dtype,expected",
  [
    (np.float32, True),
    (jnp.bfloat16, True),
    (jnp.float8_e4m3fn, True),
    (np.float64, True),
    (np.int32, False),
    (np.bool_, False),
    (np.uint8, False),
  ],
)
def test_is_float(dtype, expected):
  assert tree.is_float(np.zeros(1).astype(dtype)) == expected


def specs(**shapes):
  return {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}


def test_check_alike_lists_everything_that_differs():
  trees = {
    "good": specs(a=(2,), b=(3,), c=()),
    "other": specs(a=(5,), c=(1,), d=(7,)),
    "third": {**specs(a=(2,), b=(3,)), "c": np.int32(3)},
  }
  with pytest.raises(ValueError) as e:
    tree.check_alike(trees)
  text = str(e.value)
  assert "'other' has shape (5,) at leaf 'a', where 'good' has (2,)" in text
  assert "'other' lacks leaf 'b', which 'good' has" in text
  assert "'other' has leaf 'd', which 'good' lacks" in text
  assert "'third' has dtype int32 at leaf 'c', where 'good' has float32" in text
  assert text.index("leaf 'a'") < text.index("leaf 'b'") < text.index("'third'")


def test_check_alike_shortens_a_long_list():
  def differ(count):
    first = specs(**{f"leaf{k}": (k,) for k in range(count)})
    second = specs(**{f"leaf{k}": (k, 1) for k in range(count)})
    with pytest.raises(ValueError) as e:
      tree.check_alike({"a": first, "b": second})
    return str(e.value)

  # All leaves of a large model are named.
  assert differ(400).count("\n") == 400 and "leaf399" in differ(400)
  assert differ(600).count("\n") == 501 and "and 100 more" in differ(600)


def test_check_alike_compares_containers_too():
  array = np.ones(1)
  trees = {name: {"x/0": array} for name in ("list", "tuple")}
  treedefs = {
    "list": jax.tree.structure({"x": [0]}),
    "tuple": jax.tree.structure({"x": (0,)}),
  }
  tree.check_alike(trees)
  with pytest.raises(ValueError, match="'tuple' .*'list'"):
    tree.check_alike(trees, treedefs)


def test_float_widths_may_differ_but_integer_widths_may_not():
  tree.check_alike({"a": {"x": np.float32(1)}, "b": {"x": jnp.bfloat16(1)}})
  with pytest.raises(ValueError, match="'b'.*int64.*'x'"):
    tree.check_alike({"a": {"x": np.int32(1)}, "b": {"x": np.int64(1)}})


def test_check_equal_integers():
  a = {"step": np.int32(3), "w": np.float32(1), "mask": np.array([True, False])}
  tree.check_equal_integers({"a": a, "b": {**a, "w": np.float32(2)}})
  with pytest.raises(ValueError, match="'step'.*int32.*'b'.*'a'"):
    tree.check_equal_integers({"a": a, "b": {**a, "step": np.int32(4)}})
  with pytest.raises(ValueError, match="'mask'.*bool.*'c'.*'a'"):
    tree.check_equal_integers(
      {"a": a, "b": a, "c": {**a, "mask": np.array([True, True])}}
    )


def value_specs(leaf):
  return tree.value_specs({"a/w": leaf}, "'m0'")


@dataclasses.dataclass
class Unregistered:
  w: float = 1.0


@pytest.mark.parametrize(
  "leaf,message",
  [
    ("text", "str"),
    (len, "builtin_function_or_method"),
    (Unregistered(), "Unregistered.*register_dataclass"),
    (jax.ShapeDtypeStruct((2,), np.float32), "ShapeDtypeStruct"),
    (np.ones(2, ">f4"), ">f4, .*astype..float32"),
    (np.array(["a", "b"]), "<U1"),
    (np.array([None]), "object"),
    (np.zeros(2, [("x", "f4")]), "f4"),
    (np.zeros(2, "M8[s]"), "datetime64"),
  ],
  ids=str,
)
def test_a_leaf_that_cannot_be_averaged_is_named(leaf, message):
  with pytest.raises(ValueError, match=f"'a/w'.*'m0'.*{message}"):
    value_specs(leaf)


def test_random_keys_are_refused_by_name():
  with pytest.raises(ValueError, match="'a/w'.*'m0'.*key.*key_data"):
    value_specs(jax.random.key(0))


def test_an_object_in_place_of_a_tree_is_an_error():
  with pytest.raises(ValueError, match="tree of 'm0'.*Unregistered"):
    tree.value_specs({"": Unregistered()}, "'m0'")


def test_keys_that_cannot_be_put_in_order():
  with pytest.raises(ValueError, match="dict must all be of one type"):
    tree.flatten({1: np.ones(1), "1": np.zeros(1)})


def test_long_doubles_are_refused_by_name():
  with pytest.raises(ValueError, match="'w' of 'm0'.*astype.'float64'"):
    tree.value_specs({"w": np.ones(1, np.longdouble)}, "'m0'")


def test_tensors_of_torch_are_named_with_a_remedy():
  torch = pytest.importorskip("torch")
  for dtype in (torch.float32, torch.bfloat16):
    state = {"w": torch.ones(2, dtype=dtype)}
    with pytest.raises(ValueError, match="'w'.* Tensor of dtype torch"):
      sj.uniform_soup([state, state])
  converted = {"w": jnp.from_dlpack(state["w"])}
  assert sj.uniform_soup([converted])["w"].dtype == jnp.bfloat16


def test_the_collector_of_cycles_is_paused_and_goes_on_after_errors():
  with pytest.raises(KeyError), tree.without_collection():
    with tree.without_collection():
      assert not gc.isenabled()
    assert not gc.isenabled()
    raise KeyError
  assert gc.isenabled()
  gc.disable()
  try:
    with tree.without_collection():
      pass
    assert not gc.isenabled()
  finally:
    gc.enable()
