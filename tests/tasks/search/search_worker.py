# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes of `methods_test`; no test by itself."""

import json
import sys

import helpers


def main(runs: str) -> None:
  """Runs searches: JSON of [method, workdir, overrides] in a list."""
  helpers.join_workers()

  from soupjax import config as config_lib
  from soupjax.tasks.search import run as search

  for method, workdir, overrides in json.loads(runs):
    config = str(helpers.ROOT / "configs" / "search.py")
    search.run(config_lib.load(config, method, **overrides), workdir)


if __name__ == "__main__":
  main(*sys.argv[1:])
