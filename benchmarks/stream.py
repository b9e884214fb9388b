# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Streaming soups against plain copying and against other ways to average.

  python benchmarks/stream.py --tables=1,2,4            # a few minutes, 12 GB
  python benchmarks/stream.py --tables=3 --repeat=1     # 30 GB of disk

Makes its checkpoints itself, in --folder, and removes them at the end. Every
contestant runs in a process of its own; seconds are those of the work, after
imports; memory is the peak of anonymous memory beyond what imports took.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time

import contestants

SIZES = {  # Width, depth, MLP, heads, patch, tokens.
  "S": (384, 12, 1536, 6, 16, 197),
  "B": (768, 12, 3072, 12, 16, 197),
  "L": (1024, 24, 4096, 16, 16, 197),
  "G": (1664, 48, 8192, 16, 14, 257),
}


def vit_shapes(size: str, scan: bool = False) -> dict[str, tuple[int, ...]]:
  """Leaves of a ViT as big_vision names them; `scan` stacks the blocks."""
  width, depth, mlp, heads, patch, tokens = SIZES[size]
  head = width // heads
  block = {
    "LayerNorm_0/scale": (width,),
    "LayerNorm_0/bias": (width,),
    "LayerNorm_1/scale": (width,),
    "LayerNorm_1/bias": (width,),
    "MlpBlock_0/Dense_0/kernel": (width, mlp),
    "MlpBlock_0/Dense_0/bias": (mlp,),
    "MlpBlock_0/Dense_1/kernel": (mlp, width),
    "MlpBlock_0/Dense_1/bias": (width,),
  }
  attention = "MultiHeadDotProductAttention_0"
  for part in ("query", "key", "value"):
    block[f"{attention}/{part}/kernel"] = (width, heads, head)
    block[f"{attention}/{part}/bias"] = (heads, head)
  block[f"{attention}/out/kernel"] = (heads, head, width)
  block[f"{attention}/out/bias"] = (width,)
  shapes = {
    "cls": (1, 1, width),
    "embedding/kernel": (patch, patch, 3, width),
    "embedding/bias": (width,),
    "pos_embedding": (1, tokens, width),
    "Transformer/encoder_norm/scale": (width,),
    "Transformer/encoder_norm/bias": (width,),
    "head/kernel": (width, 1000),
    "head/bias": (1000,),
  }
  for name, shape in block.items():
    if scan:
      shapes[f"Transformer/encoderblock/{name}"] = (depth, *shape)
    else:
      for i in range(depth):
        shapes[f"Transformer/encoderblock_{i}/{name}"] = shape
  return shapes


def make(folder, size, count, scan=False) -> list[str]:
  """Writes `count` models, leaf by leaf, unless they are there."""
  import numpy as np

  shapes = vit_shapes(size, scan)
  header, end = {}, 0
  for name, shape in shapes.items():
    start, end = end, end + 4 * math.prod(shape)
    header[name] = {
      "dtype": "F32",
      "shape": shape,
      "data_offsets": [start, end],
    }
  text = json.dumps(header).encode()
  text = text.ljust(-(-len(text) // 8) * 8)
  paths = [
    os.path.join(folder, f"{size}{'_scan' * scan}_{k}.safetensors")
    for k in range(count)
  ]
  for seed, path in enumerate(paths):
    if os.path.exists(path):
      continue
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(1 << 22, np.float32) * 0.02
    with open(path, "wb") as f:
      f.write(struct.pack("<Q", len(text)) + text)
      for shape in shapes.values():
        left = math.prod(shape)
        while left:
          n = min(left, 1 << 21)
          start = rng.integers(0, len(pool) - n + 1)
          f.write(pool[start : start + n].data)
          left -= n
  # What was written long ago does not compete with what is measured.
  os.sync()
  return paths


def status(field: str) -> float:
  """A field of /proc/self/status in MB."""
  with open("/proc/self/status", encoding="utf-8") as f:
    line = next(line for line in f if line.startswith(field))
  return int(line.split()[1]) * 1024 / 1e6


def worker(name: str, paths: list[str], out: str) -> None:
  """Runs one contestant and prints its figures."""
  if int(os.environ.get("COUNT", "1")) > 1:
    import jax

    jax.distributed.initialize(
      os.environ["ADDRESS"], int(os.environ["COUNT"]), int(os.environ["INDEX"])
    )
  run = contestants.CONTESTANTS[name](paths, out)
  before, peak, done = status("RssAnon"), [0.0], threading.Event()

  def watch():
    while not done.wait(0.004):
      peak[0] = max(peak[0], status("RssAnon"))

  threading.Thread(target=watch, daemon=True).start()
  with open("/proc/self/io", encoding="utf-8") as f:
    read = int(f.readline().split()[1])
  cpu, start = time.process_time(), time.perf_counter()
  result = run()
  seconds = time.perf_counter() - start
  done.set()
  with open("/proc/self/io", encoding="utf-8") as f:
    read = int(f.readline().split()[1]) - read
  report = getattr(result, "report", None)
  figures = {
    "seconds": seconds,
    "cpu": time.process_time() - cpu,
    "anon": peak[0] - before,
    "rss": status("VmHWM"),
    "read": getattr(report, "bytes_read", 0),
    "rchar": read,
  }
  print("FIGURES", json.dumps(figures), flush=True)


def launch(name, paths, out, **env) -> list[dict[str, float]]:
  """Runs a contestant in `COUNT` processes; returns the figures of each."""
  remove(out)
  remove(f"{out}.d")
  count = int(env.get("COUNT", "1"))
  command = [sys.executable, __file__, "--worker", name, out, *paths]
  workers = [
    subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, **env, "INDEX": str(i)},
    )
    for i in range(count)
  ]
  figures = []
  for process in workers:
    text, errors = process.communicate()
    found = [x for x in text.splitlines() if "FIGURES" in x]
    if not found:
      raise RuntimeError(f"{name} failed:\n{errors[-3000:]}")
    figures.append(json.loads(found[0].split("FIGURES")[1]))
  return figures


