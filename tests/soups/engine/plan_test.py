# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import ml_dtypes
import numpy as np
import pytest

from soupjax.soups import rules
from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.engine import blocks, groups
from soupjax.soups.engine import plan as planning

BF16 = np.dtype(ml_dtypes.bfloat16)


def tree(dtype=np.float32, **more):
  return {
    "body": {"w": np.ones((4, 3), dtype), "b": np.zeros(3, dtype)},
    "head": {"w": np.ones((3, 2), dtype)},
    **more,
  }


def named(*trees):
  return [Ingredient.from_params(f"m{k}", t) for k, t in enumerate(trees)]


def fails(text, *trees, rule=None, base=None, **settings):
  base = None if base is None else Ingredient.from_params("base", base)
  with pytest.raises(ValueError, match=text) as e:
    planning.make(rule or rules.linear(), named(*trees), base=base, **settings)
  return str(e.value)


def test_a_plan_keeps_structure_and_counts_bytes():
  plan = planning.make(rules.linear(), named(tree(), tree(), tree()))
  assert list(plan.specs) == ["body/b", "body/w", "head/w"]
  assert plan.read_bytes == 3 * 84 and plan.write_bytes == 84
  assert plan.treedef == named(tree())[0].treedef
  assert len({id(g) for g in plan.groups.values()}) == 1


def test_all_differences_are_listed():
  other = tree(extra=np.zeros(1, np.float32))
  other["body"]["w"] = np.ones((5, 3), np.float32)
  del other["head"]
  text = fails("m1", tree(), other)
  assert "(5, 3)" in text and "(4, 3)" in text
  assert "'m1' lacks leaf 'head/w'" in text
  assert "'m1' has leaf 'extra', which 'm0' lacks" in text


def test_integers_against_floats_are_refused():
  fails("int32.*'n'.*float32", tree(n=np.float32(1)), tree(n=np.int32(1)))


def test_nothing_to_average():
  fails("at least one ingredient")
  twice = named(tree())[0]
  with pytest.raises(ValueError, match="'m0'"):
    planning.make(rules.linear(), [twice, twice])
  fails("block_bytes", tree(), block_bytes=0)


def test_rules_that_compute_in_float32_refuse_float64():
  trees = tree(np.float64), tree(np.float64)
  ties = rules.ties(density=0.5)
  for base in (tree(np.float64), tree(np.float32)):
    fails("'ties' computes in float32.*dtype='float32'", *trees, rule=ties,
          base=base)  # fmt: skip
  narrow = tree(np.float32)
  wide = Ingredient.from_params("base", tree(np.float64))
  plan = planning.make(ties, named(narrow, narrow), base=wide)
  group = plan.groups["body/w"]
  assert group.stack_dtype == group.base_dtype == np.float32


def test_dtypes():
  make = planning.make
  plan = make(rules.linear(), named(tree(BF16), tree(BF16)))
  assert {s.dtype for s in plan.specs.values()} == {BF16} and not plan.notes
  plan = make(rules.linear(), named(tree(BF16), tree()))
  assert {str(s.dtype) for s in plan.specs.values()} == {"float32"}
  assert "mixed dtypes, bfloat16 and float32" in plan.notes[0]
  plan = make(rules.linear(), named(tree(), tree()), dtype="bfloat16")
  assert {s.dtype for s in plan.specs.values()} == {BF16}
  for dtype in ("int8", "float64", "nonsense"):
    fails(dtype, tree(), dtype=dtype)


def test_dtype_leaves_integers_alone():
  trees = [tree(n=np.int32(1))] * 2
  plan = planning.make(rules.linear(), named(*trees), dtype="bfloat16")
  assert plan.specs["n"].dtype == np.int32
  assert plan.groups["n"].combine is None
  assert plan.order[0] == "n"


def test_select():
  base = Ingredient.from_params("base", tree())
  select = {"head": "keep", "body/b": "skip", "body": (1.0, 2.0)}
  plan = planning.make(
    rules.linear(), named(tree(), tree()), base=base, select=select
  )
  assert list(plan.specs) == ["body/w", "head/w"]
  assert plan.groups["head/w"].sources == (2,)
  assert plan.groups["body/w"].sources == (0, 1)
  assert plan.groups["body/w"].combine is rules.linear([1, 2]).combine


def test_what_has_weight_zero_is_not_read():
  odd = {"body": tree()["body"], "head": {"w": np.zeros((9, 9), "f")}}
  select = {"head": (1.0, 0.0)}
  plan = planning.make(rules.linear(), named(tree(), odd), select=select)
  assert plan.groups["head/w"].sources == (0,)
  assert plan.specs["head/w"].shape == tree()["head"]["w"].shape
  plan = planning.make(rules.linear([0, 3, 4]), named(odd, tree(), tree()))
  assert {group.sources for group in plan.groups.values()} == {(1, 2)}
  fails("lacks|shape", tree(), odd, select={"head": (1.0, 1.0)})


