# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

import soupjax as sj


def tree(seed):
  rng = np.random.default_rng(seed)
  return {
    "block_0": {"w": rng.normal(size=(7, 5)).astype("f")},
    "block_1": {"w": rng.normal(size=(7, 5)).astype("f")},
    "head": rng.normal(size=9).astype("f"),
  }


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def near(a, b, size=1e-6):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.abs(np.asarray(x) - np.asarray(y)).max() < size


def plus(a, b, factor=1.0):
  return jax.tree.map(lambda x, y: x + factor * y, a, b)


def minus(a, b):
  return plus(a, b, -1.0)


PRE, A, B, C = tree(0), tree(1), tree(2), tree(3)


def test_applied_to_its_start_gives_the_fine_tuned_model():
  same(sj.TaskVector(PRE, A).apply_to(PRE), A)


def test_negation_then_addition_is_the_identity():
  task = sj.TaskVector(PRE, A)
  near((-task).apply_to(task.apply_to(B)), B)
  same((task + -task).apply_to(B), B)
  same((task - task).apply_to(B), B)


def test_a_scale_is_wise_ft():
  edited = sj.TaskVector(PRE, A).apply_to(PRE, 0.3)
  near(edited, sj.wise_ft(PRE, A, 0.3), 3e-7)
  near((0.3 * sj.TaskVector(PRE, A)).apply_to(PRE), edited, 3e-7)


def test_an_equal_mean_of_tasks_is_the_uniform_soup():
  tasks = [sj.TaskVector(PRE, m) for m in (A, B, C)]
  soup = sj.uniform_soup(
    [sj.Ingredient.from_params(str(k), m) for k, m in enumerate((A, B, C))]
  )
  near((sum(tasks) / 3).apply_to(PRE), soup, 3e-7)


def test_analogies():
  same(sj.TaskVector(PRE, C).apply_to(PRE), C)
  a, b, c = (sj.TaskVector(PRE, m) for m in (A, B, C))
  near((c + (b - a)).apply_to(PRE), plus(C, minus(B, A)), 2e-6)
  # B is A: nothing is left but C.
  same((c + (a - sj.TaskVector(PRE, A))).apply_to(PRE), C)


def test_another_target():
  edited = (2 * sj.TaskVector(PRE, A)).apply_to(B)
  near(edited, plus(B, minus(A, PRE), 2.0), 3e-6)


def test_coefficients_by_leaf_and_by_depth():
  task = sj.TaskVector(PRE, A)
  edited = task.apply_to(PRE, {"head": 0.0, "block": 1.0})
  same(edited["head"], PRE["head"])
  same(edited["block_1"], A["block_1"])
  edited = task.apply_to(PRE, [0.0, 1.0])
  same(edited["block_0"], PRE["block_0"])
  same(edited["block_1"], A["block_1"])
  same(edited["head"], A["head"])


def test_files_cost_nothing_until_applied(tmp_path):
  for name, params in (("pre", PRE), ("a", A), ("b", B)):
    sj.save_params(tmp_path / f"{name}.safetensors", params)
  paths = {n: str(tmp_path / f"{n}.safetensors") for n in ("pre", "a", "b")}
  task = sj.TaskVector(paths["pre"], paths["a"])
  lazy = sj.TaskVector("nowhere.npz", paths["a"])  # Not opened.
  with pytest.raises(ValueError, match="nowhere"):
    lazy.apply_to(PRE)
  same(task.apply_to(paths["pre"]), A)
  same(task.apply_to(sj.open_ingredient(paths["pre"])), A)
  out = str(tmp_path / "out.safetensors")
  mixed = (task + sj.TaskVector(paths["pre"], paths["b"])).apply_to(
    paths["pre"], 0.5, out=out
  )
  assert mixed.path == out
  # Three files, each once: the target is the start of both.
  assert mixed.report.bytes_read == 3 * 79 * 4
  near(
    sj.load_params(out), plus(plus(PRE, minus(A, PRE), 0.5), minus(B, PRE), 0.5)
  )
  assert sj.provenance(out)["settings"]["scale"] == 0.5
  # The base cancels, and is not read.
  assert len((task - sj.TaskVector(paths["pre"], paths["b"])).terms) == 2


def test_the_record_has_every_term(tmp_path):
  def terms(task, target, name):
    record = sj.provenance(
      task.apply_to(target, out=tmp_path / f"{name}.npz").path
    )
    names = [entry["name"] for entry in record["ingredients"]]
    assert all(name in names for name, _ in record["settings"]["terms"])
    return record["settings"]["terms"]

  both = sj.TaskVector(B, A) + 2 * sj.TaskVector(B, C)
  assert terms(both, B, "trees") == [
    ["term 1", 1.0],
    ["term 2", 2.0],
    ["target", -3.0],
  ]
  # Another target: the start is a term of its own.
  assert [c for _, c in terms(both, PRE, "other")] == [1.0, -3.0, 2.0]
  same_name = [sj.Ingredient.from_params("best", t) for t in (A, C)]
  both = sum(sj.TaskVector(B, model) for model in same_name)
  assert terms(both, B, "names") == [
    ["term 1, best", 1.0],
    ["term 2, best", 1.0],
    ["target", -2.0],
  ]
  assert terms(both - both, B, "nothing") == []


def test_bad_input():
  task = sj.TaskVector(PRE, A)
  for nothing in (task - task, sj.TaskVector(PRE, PRE)):
    with pytest.raises(ValueError, match="'zzz'"):
      nothing.apply_to(PRE, {"zzz": 1.0})
    same(nothing.apply_to(PRE, {"": 2.0}), PRE)
    same(nothing.apply_to(PRE, [0.0, 1.0]), PRE)
  with pytest.raises(ValueError, match="factor.*nan"):
    float("nan") * task
  with pytest.raises(TypeError):
    task + 1
  with pytest.raises(TypeError):
    task * task
  with pytest.raises(ValueError, match="'nothing'"):
    task.apply_to(PRE, {"nothing": 1.0})
  with pytest.raises(ValueError, match="1 leaves.*'head'"):
    task.apply_to(PRE, {"block": 1.0})
  other = {**A, "head": np.zeros(3, "f")}
  with pytest.raises(ValueError, match="head"):
    sj.TaskVector(PRE, other).apply_to(PRE)
