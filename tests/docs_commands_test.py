# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the commands and the Python of README and docs/, shortened if long.

New commands and code there run as written, unless a table here changes them.
"""

import doctest
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
import pytest
import torch_models

import soupjax as sj
from soupjax.data import batch_ops, image_ops
from soupjax.models import tiny_clip

ROOT = helpers.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that do not run here, and why.
ELSEWHERE = {
  r"pip install .*": "needs the network; tests/packaging_test.py installs",
  r"(EXTRAS=\S+ )?launch/test\.sh.*": "these tests",
  r"\.ci/run.*": "these tests",
  r"launch/local\.sh.*": "tests/launch/launch_test.py and tests/tasks run it",
  r"launch/(tpu_vm\.sh|slurm\.sbatch).*": "needs a cluster; launch_test.py",
  r"sbatch .*": "needs a cluster; launch_test.py",
  r"mkdocs .*|mypy": "jobs of .github/workflows/ci.yml",
  r"python (-m )?benchmarks.*": "takes minutes",
  r"launch/local_processes\.sh .*": "test_local_processes_run",
  r"(python )?launch/(gke\.sh|ray_sweep\.py).*|docker .*": "launch_test.py",
  r"soupjax .*--topology=.*": "takes minutes; tests/tasks/programs",
  r"soupjax --config=configs/mix\.py:fisher .*": "tasks/statistics_test.py",
  r"tfds build.*": "needs TensorFlow and data",
}
# Pattern -> changes of the commands that it matches; the first match counts.
# Other commands run as written.
SHORTER = {
  # The lists of OpenCLIP, which may not be installed.
  r"soupjax --config=configs/finetune/clip_b32_i1k\.py.*": [
    (r"$", " --dry_run --config.zeroshot.names= --config.zeroshot.templates={}")
  ],
  # Their model comes from a checkpoint that is not here.
  r"soupjax --config=configs/finetune/(flyp|lit|car_ft)\.py.*": [
    (r"\.py ", ".py:runlocal "),
    (r"--config\.init\.path=\S+", "--dry_run"),
  ],
  # Weights and images are not here, so these only print the plan.
  r"soupjax --config=configs/finetune/.*": [(r"$", " --dry_run")],
  # A sweep of digits stands for ImageNet's.
  r"soupjax --config=configs/cook\.py:sweep=.*": [
    (r"'--config\.tests=[^']*'|--config\.tests=\S+", ""),
    (r"$", " --config.tests=test=test --config.cook.learned.granularities=()"),
  ],
  # Two fine-tuned models and one dataset stand for CLIP's.
  r"soupjax --config=configs/search\.py:addition .*": [
    (r"clip\.safetensors", "vit-base/model.safetensors"),
    (r"tuned/\*", "runs/[01]/model.safetensors"),
    (r"--config\.tasks=\S+", "--config.tasks=cars=folder:photos:minival=val"),
    (r"$", " --config.search.points=2"),
  ],
  # Two models and one dataset that `write_models` writes.
  r"soupjax --config=configs/statistics\.py .*": [
    (r"ingredients=\S+", "ingredients=runs/[01]/model.safetensors"),
    (r"folder:cars", "folder:photos"),
    (r"minival=train", "minival=val"),
  ],
  # docs/cook.md has the same command with one more test set.
  r"soupjax --config=configs/cook\.py .*tests=test=test": [
    (r"$", " --dry_run")
  ],
  r"soupjax --config=configs/cook\.py.*": [
    (r"$", " --config.cook.learned.granularities=()"),
    (r"$", " --config.cook.wise_ft_points=2"),
  ],
}
# The same for blocks of Python that contain a pattern; None skips the block.
PYTHON = {
  r"sj\.search\.paint_sequential\(.*\.\.\.": None,  # Signatures, cut short.
  r"timm\.|transformers\.": None,  # test_other_libraries_load_soups
  r"imagenet2012": [
    (
      r'"imagenet2012", "train", data_dir="/data/tfds"',
      '"folder:photos", "val"',
    ),
    (r"1024", "4"),
    (r"=26", "=1"),
  ],
  r"in_memory\.hold": [(r"512", "4")],
  r'variant\("B/16"\)': [
    (r'variant\("B/16"\)', "TINY"),
    (r"384", "8"),
    (r"num_classes=10", "num_classes=3"),
  ],
  r"steps=\d+": [(r"steps=\d+", "steps=2")],
  r"load_digits\(\)": [(r"depth=4", "depth=1")],  # As in TINY_SWEEP.
}


def blocks(path: pathlib.Path, language: str) -> list[str]:
  text = path.read_text(encoding="utf-8")
  fence = rf"^```{language}\n(.*?)^```"
  return re.findall(fence, text, flags=re.M | re.S)


def commands(path: pathlib.Path) -> list[str]:
  """Returns the commands of a page on one line each, without comments."""
  lines, before = [], ""
  for block in blocks(path, "sh"):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      line = shlex.join(words)
      if line.startswith("soupjax ..."):  # Repeats the command above.
        line = before + line.removeprefix("soupjax ...")
      elif line.startswith("soupjax"):
        before = line
      lines += [line] if line else []
  return lines


def first_match(table, text, default, match=re.fullmatch):
  return next((v for p, v in table.items() if match(p, text)), default)


def shorter(text: str, changes) -> str:
  for pattern, replacement in changes:
    text = re.sub(pattern, replacement, text, count=1 if "$" in pattern else 0)
  return text


ALL = [(path.name, c) for path in PAGES for c in commands(path)]
HERE = sorted({c for _, c in ALL if not first_match(ELSEWHERE, c, None)})

MODEL = {"patch_size": 4, "width": 8, "depth": 2, "mlp_dim": 12, "num_heads": 4}
TINY_SWEEP = """
from soupjax import config as config_lib

