# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares learned soups of few and many models, and with a plain graph.

  python benchmarks/learned.py               # about ten minutes, 7 GB of disk

1. Peak memory of 8 and of 72 ingredients on disk.
2. Time per step and peak memory, compared with one graph that holds all models.
3. Coefficients after 50 steps, compared with the same graph.

Makes its own checkpoints in --folder and removes them at the end. Each run has
its own process. Memory is the peak of anonymous memory beyond what the imports
take, and seconds are the median over the steps after the first.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time

CLASSES = 10
LEARNING_RATE = 0.05


def model_and_data(variant: str, pixels: int, count: int):
  """Returns a ViT, `count` random images, and a loss on them.

  The images are (count, pixels, pixels, 3) in float32. The loss is a function
  of the parameters and the logit scale beta.
  """
  import numpy as np
  import optax

  import soupjax as sj

  model = sj.models.ViT(num_classes=CLASSES, **sj.models.variant(variant))
  rng = np.random.default_rng(0)
  images = rng.normal(size=(count, pixels, pixels, 3)).astype(np.float32)
  labels = np.arange(count) % CLASSES

  def loss(params, beta):
    logits, _ = model.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(
      beta * logits, labels
    ).mean()

  return model, images, loss


def make(folder, variant, pixels, count) -> list[str]:
  """Writes `count` models around one start unless they exist.

  Returns:
    The paths of the models.
  """
  import jax
  import numpy as np

  import soupjax as sj

  name = f"{variant.replace('/', '_')}_{pixels}"
  paths = [
    os.path.join(folder, f"{name}_{k}.safetensors") for k in range(count)
  ]
  model, images, _ = model_and_data(variant, pixels, 1)
  start = jax.jit(model.init)(jax.random.key(0), images)["params"]
  start = jax.tree.map(np.asarray, start)
  for seed, path in enumerate(paths):
    if not os.path.exists(path):
      rng = np.random.default_rng(seed)
      params = jax.tree.map(
        lambda x, rng=rng: x + 0.02 * rng.standard_normal(x.shape, np.float32),
        start,
      )
      sj.save_params(path, params)
  os.sync()
  return paths


def ours(job):
  """Returns a function that runs a learned soup of soupjax.

  The function returns the end time of every step, and group -> coefficients.
  """
  import soupjax as sj

  _, _, loss = model_and_data(job["variant"], job["pixels"], job["images"])

  def run():
    times = []
    soup = sj.learned_soup(
      [sj.open_ingredient(path) for path in job["paths"]],
      loss,
      steps=job["steps"],
      optimizer=sj.CoefficientOptimizer(learning_rate=LEARNING_RATE),
      residency=job["residency"],
      on_step=lambda entry: times.append(time.perf_counter()),
    )
    return times, {k: list(v) for k, v in soup.alphas.items()}

  return run


def graph(job):
  """Returns a function like that of `ours`, with one gradient of all models.

  All models are in memory, and the gradient goes through their mixture.
  """
  import jax
  import jax.numpy as jnp
  import optax

  import soupjax as sj
  from soupjax.soups.core.layers import layer_of

  _, _, loss = model_and_data(job["variant"], job["pixels"], job["images"])
  tx = optax.adam(LEARNING_RATE)

  def mixture(logits, trees):
    def mix(path, *leaves):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      alphas = jax.nn.softmax(logits[layer_of(name)])
      return sum(alphas[k] * leaf for k, leaf in enumerate(leaves))

    return jax.tree_util.tree_map_with_path(mix, *trees)

  @jax.jit
  def step(x, state, trees):
    value, grads = jax.value_and_grad(
      lambda x: loss(mixture(x[0], trees), jnp.exp(x[1]))
    )(x)
    updates, state = tx.update(grads, state)
    return value, optax.apply_updates(x, updates), state

  def run():
    pool = [sj.open_ingredient(path) for path in job["paths"]]
    trees = [i.in_memory().load() for i in pool]
    layers = dict.fromkeys(layer_of(leaf) for leaf in pool[0].specs)
    x = ({layer: jnp.zeros(len(pool)) for layer in layers}, jnp.zeros(()))
    state, times = tx.init(x), []
    for _ in range(job["steps"]):
      value, x, state = step(x, state, trees)
      jax.block_until_ready(x)
      times.append(time.perf_counter())
    return times, {k: jax.nn.softmax(v).tolist() for k, v in x[0].items()}

  return run


def status(field: str) -> float:
  """Returns a field of /proc/self/status in MB."""
  with open("/proc/self/status", encoding="utf-8") as f:
    line = next(line for line in f if line.startswith(field))
  return int(line.split()[1]) * 1024 / 1e6


def worker(job) -> None:
  """Runs one job and prints its figures."""
  run = {"ours": ours, "graph": graph}[job["what"]](job)
  before, peak, done = status("RssAnon"), [0.0], threading.Event()

  def watch():
    while not done.wait(0.005):
      peak[0] = max(peak[0], status("RssAnon"))

  threading.Thread(target=watch, daemon=True).start()
  times, alphas = run()
  done.set()
  steps = [b - a for a, b in zip(times, times[1:])]
  figures = {
    "seconds_per_step": statistics.median(steps),
    "anonymous_mb": peak[0] - before,
    "alphas": alphas,
  }
  print("FIGURES", json.dumps(figures), flush=True)


