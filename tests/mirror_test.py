# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The tests mirror the sources: soupjax/a/b.py has tests/a/b_test.py."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Sources without their own test file -> the tests that cover them.
COVERED_BY = {
  # Parts of public functions, tested through these.
  "analysis/findings": "analysis/diagnose",
  "analysis/geometry": "analysis/diagnose",
  "checkpoints/adapters/peft_config": "checkpoints/adapters/opened",
  "checkpoints/adapters/peft_files": "checkpoints/adapters/combined",
  "checkpoints/adapters/targets": "checkpoints/adapters/opened",
  "checkpoints/adapters/updates": "checkpoints/adapters/opened",
  "checkpoints/bucket_writer": "tasks/finetune/bucket",
  "checkpoints/destination": "checkpoints/mix",
  "checkpoints/mesh_writer": "checkpoints/mix_processes",
  "checkpoints/provenance": "checkpoints/mix",
  "checkpoints/save": "checkpoints/mix",
  "checkpoints/formats/block_writer": "checkpoints/mix",
  "checkpoints/formats/byte_ranges": "checkpoints/formats/safetensors",
  "checkpoints/formats/orbax_arrays": "checkpoints/formats/orbax",
  "checkpoints/formats/orbax_writer": "checkpoints/formats/orbax",
  "checkpoints/formats/safetensors_writer": "checkpoints/formats/safetensors",
  "checkpoints/formats/unpickle": "checkpoints/formats/torch",
  "data/op_strings": "data/preprocess",
  "data/paired/base": "data/paired/tables",
  "evaluators/batches": "evaluators/evaluator",
  "models/encoder": "models/vit",
  "models/layers": "models/vit",
  "models/clip": "models/pretrained/two_towers",
  "models/tiny_clip": "tasks/zeroshot",
  "models/text": "models/pretrained/two_towers",
  "models/pretrained/text_configs": "models/pretrained/two_towers",
  "models/pretrained/text_tables": "models/pretrained/two_towers",
  "models/pretrained/architectures": "models/pretrained/detect",
  "models/pretrained/configs": "models/pretrained/detect",
  "models/pretrained/families": "models/pretrained/convert",
  "models/pretrained/foreign": "models/pretrained/convert",
  "models/pretrained/mappings": "models/pretrained/convert",
  "models/pretrained/mismatch": "models/pretrained/convert",
  **dict.fromkeys(
    (
      "models/pretrained/other_models/bit",
      "models/pretrained/other_models/mixer",
    ),
    "models/pretrained/other_models/timm_torch",
  ),
  "models/pretrained/positions": "models/pretrained/convert",
  "models/pretrained/tables": "models/pretrained/convert",
  "models/pretrained/timm_models": "models/pretrained/detect",
  "models/rope": "models/vit",
  "report/labels": "report/figures",
  "report/scores": "tasks/cook/judge",
  "report/sections": "report/page",
  "report/style": "report/page",
  "soups/engine/blocks": "soups/engine/run",
  "soups/engine/groups": "soups/engine/run",
  "soups/greedy/decisions": "soups/greedy/soup",
  "soups/learned/checks": "soups/learned/soup",
  "soups/learned/granularity": "soups/learned/soup",
  "soups/learned/options": "soups/learned/soup",
  "soups/learned/streamed_passes": "soups/learned/soup",
  "soups/rules/base": "soups/rules/every_rule",
  "soups/rules/rule_inputs": "soups/rules/coefficients_by_layer",
  "soups/rules/thresholds": "soups/rules/sparse",
  "soups/search/blackbox": "soups/search/paint",
  "soups/search/candidates": "soups/search/paint",
  "sweeps": "config",
  "tasks/cook/config": "tasks/cook/run",
  "tasks/cook/evaluate": "tasks/cook/run",
  "tasks/cook/export": "tasks/cook/infer",
  "tasks/cook/inputs": "tasks/cook/run",
  "tasks/cook/needs": "tasks/estimate",
  "tasks/evaluate/config": "tasks/evaluate/run",
  "tasks/finetune/config": "tasks/finetune/loop",
  "tasks/finetune/job": "tasks/finetune/loop",
  "tasks/finetune/needs": "tasks/estimate",
  "tasks/finetune/run": "tasks/finetune/loop",
  "tasks/finetune/step": "tasks/finetune/loop",
  "tasks/heads": "tasks/search/inputs",
  "tasks/programs/averaging": "tasks/cook/programs",
  "tasks/records": "tasks/cook/run",
  "tasks/reasons/base": "tasks/reasons/run",
  "tasks/reasons/ensemble": "tasks/reasons/run",
  "tasks/reasons/features": "tasks/reasons/run",
  "tasks/reasons/greedy": "tasks/reasons/run",
  "tasks/reasons/pairs": "tasks/reasons/run",
  "tasks/reasons/plane": "tasks/reasons/run",
  "tasks/search/config": "tasks/search/inputs",
  "tasks/search/frozen_heads": "tasks/search/inputs",
  "tasks/search/arithmetic": "tasks/search/methods",
  "tasks/search/averages": "tasks/search/methods",
  "tasks/search/learned": "tasks/search/methods",
  "tasks/search/patching": "tasks/search/methods",
  "tasks/search/results": "tasks/search/run",
  "tasks/search/work": "tasks/search/run",
  "train/recipes/lit": "train/recipes/flyp",
  # The program, and its files on disk after kills.
  "main": "tasks/command",
  "report/unseen": "tasks/cook/heads",
  "processes": "tasks/finetune/processes",
  "tasks/workdir": "tasks/cook/resume",
  "version": "packaging",
}

