# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the speed of the train step with big_vision's and timm's.

  git clone https://github.com/google-research/big_vision /tmp/big_vision
  python benchmarks/train.py --big_vision=/tmp/big_vision
  python benchmarks/train.py --variants=B/16,L/16,G/14 --batch=32 \
    --dtype=bfloat16 --repeat=3   # on a GPU

All use the same model, batch, AdamW, clipping and loss, on images in memory.
Each library runs in its own process, in turn; its speed is the median over all
steps but the first two. big_vision and timm are skipped if they are missing.
On an accelerator, soupjax's process also measures the rate of a large matrix
product, and the share of it that each step reaches is printed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import types

CLASSES, CLIP, RATE, DECAY = 1000, 1.0, 1e-3, 1e-4
SCANNED = "LHgG"
# Our name of a size -> timm's.
TIMM = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}


def batch(args):
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (args.batch, args.image_size, args.image_size, 3)
  images = rng.standard_normal(shape, np.float32)
  return images, rng.integers(0, CLASSES, args.batch)


def timed(step, ready, steps):
  """Returns the seconds of each step, after two steps of warmup."""
  seconds = []
  for _ in range(steps + 2):
    start = time.perf_counter()
    ready(step())
    seconds.append(time.perf_counter() - start)
  return seconds[2:]


def soupjax(args):
  """Times the step that `soupjax --config=configs/finetune/...` runs."""
  import jax
  import numpy as np

  from soupjax import sharding
  from soupjax.tasks.finetune import config as finetune_config
  from soupjax.tasks.finetune import step as finetune_step

  config = finetune_config.default_config()
  config.data.update(batch_size=args.batch, image_size=args.image_size)
  config.hyper.update(learning_rate=RATE, weight_decay=DECAY, total="1000steps")
  config.model.update(
    variant=args.variant,
    pool_type="gap",
    dtype_mm=args.dtype,
    scan=args.variant[0] in SCANNED,
    attention=args.attention,
  )
  if args.remat:
    config.model.remat_policy = "nothing_saveable"
  config.optimizer.update(clip_norm=CLIP, momentum_dtype=args.dtype)
  model = finetune_config.build_model(config)
  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  images, labels = batch(args)
  params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
  compiled = finetune_step.compile_step(config, model, mesh, params)
  hyper, key = compiled.ready(finetune_config.hyper(config, 1000), np.uint32(0))
  data = {"images": images[None], "labels": labels[None]}
  data = sharding.put_batch(mesh, data, (None, "data"))
  state = compiled.begin(params)

  def run():
    nonlocal state
    state, metrics = compiled.step(state, data, key, hyper, None)
    return metrics

  seconds = timed(run, jax.block_until_ready, args.steps)
  return {"seconds": seconds, "matrix_flops": matrix_rate(args.dtype)}


def matrix_rate(dtype):
  """Returns the FLOP/s of a large matrix product; None on a CPU."""
  import jax
  import jax.numpy as jnp

  if jax.default_backend() == "cpu":
    return None
  n = 8192
  a = jnp.ones((n, n), dtype)
  product = jax.jit(lambda a, b: a @ b)
  seconds = timed(lambda: product(a, a), jax.block_until_ready, 20)
  return 2 * n**3 / statistics.median(seconds)


def big_vision(args):
  import flax.training.checkpoints  # noqa: F401 - before TensorFlow's stub.

  # big_vision uses TensorFlow only for gs:// paths, so a stub is enough.
  for name in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile"):
    sys.modules.setdefault(name, types.ModuleType(name))
  sys.modules["tensorflow.io"].gfile = sys.modules["tensorflow.io.gfile"]
  sys.path.insert(0, args.big_vision)
  from big_vision import optax as bv_optax
  from big_vision import utils
  from big_vision.models import vit
  import jax
  import jax.numpy as jnp
  import ml_collections
  import optax

  model = vit.Model(
    CLASSES,
    variant=args.variant,
    pool_type="gap",
    posemb="learn",
    dtype_mm=args.dtype,
    scan=args.variant[0] in SCANNED,
    **({"remat_policy": "nothing_saveable"} if args.remat else {}),
  )
  images, labels = batch(args)
  images, labels = jnp.asarray(images), jax.nn.one_hot(labels, CLASSES)
  params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
  config = ml_collections.ConfigDict()
  config.optax_name = "scale_by_adam"
  if args.dtype == "bfloat16":
    config.optax = {"mu_dtype": "bfloat16"}
  config.lr, config.wd, config.grad_clip_norm = RATE, DECAY, CLIP
  config.schedule = {"decay_type": "cosine", "warmup_steps": 10}
  sizes = {"total_steps": 1000, "batch_size": args.batch, "data_size": 10_000}
  tx, _ = bv_optax.make(config, params, sched_kw=sizes)

  def update(params, opt, images, labels):
    def loss_of(params):
      logits, _ = model.apply(
        {"params": params},
        images,
        train=True,
        rngs={"dropout": jax.random.key(1)},
      )
      return utils.softmax_xent(logits=logits, labels=labels)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt = tx.update(grads, opt, params)
    return (
      optax.apply_updates(params, updates),
      opt,
      loss,
      optax.tree.norm(grads),
    )

  update = jax.jit(update, donate_argnums=(0, 1))
  opt = jax.jit(tx.init)(params)

  def run():
    nonlocal params, opt
    params, opt, loss, norm = update(params, opt, images, labels)
    return loss, norm

  return {"seconds": timed(run, jax.block_until_ready, args.steps)}


