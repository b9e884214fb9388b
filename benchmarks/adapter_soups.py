# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Compares soups of LoRA's products with soups of its factors, on digits.

  soupjax --config=configs/finetune/digits.py:pretrain --workdir=runs/base
  soupjax --config=configs/finetune/digits.py:lora --workdir=runs/lora \
    --sweep --config.init.path=runs/base/ingredients/last
  python benchmarks/adapter_soups.py --sweep=runs/lora --workdir=runs/products

Averages the eight adapters in four ways: as models (products), leaf by leaf
(factors), and as adapters of ranks 8 and 4 by SVD. Prints accuracy and loss on
minival and on the test set, and the distance of each average to the mean of the
products. The first two commands take a minute on 2 cores, the last one half a
minute.
"""

import dataclasses
import pathlib

from absl import app, flags
import numpy as np

import soupjax as sj
from soupjax import config as config_lib
from soupjax.checkpoints.adapters import peft_config, peft_files
from soupjax.models import pretrained
from soupjax.tasks.cook import evaluate, inputs

SWEEP = flags.DEFINE_string("sweep", None, "The sweep of adapters.")
WORKDIR = flags.DEFINE_string("workdir", None, "A new directory.")
ROOT = pathlib.Path(__file__).parents[1]


def factor_mean(folders, out: pathlib.Path) -> pathlib.Path:
  """Writes an adapter with the mean of each factor, a wrong way to average."""
  trees = [sj.load_params(f / peft_config.WEIGHTS[0]) for f in folders]
  mean = {k: np.mean([tree[k] for tree in trees], axis=0) for k in trees[0]}
  peft_files.write(out, mean, peft_config.read(folders[0]).content)
  return out


def distance(model, base, soup) -> float:
  """Returns a model's distance to the soup over the base's distance to it."""

  def norm(a, b):
    return sum(
      np.square(np.subtract(a[k], b[k], dtype=np.float64)).sum() for k in a
    )

  a, b, c = (x.load() for x in (model, base, soup))
  return float(np.sqrt(norm(a, c) / norm(b, c)))


def main(argv):
  """Writes the averages and evaluates them."""
  del argv
  sweep, workdir = pathlib.Path(SWEEP.value), pathlib.Path(WORKDIR.value)
  workdir.mkdir(parents=True)
  base = sj.open_ingredient(sweep / "base/model.safetensors")
  folders = sorted(sweep.glob("member_*/adapters/last"))
  models = sj.find_ingredients(folders, base=base)
  sj.mix(sj.rules.linear(), models, out=workdir / "products.safetensors")
  averages = {
    "products": sj.open_ingredient(workdir / "products.safetensors"),
    "factors": sj.open_adapter(factor_mean(folders, workdir / "f"), base),
  }
  for rank in (8, 4):
    mixed = sj.mix_adapters(folders, workdir / f"r{rank}", rank=rank)
    averages[f"rank {rank}, error {mixed.error:.1%}"] = sj.open_adapter(
      mixed.path, base
    )
  config = config_lib.load(str(ROOT / "configs/cook.py"), f"sweep={sweep}")
  opened = inputs.open_inputs(config)
  evaluations = evaluate.Evaluations(opened, workdir)
  members = {model.name: model for model in models}
  for name, model in {**members, **averages}.items():
    away = distance(model, base, averages["products"])
    adapted = pretrained.as_ingredient(
      dataclasses.replace(model, name=name), opened.model
    )
    values = evaluations.evaluate(
      name, lambda adapted=adapted: adapted.load(sharding=opened.place)
    )
    print(
      f"{name:24}"
      + "".join(
        f"  {s} {values[s]['prec@1']:.2%} (loss {values[s]['loss']:.3f})"
        for s in ("minival", "test")
      )
      + f"  distance {away:.2f}"
    )


if __name__ == "__main__":
  flags.mark_flags_as_required(["sweep", "workdir"])
  app.run(main)
