# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A cooking run that takes seconds, for several tests."""

import json

import finetuning

from soupjax import config as config_lib

CONFIG = str(finetuning.ROOT / "configs" / "cook.py")
SMALL = {
  "tests": "test=test,blur=blur",
  "cook.metric": "prec@1,loss",
  "cook.learned.steps": 3,
  "cook.learned.granularities": ("layer",),
  "cook.learned.batch_size": 96,
  "cook.wise_ft_points": 3,
}


def config_of(sweep, **changes):
  return config_lib.load(CONFIG, f"sweep={sweep}", **{**SMALL, **changes})


def rows(workdir):
  lines = (workdir / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def values(workdir, metric="prec@1"):
  return {
    (r["model"], r["dataset"]): r["value"]
    for r in rows(workdir)
    if r["metric"] == metric
  }
