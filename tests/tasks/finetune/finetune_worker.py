# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes of `processes_test`; not a test by itself."""

import os
import sys

import helpers


def main(workdir: str, stop: str) -> None:
  """Trains a run under FSDP; exits after saving step `stop`, as if killed."""
  helpers.join_workers()

  from soupjax.checkpoints import train_state
  from soupjax.tasks.finetune import run as finetune_run

  save = train_state.StateSaver.save

  def save_and_stop(self, step, *rest):
    save(self, step, *rest)
    if step == int(stop):
      self.wait()
      from soupjax import processes

      processes.barrier("stop")
      os._exit(0)

  train_state.StateSaver.save = save_and_stop
  assert helpers.FINETUNE["checkpoint"] == "5steps"
  finetune_run.run(
    helpers.finetune_config(
      **{"sharding.preset": "fsdp", "sharding.fsdp_min_size": 64}
    ),
    workdir,
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
