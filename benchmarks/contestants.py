# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Ways to average checkpoints, for `stream.py`.

Each takes the paths of the inputs and of the output, does its imports, and
returns a function that does only the work.
"""

import os
import subprocess
import sys


def soupjax(paths, out, **settings):
  import soupjax as sj

  def run():
    return sj.mix(sj.rules.linear(), paths, out=out, **settings)

  return run


def with_hashes(paths, out):
  return soupjax(paths, out, hash_inputs=True)


def open_and_load(paths, out):
  import soupjax as sj

  def run():
    for path in paths:
      sj.open_ingredient(path).load()

  return run


def numpy_dicts(paths, out):
  import safetensors.numpy as st

  def run():
    total = st.load_file(paths[0])
    for path in paths[1:]:
      for name, value in st.load_file(path).items():
        total[name] += value
    for value in total.values():
      value /= len(paths)
    st.save_file(total, out)

  return run


def torch_soup(paths, out):
  """Sums weighted state dicts, as the model-soups release does."""
  import safetensors.torch as st

  def run():
    total = None
    for path in paths:
      state = st.load_file(path)
      if total is None:
        total = {k: v * (1.0 / len(paths)) for k, v in state.items()}
      else:
        total = {k: v * (1.0 / len(paths)) + total[k] for k, v in state.items()}
    st.save_file(total, out)

  return run


def torch_double(paths, out):
  """Sums in float64 and casts at the end, as timm's averaging does."""
  import safetensors.torch as st

  def run():
    total = {}
    for path in paths:
      for name, value in st.load_file(path).items():
        if name in total:
          total[name] += value.double()
        else:
          total[name] = value.double()
    st.save_file({k: (v / len(paths)).float() for k, v in total.items()}, out)

  return run


def orbax_itself(paths, out):
  """Restores all models onto the mesh with Orbax, and saves their mean."""
  import jax
  from orbax.checkpoint import v1 as ocp

  import soupjax as sj
  from soupjax import sharding

  place = sharding.fsdp(sharding.make_mesh({"data": len(jax.devices())}))

  def target(key, leaf):
    name = jax.tree_util.keystr(key, simple=True, separator="/")
    spec = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(
      *(spec.shape, spec.dtype), sharding=place(name, spec)
    )

  mean = jax.jit(
    lambda *trees: jax.tree.map(lambda *x: sum(x) / len(x), *trees)
  )

  def run():
    metadata = ocp.metadata(paths[0]).metadata
    targets = jax.tree_util.tree_map_with_path(target, metadata)
    trees = [ocp.load(path, targets) for path in paths]
    sj.save_params(out, mean(*trees))

  return run


def sd_mecha(paths, out):
  import sd_mecha as mecha

  def run():
    recipe = mecha.n_average(*[mecha.model(path) for path in paths])
    # Its default output is float16.
    mecha.merge(recipe, output=out, output_dtype=None, merge_dtype=None)

  return run


def mergekit(paths, out):
  """Runs what the command mergekit-pytorch does, with equal weights."""
  from mergekit.graph import Executor
  from mergekit.options import MergeOptions
  from mergekit.scripts import merge_raw_pytorch as raw

  models = [{"model": p, "parameters": {"weight": 1.0}} for p in paths]

  def run():
    config = raw.RawPyTorchMergeConfig.model_validate(
      {"merge_method": "linear", "models": models}
    )
    # mergekit writes a directory.
    tasks = raw.plan_flat_merge(
      config, f"{out}.d", False, False, MergeOptions()
    )
    Executor(tasks, math_device="cpu", storage_device="cpu").execute()

  return run


PACKAGES = {
  "torch_soup": "torch",
  "torch_double": "torch",
  "sd_mecha": "sd_mecha",
  "mergekit": "mergekit",
}

CONTESTANTS = {
  f.__name__: f
  for f in (
    soupjax,
    with_hashes,
    open_and_load,
    numpy_dicts,
    torch_soup,
    torch_double,
    sd_mecha,
    mergekit,
    orbax_itself,
  )
}


def python_for(name: str) -> str:
  """Returns the interpreter of a contestant; other tools may have their own."""
  if name in PACKAGES:
    return os.environ.get("PEERS_PYTHON", sys.executable)
  return sys.executable


def versions(python: str | None = None) -> dict[str, str]:
  """Returns the versions of the other tools' packages that are installed.

  Args:
    python: the interpreter to ask; None for that of the other tools.
  """
  code = (
    "import importlib.metadata as m, sys\n"
    "for name in sys.argv[1:]:\n"
    "  try: print(name, m.version(name))\n"
    "  except m.PackageNotFoundError: pass\n"
  )
  names = sorted({*PACKAGES.values(), "safetensors"})
  done = subprocess.run(
    [python or python_for("mergekit"), "-c", code, *names],
    capture_output=True,
    text=True,
    check=True,
  )
  return dict(line.split() for line in done.stdout.splitlines())


def others() -> list[str]:
  """Returns the contestants besides soupjax whose packages are installed."""
  installed, names = versions(), ["numpy_dicts"]
  for name, package in PACKAGES.items():
    if package in installed:
      names.append(name)
    else:
      print(f"{package} is not installed: {name} is left out.")
  return names