def remove(path):
  if os.path.isdir(path):
    shutil.rmtree(path)
  elif os.path.exists(path):
    os.remove(path)


def cat_cp(paths, out, sync=False) -> dict[str, float]:
  """Reads all inputs and copies one."""
  remove(out)
  start, before = time.perf_counter(), os.times()
  with open(os.devnull, "wb") as null:
    subprocess.run(["cat", *paths], stdout=null, check=True)
  subprocess.run(["cp", paths[0], out], check=True)
  if sync:
    subprocess.run(["sync", out], check=True)
  seconds, after = time.perf_counter() - start, os.times()
  cpu = after.children_user + after.children_system
  cpu -= before.children_user + before.children_system
  return {"seconds": seconds, "cpu": cpu, "anon": 0, "rss": 0}


def cool(paths):
  """Drops files from the page cache."""
  for path in paths:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def compare(title, paths, folder, names, repeat, out_name, cold=False):
  """Prints one table; the rounds go through all contestants in turn."""
  out = os.path.join(folder, out_name)
  total = sum(os.path.getsize(p) for p in paths)
  rows = {"cat + cp": [], "cat + cp + fsync": [], **{n: [] for n in names}}
  for _ in range(repeat):
    for name, found in rows.items():
      if cold:
        cool(paths)
      if name.startswith("cat"):
        found.append(cat_cp(paths, out, "fsync" in name))
      else:
        found.extend(launch(name, paths, out))
  remove(out)
  remove(f"{out}.d")
  print(
    f"\n{title} ({total / 1e9:.2f} GB in, {'cold' if cold else 'warm'}, "
    f"median of {repeat}, least in brackets)"
  )
  print(
    f"{'':18s} {'seconds':>16s} {'GB/s':>6s} {'ratio':>6s} "
    f"{'CPU s':>6s} {'anon MB':>8s} {'peak RSS MB':>11s}"
  )
  base = statistics.median(f["seconds"] for f in rows["cat + cp"])
  for name, found in rows.items():
    seconds = [f["seconds"] for f in found]
    middle = statistics.median(seconds)
    speed = total / middle / 1e9
    print(
      f"{name:18s} {middle:8.2f} ({min(seconds):5.2f}) {speed:6.2f}"
      f" {middle / base:6.2f}"
      f" {statistics.median(f['cpu'] for f in found):6.2f}"
      f" {max(f['anon'] for f in found):8.0f}"
      f" {max(f['rss'] for f in found):11.0f}",
      flush=True,
    )


