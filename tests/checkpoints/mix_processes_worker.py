# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes of `mix_processes_test`; not a test by itself."""

import faulthandler
import json
import os
import sys
import traceback

import jax


def rchar() -> int:
  """Returns how many bytes this process has read so far, cached or not."""
  with open("/proc/self/io", encoding="utf-8") as f:
    return int(f.readline().split()[1])


def work(folder: str) -> None:
  import numpy as np

  import soupjax as sj
  from soupjax import sharding
  from soupjax.soups.engine import first_pass

  mesh = sharding.make_mesh({"x": 8})
  place = sharding.by_rules(
    mesh,
    [
      ("rows", jax.P("x")),
      ("columns", jax.P(None, "x")),
      ("", jax.P()),
    ],
  )
  # Imports all modules now, so that they do not count as reads below.
  for first in ("in_0.safetensors", "orbax_0"):
    sj.mix(sj.rules.linear(), f"{folder}/{first}", sharding=place)
  results = {}
  for kind in ("*.safetensors", "orbax_*"):
    before = rchar()
    mixed = sj.mix(sj.rules.linear(), f"{folder}/{kind}", sharding=place)
    results[kind] = {"rchar": rchar() - before, "read": mixed.report.bytes_read}
    for name, leaf in mixed.params.items():
      for shard in leaf.addressable_shards:
        where = f"{folder}/{kind[0]}_{name}_{shard.device.id}.npy"
        np.save(where, np.asarray(shard.data))
  sj.save_params(f"{folder}/from_mesh.safetensors", mixed.params)
  for out in ("soup.safetensors", "soup.npz", "soup_orbax"):
    before = rchar()
    mixed = sj.mix(
      sj.rules.linear(),
      f"{folder}/*[0-9].safetensors",
      out=f"{folder}/{out}",
      block_bytes=1 << 16,
      hash_inputs=True,
    )
    results[out] = {"rchar": rchar() - before, "read": mixed.report.bytes_read}
  # Into a bucket, without a shared disk.
  refused = ""
  if bucket := os.environ.get("BUCKET"):
    models = f"{bucket}/in/*.safetensors"
    mixed = sj.mix(sj.rules.linear(), models, out=f"{bucket}/soup")
    results["bucket"] = {"read": mixed.report.bytes_read}
    try:
      sj.mix(sj.rules.linear(), models, out=f"{bucket}/soup.npz")
    except ValueError as e:
      refused = str(e)
  # Inputs with checksums, one of them damaged.
  mixed = sj.mix(sj.rules.linear(), f"{folder}/sum_0.npz", sharding=place)
  hashes = [entry["content_hash"] for entry in mixed.provenance["ingredients"]]
  try:
    sj.mix(sj.rules.linear(), f"{folder}/sum_?.npz", sharding=place)
    message = "nothing"
  except ValueError as e:
    message = str(e)
  rules = {}
  first_pass._UNIT_ELEMENTS, first_pass._UNIT_BYTES = 1 << 14, 0
  for name in ("ties", "karcher", "dare", "iso_c"):
    mixed = sj.mix(
      getattr(sj.rules, name)(
        **({"density": 0.3} if name in ("ties", "dare") else {})
      ),
      f"{folder}/in_*.safetensors",
      base=f"{folder}/in_0.safetensors",
      out=f"{folder}/rule_{name}.safetensors",
      select={"rows": "skip"},
      block_bytes=1 << 16,
    )
    rules[name] = mixed.report.bytes_read
  index = jax.process_index()
  with open(f"{folder}/results_{index}.json", "w", encoding="utf-8") as f:
    json.dump(
      {
        "results": results,
        "rules": rules,
        "hashes": hashes,
        "message": message,
        "refused": refused,
      },
      f,
    )


def main() -> None:
  faulthandler.dump_traceback_later(float(os.environ["HARD"]), exit=True)
  jax.config.update("jax_num_cpu_devices", 4)
  jax.distributed.initialize(
    os.environ["ADDRESS"],
    int(os.environ["COUNT"]),
    int(os.environ["INDEX"]),
    initialization_timeout=30,
    heartbeat_timeout_seconds=10,
    shutdown_timeout_seconds=10,
  )
  try:
    work(sys.argv[1])
  except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    # Skips the barrier at exit, which the other processes may not reach.
    os._exit(1)
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
