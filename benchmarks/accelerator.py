# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Measures one accelerator's peak rates, and how close soupjax comes to them.

  python benchmarks/accelerator.py          # one GPU, at most 8 minutes
  python benchmarks/accelerator.py --tiny   # every part on a CPU, for tests

1. Peak rates: bf16 matrix products, copies on the device and from the host.
2. The train step of ViT-B/16, L/16 and G/14 at the largest batch that fits,
   with every implementation of attention. MFU is relative to the measured rate
   of matrix products.
3. 8 tiny members at once, compared with the same members one by one.
4. Averaging files onto the device.
5. Steps of a learned soup with its ingredients on device, host and disk.
6. Images per second of evaluation.

Each part runs in its own process, which is stopped when its time is up. A
failure is recorded, and the other parts continue. Figures for publication need
jax 0.11 or newer and Python 3.12; older versions run, too. Writes --out and
prints tables. Checkpoints are written to a temporary folder in --folder, 3 GB.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "accelerator.json"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
MINUTES = 8.0


def sizes(tiny: bool) -> types.SimpleNamespace:
  """Returns the sizes of all parts; tiny ones for tests on a CPU."""
  if tiny:
    return types.SimpleNamespace(
      matrix=64,
      copy_bytes=1 << 16,
      turns=2,
      image_size=16,
      train={"mu/16": (2, True)},
      attention=(None, "cudnn"),  # "cudnn" fails on a CPU.
      steps=1,
      members=2,
      overrides={"model.depth": 1, "model.width": 16, "model.mlp_dim": 16},
      seconds=0.01,
      files=("mu/16", 16, 2),
      learned_steps=3,
      learned_images=2,
      evaluate=("mu/16",),
      batch=4,
      images=8,
      dtype="float32",
    )
  return types.SimpleNamespace(
    matrix=16_384,
    copy_bytes=2 << 30,
    turns=20,
    image_size=224,
    # Largest batch that is tried, and whether blocks are recomputed.
    train={"B/16": (2048, False), "L/16": (1024, False), "G/14": (512, True)},
    attention=(None, "xla", "cudnn"),
    steps=8,
    members=8,
    overrides={},
    seconds=5.0,
    files=("B/16", 224, 8),
    learned_steps=8,
    learned_images=64,
    evaluate=("B/16", "L/16"),
    batch=512,
    images=2048,
    dtype="bfloat16",
  )


# --- Parts: each yields figures as soon as it has them ------------------------


