# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Searches for coefficients on held-out data of tasks; see docs/search.md.

The method follows the colon, and its options are keys of `config.search`:

  soupjax --config=configs/search.py:addition --workdir=runs/addition \
    --config.initial=clip.safetensors --config.ingredients='tuned/*' \
    --config.tasks=cars=folder:cars:minival=val:test=test:head=zeroshot,\
dtd=folder:dtd:minival=val:test=test:head=zeroshot

In a config file, a task may also be a dict:

  c.tasks.cars = {"data": "folder:cars", "minival": "val", "test": "test",
                  "head": "file:heads/cars.npz", "model": "cars_lr3e-5"}

Every choice is made on minival; test is only reported. The chosen model is
WORKDIR/chosen, the report WORKDIR/report.html. --dry_run prints the plan and
the number of evaluations.

Your own program can take the place of datasets (docs/judge.md). Then each task
is NAME=METRIC, where METRIC is a metric that the program prints:

  soupjax --config=configs/search.py:addition --workdir=runs/addition \
    --config.initial=start.safetensors --config.ingredients='tuned/*' \
    --config.evaluate_command='python my_eval.py {checkpoint}' \
    --config.tasks=cars=cars/acc,dtd=dtd/acc

WiSE-FT on digits takes seconds, after the first two commands of
configs/finetune/digits.py:

  soupjax --config=configs/search.py:wise_ft --workdir=runs/alpha \
    --config.initial=runs/sweep/initial \
    --config.ingredients='runs/sweep/member_*/ingredients/last' \
    --config.tasks=digits=digits:minival=minival:test=test
"""

from soupjax.tasks.search import config as search_config


def get_config(arg=None):
  return search_config.default_config(arg or "wise_ft").lock()
