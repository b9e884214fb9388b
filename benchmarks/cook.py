# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the time of cooking with that of the forward passes it needs.

  python benchmarks/cook.py                 # a quarter of an hour, 3 GB

The models are sixteen ViT-S/16 at 64 px around one start, whose head was fitted
to 2,000 JPEGs of ten classes; noise on the weights gives them different
accuracies. The command cooks them (uniform and greedy soups with early
rejection, ensembles, report) in its own process, twice: the first run compiles
programs, and the second finds them in the cache. Every eighth forward pass is
repeated with weights and batch in memory. The pure time is the mean time of
the repeats, times the number of forward passes; the repeats themselves are
subtracted from the time of the command.

Prints seconds: of start-up, from the shell to the task; of tracing and
compilation; of pure forward passes; and the ratio of the time without start-up
and compilation to that of pure forward passes. Writes results/cook.json.
"""

import argparse
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
PIXELS, CLASSES = 64, 10


# --- Checkpoints and images ---------------------------------------------------


def make_images(folder: pathlib.Path, count: int):
  """Writes JPEGs of ten classes.

  Returns:
    The images, (count, 64, 64, 3) in [-1, 1], and their labels, (count,).
  """
  import numpy as np
  from PIL import Image

  rng = np.random.default_rng(0)
  coarse = rng.uniform(118, 138, (CLASSES, 8, 8, 3))
  images = np.empty((count, PIXELS, PIXELS, 3), np.float32)
  labels = np.arange(count) % CLASSES
  for k, label in enumerate(labels):
    noisy = coarse[label] + rng.normal(0, 40, (8, 8, 3))
    small = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    image = small.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    path = folder / "images" / "val" / f"class_{label}" / f"{k:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)
    images[k] = np.asarray(image, np.float32) / 127.5 - 1
  return images, labels


def make_models(folder: pathlib.Path, variant: str, count: int, images, labels):
  """Writes models around one start with a fitted head."""
  import jax
  import numpy as np

  import soupjax as sj

  model = sj.models.ViT(num_classes=None, **sj.models.variant(variant))
  start = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
  features = jax.jit(lambda p, x: model.apply({"params": p}, x)[0])
  x = np.concatenate(
    [features(start, images[k : k + 100]) for k in range(0, len(images), 100)]
  ).astype(np.float64)
  mean = x.mean(0)
  centred = x - mean
  gram = centred.T @ centred
  gram += 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
  kernel = np.linalg.solve(gram, centred.T @ (np.eye(CLASSES)[labels] - 0.1))
  start = jax.tree.map(np.asarray, start)
  start["head"] = {
    "kernel": (20 * kernel).astype(np.float32),
    "bias": (-20 * mean @ kernel).astype(np.float32),
  }
  for seed in range(count):
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(*np.log([0.02, 0.2])))
    params = jax.tree.map(
      lambda x, rng=rng, size=size: (
        x + size * x.std() * rng.standard_normal(x.shape, np.float32)
      ),
      start,
    )
    sj.save_params(folder / f"model_{seed:02d}.safetensors", params)


# --- The command, in a process of its own -------------------------------------


class Calls:
  """Counts the calls of compiled forward passes and repeats some of them.

  A call is repeated with its weights and batch in memory and nothing else
  running. The time of repeats does not count as time of the command.
  """

  def __init__(self, make, every: int):
    self.make, self.every = make, every
    self.count, self.repeats, self.running = 0, [], None

  def __call__(self, *args):
    import jax

    program = self.make(*args)
    if not hasattr(args[0], "apply"):  # Logits of ensembles.
      return program

    def call(params, batch):
      self.count += 1
      if self.count % self.every == 0:
        jax.block_until_ready((self.running, params, batch))
        began = time.perf_counter()
        jax.block_until_ready(program(params, batch))
        self.repeats.append(time.perf_counter() - began)
      self.running = program(params, batch)
      return self.running

    return call


def child(record: str, every: int, argv: list[str]) -> None:
  """Runs soupjax with arguments `argv`; writes times to the file `record`."""
  import jax

  from soupjax import main
  from soupjax.evaluators import evaluator
  from soupjax.tasks import failures
  from soupjax.tasks.cook import run

  calls = Calls(evaluator._compiled, every)
  evaluator._compiled = calls
  times = {"compile": 0.0}

  def compiled(event, seconds, **_):
    if event.startswith("/jax/core/compile"):
      times["compile"] += seconds

  jax.monitoring.register_event_duration_secs_listener(compiled)
  cook = run.run

  @functools.wraps(cook)
  def timed(*args, **kwargs):
    times["task"] = time.time()
    page = cook(*args, **kwargs)
    times["done"] = time.time()
    return page

  run.run = timed
  sys.argv = ["soupjax", *argv]
  with failures.reported():
    main.run()
  times |= {"calls": calls.count, "repeats": calls.repeats}
  pathlib.Path(record).write_text(json.dumps(times))


def cook(folder: pathlib.Path, name: str, every: int, more) -> dict:
  """Cooks in a new process; returns seconds, counts and the ratio by name."""
  workdir, record = folder / name, folder / f"{name}.json"
  shutil.rmtree(workdir, ignore_errors=True)
  command = [sys.executable, __file__, f"--child={record}"]
  command += [f"--every={every}", "--"]
  command += [
    f"--config={HERE.parent / 'configs' / 'cook.py'}",
    f"--workdir={workdir}",
    f"--config.ingredients={folder}/model_*.safetensors",
    f"--config.data.name=folder:{folder / 'images'}",
    "--config.data.minival=val",
    f"--config.data.eval_ops=resize({PIXELS})|value_range(-1, 1)",
    "--config.cook.learned.granularities=()",
    *more,
  ]
  env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
  began = time.time()
  subprocess.run(command, check=True, env=env)
  times = json.loads(record.read_text())
  record = json.loads((workdir / "soups/greedy/greedy.json").read_text())
  repeats = times["repeats"]
  pure = times["calls"] * sum(repeats) / len(repeats)
  wall = times["done"] - began - sum(repeats)
  start = times["task"] - began
  return {
    "wall": wall,
    "start-up": start,
    "compile": times["compile"],
    "pure": pure,
    "calls": times["calls"],
    "candidates": [[d["accepted"], d["evaluated"]] for d in record["history"]],
    "ratio": (wall - start - times["compile"]) / pure,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=pathlib.Path, default="runs/cook")
  parser.add_argument("--variant", default="S/16")
  parser.add_argument("--models", type=int, default=16)
  parser.add_argument("--images", type=int, default=2000)
  parser.add_argument("--every", type=int, default=8)
  parser.add_argument("--keep", action="store_true", help="keep the folder")
  parser.add_argument("--child", help=argparse.SUPPRESS)
  parser.add_argument("more", nargs="*", help="further flags of soupjax")
  args = parser.parse_args()
  if args.child:
    child(args.child, args.every, args.more)
    return
  folder = args.folder.absolute()
  if not (folder / "images").exists():
    images, labels = make_images(folder, args.images)
    make_models(folder, args.variant, args.models, images, labels)
    os.sync()
  results = {}
  for name in ("first", "second"):
    results[name] = cook(folder, name, args.every, args.more)
    print(name)
    for key, value in results[name].items():
      shown = f"{value:.3f}" if isinstance(value, float) else value
      print(f"  {key:<12} {shown}", flush=True)
  if not args.keep:
    shutil.rmtree(folder)
  path = HERE / "results" / "cook.json"
  path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  main()