def ceilings(size, folder):
  """Measures the rates of a large matrix product and of copies."""
  del folder
  import jax
  import jax.numpy as jnp
  import numpy as np

  def rate(amount, run):
    seconds = timed(lambda: jax.block_until_ready(run()), size.turns)
    return amount / statistics.median(seconds)

  n = size.matrix
  a = jnp.ones((n, n), jnp.bfloat16)
  product = jax.jit(lambda a: a @ a)
  yield {"matrix_flops": rate(2 * n**3, lambda: product(a))}
  x = jnp.ones(size.copy_bytes // 4, jnp.float32)
  negated = jax.jit(jnp.negative)  # Reads and writes every byte.
  yield {"copy_bytes": rate(2 * size.copy_bytes, lambda: negated(x))}
  on_host = np.ones(size.copy_bytes // 4, np.float32)
  put = rate(size.copy_bytes, lambda: jax.device_put(on_host))
  yield {"host_to_device_bytes": put}


def train_step(size, folder, variant):
  """Measures the train step with each implementation of attention."""
  del folder
  import jax
  import train

  most, remat = size.train[variant]
  batch = first_batch(variant, most, remat, size.image_size)
  for attention in size.attention:
    while True:
      options = types.SimpleNamespace(
        variant=variant,
        batch=batch,
        image_size=size.image_size,
        dtype=size.dtype,
        attention=attention,
        remat=remat,
        steps=size.steps,
      )
      try:
        seconds = train.soupjax(options)["seconds"]
      except Exception as e:
        if "RESOURCE_EXHAUSTED" in str(e) and batch > 1:
          batch //= 2
          jax.clear_caches()
          continue
        # Not every implementation exists on every device.
        figures = {"error": first_line(e)}
      else:
        speed = batch / statistics.median(seconds)
        flops = speed * train.flops_of(variant, size.image_size)
        figures = {"batch": batch, "images": speed, "flops": flops}
      break
    yield {str(attention): figures}
    jax.clear_caches()


def first_batch(variant, most, remat, image_size) -> int:
  """Returns the largest power of two of images that should fit, at most `most`.

  Activations take about 34 bytes for each token, channel and block, and 5 for
  each pair of tokens and head (arXiv 2205.05198, section 4.1), in 16 bits. If
  blocks are recomputed, only those of one block and the inputs of all blocks
  are counted.
  """
  import jax

  from soupjax.models import vit

  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  if limit is None:
    return most
  v = vit.variant(variant)
  tokens = (image_size // v["patch_size"]) ** 2
  block = tokens * (34 * v["width"] + 5 * v["num_heads"] * tokens)
  depth = v["depth"]
  image = depth * block
  if remat:
    image = block + depth * tokens * v["width"] * 4
  weights = depth * (4 * v["width"] ** 2 + 2 * v["width"] * v["mlp_dim"])
  # Weights, gradient and two moments, the first in 16 bits.
  room = max(limit - 16 * weights, image)
  return min(most, 1 << int(math.log2(max(room / image, 1))))


def population(size, folder):
  """Measures tiny members of a sweep at once and one by one."""
  del folder
  import population as population_lib

  for name, together in (("together", True), ("one by one", False)):
    speed = population_lib.members(
      together, size.members, size.seconds, size.overrides
    )
    yield {name: speed}


def averaging(size, folder):
  """Measures loading a uniform soup of files, and one file, onto the device."""
  import jax

  import soupjax as sj
  from soupjax import sharding

  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  place = sharding.replicated(mesh)
  paths = files_of(size, folder)
  total = sum(os.path.getsize(path) for path in paths)

  def average():
    return sj.mix(sj.rules.linear(), paths, sharding=place).params

  def load():
    return sj.open_ingredient(paths[0]).load(sharding=place)

  for name, run, amount in (
    ("average", average, total),
    ("load", load, total / len(paths)),
  ):
    seconds = timed(lambda run=run: jax.block_until_ready(run()), 3)
    yield {f"{name}_bytes": amount / statistics.median(seconds)}


def learned(size, folder):
  """Measures steps of a learned soup, by the place of the ingredients."""
  import learned as learned_lib

  variant, pixels, count = size.files
  for place in ("device", "host", "disk"):
    job = {
      "variant": variant,
      "pixels": pixels,
      "images": size.learned_images,
      "paths": files_of(size, folder),
      "steps": size.learned_steps,
      "residency": place,
    }
    times, _ = learned_lib.ours(job)()
    steps = [b - a for a, b in zip(times, times[1:])]
    yield {place: statistics.median(steps), "ingredients": count}


def evaluation(size, folder):
  """Measures images per second of an evaluator with images in memory."""
  del folder
  import jax
  import numpy as np

  import soupjax as sj
  from soupjax.evaluators import Evaluator

  rng = np.random.default_rng(0)
  shape = (size.images, size.image_size, size.image_size, 3)
  images = rng.standard_normal(shape, np.float32)
  for variant in size.evaluate:
    model = sj.models.ViT(
      num_classes=1000, dtype_mm=size.dtype, **sj.models.variant(variant)
    )
    params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
    evaluator = Evaluator.from_arrays(
      model, images, np.arange(size.images) % 1000, batch_size=size.batch
    )
    seconds = timed(lambda e=evaluator, p=params: e(p), 3)
    yield {variant: size.images / statistics.median(seconds)}


def parts(size):
  """Returns name -> (generator function of figures, time limit in seconds)."""
  budgets = dict(zip(size.train, (90, 75, 100)))
  return {
    "ceilings": (ceilings, 30),
    **{
      f"train {variant}": (
        lambda size, folder, v=variant: train_step(size, folder, v),
        budgets[variant],
      )
      for variant in size.train
    },
    "population": (population, 45),
    "averaging": (averaging, 50),
    "learned": (learned, 50),
    "evaluation": (evaluation, 40),
  }


# --- Helpers of the parts -----------------------------------------------------


def timed(run, turns: int) -> list[float]:
  """Returns the seconds of calls after the first, which compiles."""
  run()
  seconds = []
  for _ in range(turns):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  return seconds


def files_of(size, folder) -> list[str]:
  """Writes the checkpoints unless they exist; returns their paths."""
  import learned as learned_lib

  return learned_lib.make(folder, *size.files)


def first_line(error) -> str:
  """Returns the type of an error and the first line of its message."""
  text = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {text[0]:.200}"


# --- Running parts ------------------------------------------------------------


def run_here(name: str, size, folder: str, say) -> None:
  """Runs a part, and passes its figures, or its error, to `say`."""
  start = time.perf_counter()
  try:
    for figures in parts(size)[name][0](size, folder):
      say({"figures": figures})
  except Exception as e:
    say({"error": first_line(e)})
  say({"seconds": time.perf_counter() - start})


def run_apart(name: str, arguments, folder: str, limit: float, say) -> None:
  """Runs a part in its own process, for at most `limit` seconds."""
  command = [sys.executable, __file__, "--worker", name, "--folder", folder]
  command += ["--tiny"] * arguments.tiny
  start = time.perf_counter()
  with tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True
    )
    try:
      text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
      process.kill()
      text, _ = process.communicate()
      say({"error": f"stopped after {limit:.0f} s"})
    else:
      if process.returncode:
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
        say({"error": f"exit code {process.returncode}: {last}"})
  for line in text.splitlines():
    if line.startswith("FIGURES"):
      say(json.loads(line.removeprefix("FIGURES")))
  say({"seconds": time.perf_counter() - start})


def measure(arguments) -> dict:
  """Runs the parts one after another, and returns the results."""
  size = sizes(arguments.tiny)
  end = time.monotonic() + 60 * arguments.minutes
  results = {}
  chosen = [x for x in arguments.only.split(",") if x] or list(parts(size))
  for name in chosen:
    if name not in parts(size):
      sys.exit(f"--only={name}: the parts are {', '.join(parts(size))}.")
  with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    for name in chosen:
      result = results[name] = {"figures": {}}

      def say(message, result=result):
        result["figures"].update(message.pop("figures", {}))
        result.update(message)

      limit = min(parts(size)[name][1], end - time.monotonic())
      if limit <= 0:
        say({"error": f"no time left of {arguments.minutes:g} minutes"})
      elif arguments.tiny:  # Imports would take most of the time.
        run_here(name, size, folder, say)
      else:
        run_apart(name, arguments, folder, limit, say)
      print(f"{name}: {result}", file=sys.stderr, flush=True)
  return results


def about(tiny: bool) -> dict:
  """Returns device and versions; asks in a process that frees the device."""
  import importlib.metadata

  code = (
    "import jax; d = jax.devices()[0]; print('D', d.platform, d.device_kind)"
  )
  if tiny:
    kind = "tiny mode"
  else:
    done = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    kind = done.stdout.rpartition("D ")[2].strip() or "unknown"
  versions = {"python": platform.python_version()}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return {"device": kind, "tiny": tiny, "versions": versions}


# --- Report -------------------------------------------------------------------


def table(results: dict) -> str:
  """Returns the results as Markdown."""
  parts_of = results["parts"]
  matrix = figures_of(parts_of, "ceilings").get("matrix_flops")
  versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
  rows = [f"{results['device']}; {versions}", "", "| | |", "|---|---|"]
  for name, unit in (
    ("matrix_flops", "TFLOP/s of bf16 matrix products"),
    ("copy_bytes", "TB/s of copies on the device, read and written"),
    ("host_to_device_bytes", "TB/s from host to device"),
  ):
    if name in (found := figures_of(parts_of, "ceilings")):
      rows.append(f"| {unit} | {found[name] / 1e12:.4g} |")
  rows += ["", "| train step | attention | batch | images/s | MFU |"]
  rows += ["|---|---|---|---|---|"]
  for part in parts_of:
    if not part.startswith("train "):
      continue
    for attention, found in figures_of(parts_of, part).items():
      share = (
        f"{100 * found['flops'] / matrix:.1f} %"
        if (matrix and "flops" in found)
        else ""
      )
      cells = [part[6:], "default" if attention == "None" else attention]
      if "error" in found:
        cells += ["", found["error"], ""]
      else:
        cells += [str(found["batch"]), f"{found['images']:,.1f}", share]
      rows.append(f"| {' | '.join(cells)} |")
  rows += ["", "| | |", "|---|---|"]
  found = figures_of(parts_of, "population")
  if len(found) == 2:
    together, alone = found["together"], found["one by one"]
    rows.append(
      f"| tiny members at once, images/s | {together:,.0f}, one by one "
      f"{alone:,.0f}: {together / alone:.2f} x |"
    )
  for name, value in figures_of(parts_of, "averaging").items():
    rows.append(f"| file to device, {name[:-6]} | {value / 1e9:.2f} GB/s |")
  for name, value in figures_of(parts_of, "learned").items():
    if name != "ingredients":
      rows.append(f"| learned soup from {name} | {value:.3f} s per step |")
  for name, value in figures_of(parts_of, "evaluation").items():
    rows.append(f"| evaluation, ViT-{name} | {value:,.0f} images/s |")
  for name, part in parts_of.items():
    if "error" in part:
      rows.append(f"| {name} failed | {part['error']} |")
  return "\n".join(rows)


def figures_of(parts_of, name) -> dict:
  return parts_of.get(name, {}).get("figures", {})


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--only", default="", help="parts, joined by commas")
  parser.add_argument("--minutes", type=float, default=MINUTES)
  parser.add_argument("--folder", default=tempfile.gettempdir())
  parser.add_argument("--out", default=str(RESULTS))
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  sys.path.insert(0, str(HERE))
  if arguments.tiny:  # Compilation takes longer than running the programs.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  if arguments.worker:

    def say(message):
      print(f"FIGURES{json.dumps(message)}", flush=True)

    run_here(arguments.worker, sizes(arguments.tiny), arguments.folder, say)
    return
  results = {**about(arguments.tiny), "parts": measure(arguments)}
  pathlib.Path(arguments.out).write_text(json.dumps(results, indent=2) + "\n")
  print(table(results))


if __name__ == "__main__":
  main()