# Tests without a source file of the same name -> what they test.
SEAMS = {
  "benchmarks/accelerator": "mirrors benchmarks/",
  "benchmarks/evidence/cifar10": "mirrors benchmarks/",
  "benchmarks/evidence/clip": "mirrors benchmarks/",
  "benchmarks/evidence/common": "mirrors benchmarks/",
  "benchmarks/evidence/pacs": "mirrors benchmarks/",
  "benchmarks/digit_tasks": "mirrors benchmarks/",
  "benchmarks/kills": "mirrors benchmarks/",
  "benchmarks/run": "mirrors benchmarks/",
  "benchmarks/fuzz_readers": "mirrors benchmarks/",
  "launch/gke": "mirrors launch/",
  "launch/launch": "mirrors launch/",
  "tasks/finetune/bucket": "runs whose directory is in a bucket",
  "tasks/cook/bucket": "the same for cooking runs",
  "launch/ray_sweep": "mirrors launch/",
  "notebooks": "mirrors notebooks/",
  "docs": "the site and its links",
  "docs_commands": "commands and code of README and docs/",
  "doctest": "examples in all docstrings",
  "packaging": "the wheel",
  "mirror": "the tests themselves",
  "structure": "imports of all modules",
  "doors": "models in any form, in every function of models",
  "open_lists": "functions and models from outside the package",
  # One module in several processes, which start slowly.
  "checkpoints/mix_processes": "checkpoints/mix in several processes",
  "evaluators/processes": "evaluators/evaluator in several processes",
  "tasks/cook/backbones_torch": "tasks/cook on models of timm",
  "tasks/cook/export_torch": "soups of CLIPs, opened by the original libraries",
  "tasks/cook/judge_torch": "the torch program of docs/judge.md",
  "tasks/cook/processes": "tasks/cook in several processes",
  "tasks/finetune/processes": "tasks/finetune in several processes",
  # Programs that are killed and started again.
  "tasks/cook/resume": "tasks/cook after kills",
  "tasks/finetune/resume": "tasks/finetune after kills",
  "tasks/main_job": "the three commands of launch/local.sh after kills",
  # Several modules together.
  "checkpoints/adapters/peft": "checkpoints/adapters against PEFT",
  "evaluators/early_rejection": "evaluators/evaluator with soups/greedy",
  "models/pretrained/as_ingredient": "models/pretrained with checkpoints",
  "models/pretrained/configs_torch": "configs beside files of PyTorch",
  "models/pretrained/convert_torch": "models/pretrained against PyTorch",
  "models/pretrained/onnx_torch": "graphs against onnxruntime",
  "models/pretrained/other_models/timm_torch": "Mixers and ResNets of timm",
  "models/pretrained/zoo_torch": "all vision transformers of timm",
  "report/choices": "report after cooking by several metrics",
  "soups/greedy/soup_turns": "soups/greedy/soup with the options of `Turns`",
  "soups/learned/soup_base": "soups/learned/soup with a base",
  "soups/evaluators": "evaluators that modify trees, in every function",
  "soups/linear_combination": "all functions give equal sums",
  "soups/rules/coefficients_by_layer": "rules with coefficients by layer",
  "soups/rules/every_rule": "properties of all rules",
  "soups/rules/peers": "rules against other libraries' formulas",
}


def names(folder: pathlib.Path, ending: str) -> set[str]:
  paths = (p.relative_to(folder).as_posix() for p in folder.rglob(f"*{ending}"))
  return {path.removesuffix(ending) for path in paths}


def differences(
  sources: set[str], tests: set[str], covered_by: dict, seams: dict
) -> list[str]:
  """Returns missing tests, and wrong or superfluous entries of the lists."""
  return [
    *(f"{name} has no test" for name in sources - tests - covered_by.keys()),
    *(f"{name} has a test" for name in covered_by.keys() & tests),
    *(f"there is no source {name}" for name in covered_by.keys() - sources),
    *(f"there is no test {name}" for name in {*covered_by.values()} - tests),
    *(f"{name} tests no source" for name in tests - sources - seams.keys()),
    *(f"{name} mirrors a source" for name in seams.keys() & sources),
    *(f"there is no test {name}" for name in seams.keys() - tests),
  ]


def test_the_tests_mirror_the_sources():
  sources = names(ROOT / "soupjax", ".py")
  sources = {name for name in sources if not name.endswith("__init__")}
  tests = names(ROOT / "tests", "_test.py")
  assert not differences(sources, tests, COVERED_BY, SEAMS)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"sources": {"a", "b", "c"}}, "c has no test"),
    ({"sources": {"a"}}, "there is no source b"),
    ({"tests": {"a", "b", "x"}}, "b has a test"),
    ({"tests": {"a", "x", "y"}}, "y tests no source"),
    ({"tests": {"a"}}, "there is no test x"),
    ({"covered_by": {"b": "z"}}, "there is no test z"),
    ({"seams": {"x": "", "a": ""}}, "a mirrors a source"),
  ],
)
def test_differences_are_noticed(change, message):
  lists = {"sources": {"a", "b"}, "tests": {"a", "x"}}
  lists |= {"covered_by": {"b": "a"}, "seams": {"x": "both"}}
  assert not differences(**lists)
  assert differences(**lists | change) == [message]