def timm_step(args):
  import torch

  if not torch.cuda.is_available():
    # torchvision built for CUDA cannot be imported with a CPU-only torch, which
    # lacks some operators. None is called here, so declaring them is enough.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      operators.define(
        f"{name}(Tensor boxes, Tensor scores, float t) -> Tensor"
      )
  import timm

  size, patch = args.variant.split("/")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  name = f"vit_{TIMM[size]}_patch{patch}_224"
  model = timm.create_model(
    name, num_classes=CLASSES, global_pool="avg", img_size=args.image_size
  ).to(device)
  model.train()
  if device == "cuda":
    model = torch.compile(model)
  images, labels = batch(args)
  images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
  labels = torch.from_numpy(labels).to(device)
  tx = torch.optim.AdamW(
    model.parameters(), lr=RATE, weight_decay=DECAY, fused=True
  )
  cast = torch.autocast(
    device, torch.bfloat16, enabled=args.dtype == "bfloat16"
  )

  def run():
    tx.zero_grad(set_to_none=True)
    with cast:
      loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    tx.step()
    return loss

  def ready(loss):
    if device == "cuda":
      torch.cuda.synchronize()
    return loss.item()

  return {"seconds": timed(run, ready, args.steps)}


CONTESTANTS = {f.__name__: f for f in (soupjax, big_vision, timm_step)}


def flops_of(variant: str, image_size: int) -> float:
  """Returns the FLOPs of the blocks for one image, forward and backward.

  Counts 6 per matrix parameter and token, and 12 per pair of tokens, channel
  and layer (arXiv 2204.02311, appendix B), without recomputation.
  """
  from soupjax.models import vit

  v = vit.variant(variant)
  tokens = (image_size // v["patch_size"]) ** 2
  width, depth = v["width"], v["depth"]
  block = 4 * width**2 + 2 * width * v["mlp_dim"]
  return depth * tokens * (6 * block + 12 * tokens * width)


def contestants(args):
  names = ["soupjax"]
  if args.big_vision and importlib.util.find_spec("einops"):
    names.append("big_vision")
  else:
    print("big_vision is skipped: it needs --big_vision=DIR and einops.")
  if importlib.util.find_spec("timm"):
    names.append("timm_step")
  else:
    print("timm is skipped: it is not installed.")
  return names


def launch(name, variant):
  command = [sys.executable, __file__, *sys.argv[1:]]
  command += ["--worker", name, "--variant", variant]
  done = subprocess.run(command, capture_output=True, text=True)
  lines = [x for x in done.stdout.splitlines() if x.startswith("FIGURES")]
  if not lines:
    raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
  return json.loads(lines[0].removeprefix("FIGURES"))


def compare(variant, names, args):
  """Prints one table. Every round runs all libraries, one after another."""
  rows = {name: [] for name in names}
  rate = None
  for _ in range(args.repeat):
    for name in names:
      figures = launch(name, variant)
      rows[name].append(args.batch / statistics.median(figures["seconds"]))
      rate = figures.get("matrix_flops") or rate
  speeds = {name: statistics.median(values) for name, values in rows.items()}
  print(
    f"\nViT-{variant}, {args.image_size} px, batch {args.batch}, {args.dtype}: "
    f"images/s, median of {args.repeat} (min to max), and speedup of soupjax"
  )
  for name, values in rows.items():
    line = (
      f"{name:12s} {speeds[name]:9.2f} ({min(values):.2f} to {max(values):.2f})"
    )
    line += f"  {speeds['soupjax'] / speeds[name]:5.2f}"
    if rate:
      share = speeds[name] * flops_of(variant, args.image_size) / rate
      line += f"  {100 * share:.0f} % of {rate / 1e12:.0f} TFLOP/s"
    print(line, flush=True)
  return {"images_per_second": rows, "matrix_flops": rate}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--variants", default="S/16,B/16")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--attention", help="cudnn or xla, for JAX's attention")
  parser.add_argument("--remat", action="store_true")
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--repeat", type=int, default=3)
  parser.add_argument("--big_vision", help="path of its checkout")
  parser.add_argument("--out", help="JSON file for all figures")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument("--variant", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    print("FIGURES" + json.dumps(CONTESTANTS[args.worker](args)), flush=True)
    return
  names = contestants(args)
  results = {v: compare(v, names, args) for v in args.variants.split(",")}
  if args.out:
    with open(args.out, "w", encoding="utf-8") as f:
      json.dump({"command": sys.argv, "results": results}, f, indent=1)
      f.write(os.linesep)


if __name__ == "__main__":
  main()