def launch(**job):
  """Runs one job in its own process and returns its figures."""
  process = subprocess.run(
    [sys.executable, __file__, "--worker", json.dumps(job)],
    capture_output=True,
    text=True,
    check=False,
  )
  found = [x for x in process.stdout.splitlines() if "FIGURES" in x]
  if not found:
    raise RuntimeError(f"{job} failed:\n{process.stderr[-3000:]}")
  return json.loads(found[0].split("FIGURES")[1])


def memory(folder) -> dict[str, float]:
  """Measures table 1: memory of 8 and 72 ingredients on disk."""
  setting = {"variant": "S/16", "pixels": 224, "images": 1}
  paths = make(folder, setting["variant"], setting["pixels"], 72)
  rows = {}
  print("| K | anonymous MB | s per step |\n|---|---|---|")
  for count in (8, 72):
    found = launch(
      what="ours", paths=paths[:count], steps=2, residency="disk", **setting
    )
    del found["alphas"]
    rows[str(count)] = found
    print(
      f"| {count} | {found['anonymous_mb']:.0f} | "
      f"{found['seconds_per_step']:.1f} |",
      flush=True,
    )
  rows["ratio"] = rows["72"]["anonymous_mb"] / rows["8"]["anonymous_mb"]
  rows["model_mb"] = os.path.getsize(paths[0]) / 1e6
  print(f"\n72 against 8: {rows['ratio']:.3f}; a model: {rows['model_mb']:.0f}")
  return rows


def speed(folder, repeat, counts=(2, 8)) -> dict[str, dict[str, float]]:
  """Measures table 2: time and memory of a step, all runs in turn."""
  setting = {"variant": "S/16", "pixels": 112, "images": 8, "steps": 6}
  paths = make(folder, setting["variant"], setting["pixels"], max(counts))
  runs = {
    f"{count}, {name}": {"paths": paths[:count], **how}
    for count in counts
    for name, how in {
      "graph over all models": {"what": "graph", "residency": None},
      "soupjax, device": {"what": "ours", "residency": "device"},
      "soupjax, disk": {"what": "ours", "residency": "disk"},
    }.items()
  }
  rows = {name: [] for name in runs}
  for _ in range(repeat):
    for name, how in runs.items():
      found = launch(**how, **setting)
      rows[name].append(found)
      print(f"{name}: {found['seconds_per_step']:.3f} s", file=sys.stderr)
  table = {}
  print("| K | s per step | ratio | anonymous MB |\n|---|---|---|---|")
  for name, found in rows.items():
    table[name] = {
      key: statistics.median(one[key] for one in found)
      for key in ("seconds_per_step", "anonymous_mb")
    }
    of_graph = table[f"{name.split(',')[0]}, graph over all models"]
    ratio = table[name]["seconds_per_step"] / of_graph["seconds_per_step"]
    table[name]["ratio"] = ratio
    print(
      f"| {name} | {table[name]['seconds_per_step']:.2f} | {ratio:.2f} | "
      f"{table[name]['anonymous_mb']:.0f} |",
      flush=True,
    )
  return table


def agreement(folder) -> dict[str, float]:
  """Measures table 3: the largest difference between coefficients."""
  setting = {"variant": "Ti/16", "pixels": 64, "images": 16, "steps": 50}
  paths = make(folder, setting["variant"], setting["pixels"], 4)
  want = launch(what="graph", paths=paths, **setting)["alphas"]
  rows = {}
  for residency in ("device", "disk"):
    got = launch(what="ours", paths=paths, residency=residency, **setting)
    rows[residency] = max(
      abs(a - b) for k in want for a, b in zip(want[k], got["alphas"][k])
    )
  rows["moved"] = max(abs(a - 0.25) for v in want.values() for a in v)
  print(f"After 50 steps: {rows}", flush=True)
  return rows


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", default="/tmp/soupjax_learned")
  parser.add_argument("--tables", default="1,2,3")
  parser.add_argument("--repeat", type=int, default=3)
  parser.add_argument("--out", help="a JSON file, for all figures")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    worker(json.loads(args.worker))
    return
  os.makedirs(args.folder, exist_ok=True)
  results = {
    "command": "python benchmarks/learned.py --tables=" + args.tables,
    "python": platform.python_version(),
    "cores": os.cpu_count(),
  }
  try:
    for table in args.tables.split(","):
      name, run = {
        "1": ("memory", lambda: memory(args.folder)),
        "2": ("speed", lambda: speed(args.folder, args.repeat)),
        "3": ("agreement", lambda: agreement(args.folder)),
      }[table]
      results[name] = run()
      if args.out:
        text = json.dumps(results, indent=2) + "\n"
        pathlib.Path(args.out).write_text(text)
  finally:
    shutil.rmtree(args.folder)


if __name__ == "__main__":
  main()