def get_config(arg=None):
  config = config_lib.load("configs/finetune/digits.py", "runlocal")
  return config_lib.updated(config, {
    "hyper.warmup": "0steps", "probe.total": "0steps", "data.batch_size": 8,
    "data.batch_ops": "", "model.depth": 1})

def get_sweep():
  for seed in range(2):
    yield {"hyper.total": "2steps", "seed": seed}
"""


def write_models(directory: pathlib.Path):
  """Writes the checkpoints and images that the pages mention."""
  rng = np.random.default_rng(0)
  tree = {
    "encoderblock_0": {"w": np.ones((2, 2), "f")},
    "head": np.ones(2, "f"),
  }
  names = ("ckpts/a", "ckpts/b", "finetuned/a", "finetuned/b", "pretrained")
  for name in (*names, "sweep/a", "sweep/b"):
    (directory / name).parent.mkdir(exist_ok=True)
    moved = jax.tree.map(lambda x: x + rng.normal(size=x.shape) / 9, tree)
    moved = jax.tree.map(lambda x: x.astype("f"), moved)
    sj.save_params(directory / f"{name}.safetensors", moved)
  (directory / "runs/b16_soups/correct").mkdir(parents=True)
  right = np.packbits(np.ones(5, bool))
  np.savez(directory / "runs/b16_soups/correct/greedy.npz", test=right)
  pretrained = sj.models.pretrained
  model = sj.models.ViT(num_classes=3, **MODEL, **pretrained.options("hf_vit"))
  image = np.zeros((1, 8, 8, 3), "f")
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  start = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
  for name in ("runs/0", "runs/1", "vit-base"):
    path, k = directory / name, int(name == "runs/1")
    path.mkdir(parents=True)
    params = jax.tree.map(lambda x, k=k: (x + k / 99).astype("f"), start)
    pretrained.save_exported(
      path / "model.safetensors", params, model, "hf_vit"
    )
    settings = {
      "model_type": "vit",
      "hidden_size": 8,
      "num_attention_heads": 4,
      "hidden_act": "gelu",
      "layer_norm_eps": 1e-12,
      "id2label": dict(enumerate(("ant", "bee", "cow"))),
    }
    (path / "config.json").write_text(json.dumps(settings))
    prepared = {"do_resize": True, "size": {"height": 8, "width": 8}}
    prepared |= {"resample": 3, "do_normalize": True}
    prepared |= {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(prepared))
    if name == "vit-base":
      continue
    query = "vit.encoder.layer.0.attention.attention.query.lora_"
    factors = {"A.weight": (2, 8), "B.weight": (8, 2)}
    sj.save_params(
      path / "adapter/adapter_model.safetensors",
      {query + k: np.ones(shape, "f") for k, shape in factors.items()},
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (path / "adapter/adapter_config.json").write_text(json.dumps(settings))
  timm = sj.models.ViT(num_classes=3, **MODEL, **pretrained.options("timm"))
  params = jax.tree.map(lambda x: x.astype("f"), start)
  pretrained.save_exported(directory / "vit.safetensors", params, timm, "timm")
  for place in ("photos/val", "photos/test", "street_photos"):
    for name in ("ant", "bee", "cow"):
      (directory / place / name).mkdir(parents=True)
      for k in range(4):
        pixels = rng.integers(0, 256, (9, 10, 3), np.uint8)
        file = directory / place / name / f"{k}.png"
        PIL.Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  path = tmp_path_factory.mktemp("docs")
  (path / "configs").symlink_to(ROOT / "configs")
  (path / "tiny.py").write_text(TINY_SWEEP)
  write_models(path)
  return path


def run(command: str, place: pathlib.Path):
  """Runs a command of soupjax; returns its exit code and its output."""
  done = helpers.soupjax(*shlex.split(command)[1:], cwd=place)
  return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sweeps(place):
  command = "soupjax --config=tiny.py --workdir=runs/b16 --sweep"
  code, output = run(command, place)
  assert code == 0, output
  (place / "runs/sweep").symlink_to(place / "runs/b16")


@pytest.mark.parametrize(
  "number,command", list(enumerate(HERE)), ids=lambda x: str(x)[-60:]
)
def test_commands_run(sweeps, place, number, command):
  short = shorter(command, first_match(SHORTER, command, []))
  # Different commands write to the same paths.
  short = re.sub(r"--(workdir|config\.out)=", rf"--\1=out/{number}/", short)
  (place / f"out/{number}").mkdir(parents=True)
  code, output = run(short, place)
  assert code == 0, f"{short}\n{output}"


def test_commands_are_known():
  unknown = [
    (page, command)
    for page, command in ALL
    if not command.startswith("soupjax ")
    and not first_match(ELSEWHERE, command, None)
  ]
  assert not unknown


def test_bad_commands_are_noticed(place):
  command = "soupjax --config=configs/cook.py --config.nothing=1"
  code, output = run(command, place)
  assert code and "nothing" in output


def test_local_processes_run(place):
  (command,) = [c for n, c in ALL if n == "streaming.md" and "local_p" in c]
  program = place / "bin" / "soupjax"
  program.parent.mkdir(exist_ok=True)
  python = shlex.quote(sys.executable)
  program.write_text(f'#!/bin/sh\nexec {python} -m soupjax.main "$@"\n')
  program.chmod(0o755)
  done = subprocess.run(
    ["bash", "-c", f"{ROOT}/{command}"],
    cwd=place,
    env=os.environ
    | {"PYTHONPATH": str(ROOT)}
    | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("Wrote") == 1, done.stdout + done.stderr


def in_memory(name, value):
  params = {"encoderblock_0": {"w": jnp.full((2, 2), value)}}
  params["head"] = jnp.full(2, value)
  metrics = {"minival/prec@1": value}
  return sj.Ingredient.from_params(name, params, metrics)


def evaluate(params):
  return -float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))


def loss(params, beta, batch=0.0):
  leaves = jax.tree.leaves(params)
  return beta**2 + sum(((x - batch) ** 2).sum() for x in leaves)


def namespace(page: str) -> dict:
  """Returns the variables that a page uses without defining them."""
  a, b = in_memory("a", 0.5), in_memory("b", 1.0)
  names = dict(sj=sj, jax=jax, jnp=jnp, np=np, json=json, TINY=MODEL)
  names |= dict(ingredients=[a, b], pretrained=in_memory("pretrained", 0.0))
  names |= dict(evaluate=evaluate, loss=loss, tree_a=a.load(), tree_b=b.load())
  if page == "README.md":
    names |= dict(finetuned=a)
  elif page == "cook.md":
    config = ml_collections.ConfigDict({"tests": {}, "means": {}})
    names |= dict(config=config, num_images=5)
  elif page == "clip.md":
    tiny_clip.save("clip")
    tokens = jnp.zeros((1, 32), int)
    names |= dict(images=jnp.zeros((1, 16, 16, 3)), tokens=tokens)
  elif page == "search.md":
    names |= dict(config=ml_collections.ConfigDict({"tasks": {}}))
  elif page == "data.md":
    names |= dict(key=jax.random.key(0), images=jnp.zeros((4, 8, 8, 3)))
    names |= dict(targets=jnp.eye(4))
  elif page == "learned.md":
    names |= dict(finetuned=[a, b], path=pathlib.Path("state.json"))
    # For AdaMerging: one task, whose head does not matter here.
    names |= dict(heads={"cars": jnp.ones(2)}, batches=[{"cars": 1.0}] * 9)
    names |= dict(apply=lambda params, x: x * params["encoderblock_0"]["w"])
  return names


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_other_libraries_load_soups(library, tmp_path, monkeypatch):
  torch, module = torch_models.torch(), torch_models.package(library)
  monkeypatch.chdir(tmp_path)
  states = []
  for k in range(2):
    torch.manual_seed(k)
    if library == "timm":
      sizes = dict(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
      name = "vit_tiny_patch16_224"
      model = module.create_model(name, num_classes=3, **sizes)
      save_for_hf = importlib.import_module("timm.models._hub").save_for_hf
      save_for_hf(model, f"runs/{k}", model_args=sizes, safe_serialization=True)
    else:
      sizes = dict(image_size=16, patch_size=8, hidden_size=8, num_labels=3)
      sizes |= dict(num_hidden_layers=1, num_attention_heads=2)
      config = module.ViTConfig(**sizes, intermediate_size=8)
      model = module.ViTForImageClassification(config)
      model.save_pretrained(f"runs/{k}")
    states.append(model.state_dict())
  out = "runs/soups/export/greedy/model.safetensors"
  sj.mix(sj.rules.linear(), "runs/?", out=out)
  lines = "".join(blocks(ROOT / "docs/cook.md", "python")).splitlines()
  (call,) = [line for line in lines if f"{library}." in line]
  names = {library: module, "folder": "runs/soups/export/greedy"}
  exec(call, names)
  for leaf, value in names["model"].state_dict().items():
    mean = (states[0][leaf] + states[1][leaf]) / 2
    np.testing.assert_allclose(value.numpy(), mean, atol=1e-7, err_msg=leaf)


def test_names_in_python_exist():
  for path in PAGES:
    for name in re.findall(r"\bsj(\.[\w.]*\w)", path.read_text()):
      value = sj
      for word in name.split(".")[1:]:
        value = getattr(value, word)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_runs(path, place, sweeps, monkeypatch):
  monkeypatch.chdir(place)
  for leftover in ("soup", "soup.safetensors", "merged.safetensors"):
    if (place / leftover).is_file():
      (place / leftover).unlink()
  # Pages register functions of their own.
  open_lists = (sj.rules.RULES, sj.models.MODELS, sj.evaluators.METRICS)
  for registry in (*open_lists, image_ops.OPS, batch_ops.OPS):
    members = dict(registry._members)
    monkeypatch.setattr(registry, "_members", members)
  names = namespace(path.name)
  for block in blocks(path, "python"):
    if block.startswith(">>>"):
      examples = doctest.DocTestParser().get_doctest(
        block, {}, path.name, str(path), 0
      )
      assert not doctest.DocTestRunner().run(examples).failed
      continue
    changes = first_match(PYTHON, block, [], re.search)
    if changes is not None:
      with jax.numpy_rank_promotion("allow"):
        exec(compile(shorter(block, changes), str(path), "exec"), names)
  if path.name == "rules.md":
    assert names["get_config"]().rule["name"] == "ties"