@pytest.mark.parametrize(
  "select,text",
  [
    ({"head": True}, "True for 'head'"),
    ({"head": (True, False)}, "(True, False).*'head'"),
    ({"nothing": "skip"}, "'nothing' in select.*body/"),
    ({"body": "skip", "body/w": "skip"}, "'body/w' in select"),
    ({"(": "skip"}, r"'\(' in select"),
    ({"head": "keep"}, "pass base="),
    ({"head": 0.5}, "Pass base=, or 2 weights"),
    ({"head": "kepp"}, "'kepp'.*expected 'keep', 'skip'"),
    ({"head": None}, "None"),
    ({"head": (1.0,)}, "head.*shape"),
    ({"head": (1.0, -1.0)}, "head.*sum to zero"),
    ({"head": float("nan")}, "'head'.*nan"),
    ({"": "skip"}, "'': 'skip'"),
  ],
)
def test_bad_selections(select, text):
  fails(text, tree(), tree(), select=select)


def test_a_selection_bridges_differences():
  backbone = {"body": tree()["body"]}
  ingredients = [tree(), tree()]
  ingredients[1]["head"]["w"] = np.ones((3, 5), np.float32)
  fails("head/w", *ingredients)
  plan = planning.make(
    rules.linear(), named(*ingredients), select={"head": "skip"}
  )
  assert set(plan.specs) == {"body/w", "body/b"}
  base = Ingredient.from_params("base", tree())
  plan = planning.make(
    rules.linear(),
    named(backbone, backbone),
    base=base,
    select={"head": "keep"},
  )
  assert plan.treedef == base.treedef


def test_the_base_must_fit():
  fails("needs a base", tree(), rule=rules.lerp(0.5))
  base = tree(more=np.zeros(1, np.float32))
  del base["body"]
  text = fails("base", tree(), rule=rules.lerp(0.5), base=base)
  assert "ingredients lack leaf 'more'" in text
  assert "base lacks leaf 'body/w'" in text
  base = tree()
  base["body"]["w"] = np.ones((9, 3), np.float32)
  fails(r"base \(base\).*\(9, 3\)", tree(), rule=rules.lerp(0.5), base=base)


def test_shares_of_processes_are_all_and_even():
  plan = planning.make(rules.linear(), named(tree(), tree()), block_bytes=64)
  parts = {k: [slices.whole(s.shape)] for k, s in plan.specs.items()}
  pieces = planning.pieces(plan, parts, {})
  assert len(pieces) > 5
  sizes = [slices.size(box) for _, box in pieces]
  for count in (1, 2, 3, 7):
    shares = [planning.share(pieces, sizes, i, count) for i in range(count)]
    assert sum(shares, []) == pieces
    filled = [sum(slices.size(b) for _, b in s) for s in shares]
    assert max(filled) - min(filled) <= 2 * max(
      slices.size(b) for _, b in pieces
    )


def test_rules_that_go_by_leaf_finish_one_after_the_other():
  leaves = {f"l{i}": np.ones((500 * i + 500, 3), "f") for i in range(4)}
  base = Ingredient.from_params("base", leaves)
  plan = planning.make(
    rules.dare(0.5), named(leaves, leaves), base=base, block_bytes=700
  )
  parts = {k: [slices.whole(s.shape)] for k, s in plan.specs.items()}
  pieces = planning.pieces(plan, parts, {})
  packed = list(blocks.pack(plan, pieces))
  spans = [span for block in packed for span in block.spans]
  assert [(span.leaf, span.box) for span in spans] == pieces
  assert all(len({span.leaf for span in block.spans}) == 1 for block in packed)


def test_blocks_are_full():
  shapes = {f"l{k}": (3 + k, 5) for k in range(30)}
  trees = [{k: np.ones(shape, "f") for k, shape in shapes.items()}] * 2
  plan = planning.make(rules.linear(), named(*trees), block_bytes=1920)
  parts = {k: [slices.whole(shape)] for k, shape in shapes.items()}
  packed = list(blocks.pack(plan, planning.pieces(plan, parts, {})))
  assert all(b.capacity - b.filled < 5 for b in packed[:-1])


def test_leaves_of_one_kind_are_planned_once(monkeypatch):
  made, new = [], groups.GroupMaker._new

  def counted(self, leaf, action):
    made.append(leaf)
    return new(self, leaf, action)

  monkeypatch.setattr(groups.GroupMaker, "_new", counted)
  params = {f"w{i}": np.ones(i + 1, np.float32) for i in range(50)}
  params |= {f"step{i}": np.int32(i) for i in range(50)}
  models = [Ingredient.from_params(name, params) for name in "ab"]
  plan = planning.make(rules.linear(), models)
  assert len(plan.groups) == 100
  assert len(made) == 2
