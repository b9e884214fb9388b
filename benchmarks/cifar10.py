# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups on CIFAR-10: from a folder of images to a table, within a time budget.

python benchmarks/cifar10.py --images=DIR --workdir=runs/cifar10 \
  [--budget_minutes=10] [--size=small] [--seed=0]

DIR has train/CLASS/*.jpg and test/CLASS/*.jpg, or train.tar and test.tar. The
images become a TFDS dataset in the workdir. A small ViT is pretrained on the
first half of train, a sweep is fine-tuned from it on the other half but for
2,000 images, minival, on which every choice is made. Then soups are cooked, and
all models are judged on test and on corrupted test images. How many steps fit
the budget is measured first, and kept in plan.json: started again, a run goes
on. Writes results/cifar10.json.
"""

import argparse
import io
import itertools
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image, ImageFilter
from soupjax.tasks.pretrain import pretrain
from soupjax.tasks.sweep import sweep

import soupjax as sj
from soupjax import data
from soupjax.data import batch_ops as ops
from soupjax.evaluators import Evaluator
from soupjax.models import ViT
from soupjax.tasks.cook import ranked
from soupjax.train import losses, optim, step

HERE = pathlib.Path(__file__).parent
NAME = "cifar10_folder"
SIZES = {
  "small": {"width": 128, "depth": 6, "num_heads": 4, "patch_size": 8},
  "medium": {"width": 192, "depth": 9, "num_heads": 3, "patch_size": 4},
  "large": {"width": 384, "depth": 12, "num_heads": 6, "patch_size": 4},
}
MEMBERS = 8
BATCH = 64


# Corruptions: self-made, in the manner of arXiv 1903.12261 at middle severity.
# Each takes uint8 (32, 32, 3) and a generator, and gives uint8 back.


def _noise(image, rng):
  return np.clip(image + rng.normal(0, 25, image.shape), 0, 255)


def _blur(image, rng):
  del rng
  return Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))


def _contrast(image, rng):
  del rng
  return (image - image.mean()) * 0.4 + image.mean()


def _brightness(image, rng):
  del rng
  return np.clip(image + 60.0, 0, 255)


def _pixelate(image, rng):
  del rng
  small = Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)
  return small.resize((32, 32), Image.Resampling.NEAREST)


def _jpeg(image, rng):
  del rng
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=12)
  return Image.open(file)


CORRUPTIONS = {
  "noise": _noise,
  "blur": _blur,
  "contrast": _contrast,
  "brightness": _brightness,
  "pixelate": _pixelate,
  "jpeg": _jpeg,
}


def corrupted(pixels: np.ndarray, name: str) -> np.ndarray:
  """Corrupts uint8 images (n, 32, 32, 3), each by draws of its own."""
  return np.stack(
    [
      np.asarray(CORRUPTIONS[name](x, np.random.default_rng(i))).astype(
        np.uint8
      )
      for i, x in enumerate(pixels)
    ]
  )


def in_memory(split: str, data_dir: pathlib.Path) -> data.Dataset:
  """Reads a split of the dataset as uint8."""
  source = data.open_source(NAME, split, data_dir=data_dir)
  batches = list(data.eval_batches(source, batch_size=500, preprocess=""))
  images, labels, mask = (
    np.concatenate([b[key] for b in batches])
    for key in ("images", "labels", "mask")
  )
  return data.Dataset(f"{NAME}/{split}", images[mask], labels[mask])


def floats(dataset: data.Dataset) -> data.Dataset:
  images = dataset.images.astype(np.float32) / 127.5 - 1
  return data.Dataset(dataset.name, images, dataset.labels)


def with_flips(dataset: data.Dataset) -> data.Dataset:
  """Adds the mirror image of every image."""
  images = np.concatenate([dataset.images, dataset.images[:, :, ::-1]])
  return data.Dataset(dataset.name, images, np.tile(dataset.labels, 2))


def make_config(seed: int, pretrain_steps: int, sweep_steps: int):
  affine = {"degrees": 10.0, "pixels": 3.0, "scale": 0.1, "shear": 0.1}
  return ml_collections.ConfigDict(
    {
      "seed": seed,
      "pretrain": {
        "total_steps": pretrain_steps,
        "batch_size": BATCH,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "warmup_steps": max(pretrain_steps // 10, 1),
        "b2": 0.999,
        "clip_norm": 1.0,
        "checkpoint_steps": max(pretrain_steps // 4, 1),
        "log_steps": 50,
        "affine": affine,
        "jitter": {"contrast": 0.2, "noise": 0.0, "blur": 0.0},
      },
      "sweep": {
        "size": MEMBERS,
        "learning_rate_log10": (-3.7, -2.7),
        "weight_decay_log10": (-3.0, -0.5),
        "label_smoothing": (0.0, 0.1),
        "mixup": (0.0, 0.2),
        "augment": (0.0, 0.5, 1.0),
        "total_steps": (int(0.7 * sweep_steps), int(1.3 * sweep_steps)),
        "warmup_steps": max(sweep_steps // 10, 1),
        "batch_size": BATCH,
        "b2": 0.99,
        "clip_norm": 1.0,
        "log_steps": 50,
        "affine": affine,
      },
    }
  )


def plan(args, model, train: data.Dataset) -> dict[str, int]:
  """Measures a step and fits the run into what is left of the budget."""
  file = args.workdir / "plan.json"
  if file.exists():
    return json.loads(file.read_text())
  config = make_config(args.seed, 100, 100)
  tx = optim.adamw()
  train_step = step.make_train_step(
    model,
    tx,
    lambda key, images, targets, hyper: (
      ops.affine(key, images, **config.pretrain.affine),
      targets,
    ),
  )
  batch = train.images[:BATCH], train.labels[:BATCH]
  params = model.init(jax.random.key(0), batch[0])["params"]
  state = step.init_state(params, tx)
  hyper = optim.Hyperparameters.of(
    **dict.fromkeys(("learning_rate", "weight_decay", "label_smoothing"), 0),
    **dict.fromkeys(("mixup", "augment", "warmup_steps"), 0),
    total_steps=100,
  )
  for i in range(32):
    if i == 2:  # Compiled by now.
      begun = time.monotonic()
    state, metrics = train_step(state, *batch, jax.random.key(0), hyper)
    jax.block_until_ready(metrics)
  seconds = (time.monotonic() - begun) / 30
  left = 60 * args.budget_minutes - (time.monotonic() - args.begun)
  chosen = {
    "pretrain_steps": max(int(0.40 * left / seconds), 20),
    "sweep_steps": max(int(0.30 * left / seconds / MEMBERS), 20),
    "test_images": 10_000 if args.budget_minutes >= 30 else 4_000,
    "corrupted_images": 10_000 if args.budget_minutes >= 30 else 1_000,
  }
  file.write_text(json.dumps(chosen))
  return chosen


def cook(model, ingredients, minival: data.Dataset, evaluate, seed: int):
  """Makes the soups; returns name -> parameters, and the greedy choice."""
  ingredients = [i.in_memory() for i in ranked(ingredients)]
  greedy = sj.greedy_soup(ingredients, evaluate)

  def batches():
    rng = np.random.default_rng(seed)
    for _ in itertools.count():
      pick = rng.choice(len(minival), 250, replace=False)
      yield minival.images[pick], minival.labels[pick]

  def loss(params, beta, batch):
    logits, _ = model.apply({"params": params}, batch[0])
    targets = losses.smooth_labels(batch[1], model.num_classes, 0.0)
    return losses.softmax_loss(beta * logits, targets)

  learned = {
    f"learned_{granularity}": sj.learned_soup(
      ingredients,
      loss,
      granularity=granularity,
      steps=30,
      optimizer=sj.CoefficientOptimizer(learning_rate=0.1),
      batches=map(lambda b: jax.tree.map(jnp.asarray, b), batches()),
    ).params
    for granularity in ("model", "layer")
  }
  soups = {
    "uniform": sj.uniform_soup(ingredients),
    "greedy": greedy.params,
    **learned,
  }
  return soups, list(greedy.selected)


def judge(models, model, test: data.Dataset, num_corrupted: int):
  """Returns model -> dataset -> accuracy in percent."""
  part = test.images[:num_corrupted], test.labels[:num_corrupted]
  sets = {"test": test}
  for name in CORRUPTIONS:
    sets[name] = data.Dataset(name, corrupted(part[0], name), part[1])
  evaluators = {
    name: Evaluator.from_arrays(
      model, floats(d).images, d.labels, batch_size=500, name=name
    )
    for name, d in sets.items()
  }
  table = {}
  for name, load in models.items():
    params = load()
    table[name] = {
      dataset: 100 * evaluate(params)
      for dataset, evaluate in evaluators.items()
    }
    table[name]["corrupted"] = float(
      np.mean([table[name][k] for k in CORRUPTIONS])
    )
    print(f"{name}: {table[name]}", flush=True)
  return table


def markdown(table) -> str:
  lines = [
    "| | test | corrupted (mean) | " + " | ".join(CORRUPTIONS) + " |",
    "|---" * (3 + len(CORRUPTIONS)) + "|",
  ]
  for name, row in table.items():
    cells = [f"{row[k]:.1f}" for k in ("test", "corrupted", *CORRUPTIONS)]
    lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--budget_minutes", type=float, default=10)
  parser.add_argument("--size", choices=SIZES, default="small")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  args.begun = time.monotonic()
  args.workdir.mkdir(parents=True, exist_ok=True)

  # --- Images -> TFDS -> memory -----------------------------------------------
  data_dir = args.workdir / "tfds"
  if not (data_dir / NAME).exists():
    folder = f"folder:{args.images}"
    splits = {s: data.open_source(folder, s) for s in ("train", "test")}
    data.write_tfds(NAME, splits, data_dir)
  first = with_flips(floats(in_memory("train[:25000]", data_dir)))
  second = with_flips(floats(in_memory("train[25000:48000]", data_dir)))
  minival = floats(in_memory("train[48000:]", data_dir))
  prepared = time.monotonic() - args.begun

  # --- Pretraining and sweep --------------------------------------------------
  size = SIZES[args.size]
  model = ViT(num_classes=10, mlp_dim=2 * size["width"], **size)
  chosen = plan(args, model, first)
  print(chosen, flush=True)
  config = make_config(
    args.seed, chosen["pretrain_steps"], chosen["sweep_steps"]
  )
  initial = pretrain(config, model, first, args.workdir)
  evaluate = Evaluator.from_arrays(
    model, minival.images, minival.labels, batch_size=500
  )
  ingredients = sweep(
    config, model, initial, second, evaluate.metrics, args.workdir
  )

  # --- Soups ------------------------------------------------------------------
  soups, selected = cook(model, ingredients, minival, evaluate, args.seed)
  best = ranked(ingredients)[0]
  models = {"pretrained": lambda: initial}
  models |= {i.name: i.load for i in ingredients}
  models |= {k: lambda params=params: params for k, params in soups.items()}

  # --- Judgement: test is looked at here and nowhere else ---------------------
  test = in_memory(f"test[:{chosen['test_images']}]", data_dir)
  table = judge(models, model, test, chosen["corrupted_images"])
  members = [table[i.name] for i in ingredients]
  rows = {
    "pretrained": table["pretrained"],
    "mean_ingredient": {
      k: float(np.mean([m[k] for m in members])) for k in members[0]
    },
    "best_ingredient_on_minival": table[best.name],
    **{f"{k}_soup": table[k] for k in soups},
  }
  minutes = (time.monotonic() - args.begun) / 60
  record = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "soupjax": sj.__version__,
    "device": jax.devices()[0].device_kind,
    "minutes": round(minutes, 2),
    "prepare_minutes": round(prepared / 60, 2),
    "size": args.size,
    "seed": args.seed,
    **chosen,
    "selected_by_greedy": selected,
    "best_ingredient": best.name,
    "accuracy": rows,
    "ingredients": {i.name: table[i.name] for i in ingredients},
  }
  results = HERE / "results" / "cifar10.json"
  results.write_text(json.dumps(record, indent=1) + "\n")
  print(markdown(rows))
  print(f"{minutes:.1f} minutes in all; greedy took {', '.join(selected)}")


if __name__ == "__main__":
  main()
