# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes of `command_test`: runs soupjax with arguments."""

import faulthandler
import json
import os
import pathlib

from soupjax import main
from soupjax.tasks import mix


def save_bytes_read(mixed, folder=pathlib.Path(os.environ["LOGS"])):
  path = folder / f"read_{os.environ['INDEX']}.json"
  path.write_text(json.dumps(mixed.report.bytes_read))
  return mixed


if __name__ == "__main__":
  faulthandler.dump_traceback_later(110, exit=True)
  if "HOMES" in os.environ:  # Each process has its own home directory.
    home = f"{os.environ['HOMES']}/home_{os.environ['INDEX']}"
    os.environ["HOME"] = home
  run = mix.run
  mix.run = lambda *a, **k: save_bytes_read(run(*a, **k))
  main.run()