def table_1(folder, repeat):
  paths = make(folder, "B", 8)
  names = ["soupjax", "with_hashes", *contestants.others()]
  out = "out.safetensors"
  compare("1. 8 x ViT-B", paths, folder, names, repeat, out)
  compare("1. 8 x ViT-B", paths, folder, ["soupjax"], repeat, out, cold=True)


def table_2(folder, repeat):
  print("\n2. Peak anonymous memory of soupjax beyond imports, MB")
  out = os.path.join(folder, "out.safetensors")
  for size in ("S", "B", "L"):
    for count in (2, 8, 32):
      paths = make(folder, size, min(count, 8))
      paths = [paths[k % len(paths)] for k in range(count)]
      # The same file under several names: its reads are the same work.
      links = []
      for k, path in enumerate(paths):
        link = os.path.join(folder, f"link_{k:02d}.safetensors")
        remove(link)
        os.link(path, link)
        links.append(link)
      found = [launch("soupjax", links, out)[0]["anon"] for _ in range(repeat)]
      print(
        f"ViT-{size} K={count:2d}  {statistics.median(found):6.0f}", flush=True
      )
      for link in links:
        os.remove(link)


def table_3(folder, repeat):
  for scan in (False, True):
    paths = make(folder, "G", 3, scan)
    title = f"3. 3 x ViT-G/14{', scanned blocks' if scan else ''} to "
    for out in ("out.safetensors", "out"):
      kind = "safetensors" if "." in out else "Orbax"
      compare(title + kind, paths, folder, ["soupjax"], repeat, out)
    for path in paths:
      os.remove(path)


def table_4(folder, repeat):
  import socket

  paths = make(folder, "B", 3)
  orbax_paths = [os.path.join(folder, f"orbax_{k}") for k in range(3)]
  code = (
    "import sys, jax, soupjax as sj\n"
    "from soupjax import sharding\n"
    "place = sharding.fsdp(sharding.make_mesh({'data': 8}))\n"
    "one = sj.open_ingredient(sys.argv[1])\n"
    "sj.save_params(sys.argv[2], one.load(sharding=place))\n"
  )
  devices = {"JAX_NUM_CPU_DEVICES": "8"}
  for path, out in zip(paths, orbax_paths):
    remove(out)
    command = [sys.executable, "-c", code, path, out]
    subprocess.run(command, env={**os.environ, **devices}, check=True)
  total = 3 * sum(
    f.stat().st_size
    for f in pathlib.Path(orbax_paths[0]).rglob("*")
    if f.is_file()
  )
  out = os.path.join(folder, "out")
  print(
    "\n4. 3 x ViT-B, Orbax to Orbax, saved from 8 devices; in all "
    f"{total / 1e9:.2f} GB"
  )
  for name in ("soupjax", "orbax_itself"):
    found = [
      launch(name, orbax_paths, out, **devices)[0] for _ in range(repeat)
    ]
    seconds = statistics.median(f["seconds"] for f in found)
    print(
      f"{name:14s} 1 process of 8 devices: {seconds:6.2f} s, anon "
      f"{max(f['anon'] for f in found):.0f} MB",
      flush=True,
    )
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  found = launch(
    "soupjax",
    orbax_paths,
    out,
    COUNT="2",
    ADDRESS=address,
    JAX_NUM_CPU_DEVICES="4",
  )
  for i, f in enumerate(found):
    print(
      f"soupjax        process {i} of 2: {f['seconds']:6.2f} s, read "
      f"{f['read'] / 1e9:.3f} GB of weights = {f['read'] * 2 / total:.2f} x "
      f"total / 2",
      flush=True,
    )
  remove(out)
  for path in orbax_paths:
    remove(path)


def main():
  if sys.argv[1:2] == ["--worker"]:
    worker(sys.argv[2], sys.argv[4:], sys.argv[3])
    return
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tables", default="1,2,4")
  parser.add_argument("--repeat", type=int, default=5)
  parser.add_argument("--folder", default="/tmp/soupjax_stream_benchmark")
  parser.add_argument(
    "--keep", action="store_true", help="keep the checkpoints"
  )
  arguments = parser.parse_args()
  os.makedirs(arguments.folder, exist_ok=True)
  try:
    for table in arguments.tables.split(","):
      globals()[f"table_{table}"](arguments.folder, arguments.repeat)
  finally:
    if not arguments.keep:
      remove(arguments.folder)


if __name__ == "__main__":
  main()
