# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares streaming soups with plain copying and other ways to average.

  python benchmarks/stream.py --tables=1,2,4            # a few minutes, 12 GB
  python benchmarks/stream.py --tables=3 --repeat=1     # 30 GB of disk
  python benchmarks/stream.py --tables=5 --repeat=3     # 25 GB of disk

Makes its own checkpoints in --folder and removes them at the end. Each
contestant runs in its own process. Seconds are those of the work after imports,
and memory is the peak of anonymous memory beyond what the imports take.
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

OUT = "out.safetensors"
SIZES = {  # Width, depth, MLP, heads, patch, tokens.
  "S": (384, 12, 1536, 6, 16, 197),
  "B": (768, 12, 3072, 12, 16, 197),
  "B32": (768, 12, 3072, 12, 32, 50),
  "L": (1024, 24, 4096, 16, 16, 197),
  "G": (1664, 48, 8192, 16, 14, 257),
}


def vit_shapes(size: str, scan: bool = False) -> dict[str, tuple[int, ...]]:
  """Returns leaf -> shape of a ViT of big_vision; `scan` stacks the blocks."""
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


def make(folder, size, count, scan=False, dtype="F32") -> list[str]:
  """Writes `count` ViTs unless they exist; returns their paths."""
  stem = f"{size}{'_scan' * scan}{'_bf16' * (dtype == 'BF16')}"
  return write_models(folder, stem, vit_shapes(size, scan), count, dtype)


def write_models(folder, stem, shapes, count, dtype="F32") -> list[str]:
  """Writes `count` models of random values unless they exist.

  Args:
    folder: the directory to write to.
    stem: start of the file names.
    shapes: leaf -> shape.
    count: number of models.
    dtype: "F32" or "BF16".

  Returns:
    The paths of the safetensors files.
  """
  import numpy as np

  itemsize = {"F32": 4, "BF16": 2}[dtype]
  header, end = {}, 0
  for name, shape in shapes.items():
    start, end = end, end + itemsize * math.prod(shape)
    header[name] = {
      "dtype": dtype,
      "shape": shape,
      "data_offsets": [start, end],
    }
  text = json.dumps(header).encode()
  text = text.ljust(-(-len(text) // 8) * 8)
  paths = [
    os.path.join(folder, f"{stem}_{k}.safetensors") for k in range(count)
  ]
  pool_size = min(1 << 22, max(map(math.prod, shapes.values())) << 1)
  for seed, path in enumerate(paths):
    if os.path.exists(path):
      continue
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(pool_size, np.float32) * 0.02
    if dtype == "BF16":
      pool = (pool.view(np.uint32) >> 16).astype(np.uint16)
    with open(path, "wb") as f:
      f.write(struct.pack("<Q", len(text)) + text)
      for shape in shapes.values():
        left = math.prod(shape)
        while left:
          n = min(left, pool_size >> 1)
          start = rng.integers(0, len(pool) - n + 1)
          f.write(pool[start : start + n].data)
          left -= n
  # So that no write-back of these files disturbs the measurements.
  os.sync()
  return paths


def hard_links(folder, paths, count) -> list[str]:
  """Gives `count` names to a few files, which stand in for as many models.

  Reading a file again under another name is the same work. Old links are
  replaced; they are removed with the folder.
  """
  links = []
  for k in range(count):
    link = os.path.join(folder, f"link_{k:02d}.safetensors")
    remove(link)
    os.link(paths[k % len(paths)], link)
    links.append(link)
  return links


def status(field: str) -> float:
  """Returns a field of /proc/self/status in MB."""
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

  def timed():
    cpu, start = time.process_time(), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return result, {"seconds": seconds, "cpu": time.process_time() - cpu}

  with open("/proc/self/io", encoding="utf-8") as f:
    read = int(f.readline().split()[1])
  result, figures = timed()
  with open("/proc/self/io", encoding="utf-8") as f:
    read = int(f.readline().split()[1]) - read
  again = []
  for _ in range(1, int(os.environ.get("TURNS", "1"))):
    remove(out)
    again.append(timed()[1])
  done.set()
  report = getattr(result, "report", None)
  figures |= {
    "anon": peak[0] - before,
    "rss": status("VmHWM"),
    "read": getattr(report, "bytes_read", 0),
    "rchar": read,
    # Medians over the later turns in this process.
    **{
      f"warm_{key}": statistics.median(figures[key] for figures in again)
      for key in ("seconds", "cpu")
      if again
    },
  }
  print("FIGURES", json.dumps(figures), flush=True)


def launch(name, paths, out, **env) -> list[dict[str, float]]:
  """Runs a contestant in new processes; returns the figures of each.

  Args:
    name: a key of `contestants.CONTESTANTS`.
    paths: the inputs.
    out: the output.
    **env: environment variables. COUNT is the number of processes. TURNS is the
      number of turns in each process: figures are those of the first turn, and
      "warm_seconds" and "warm_cpu" are medians over the others.

  Raises:
    RuntimeError: if a process prints no figures.
  """
  remove(out)
  remove(f"{out}.d")
  count = int(env.get("COUNT", "1"))
  python = contestants.python_for(name)
  command = [python, __file__, "--worker", name, out, *paths]
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


def in_turns(paths, out, names, repeat, cold=False, **env):
  """Runs all contestants in turn, `repeat` times.

  Returns:
    Contestant -> figures of its turns. Copying without and with a flush comes
    first.
  """
  rows = {"cat + cp": [], "cat + cp + fsync": [], **{n: [] for n in names}}
  for _ in range(repeat):
    for name, figures in rows.items():
      if cold:
        cool(paths)
      if name.startswith("cat"):
        figures.append(cat_cp(paths, out, "fsync" in name))
      else:
        figures.extend(launch(name, paths, out, **env))
  remove(out)
  remove(f"{out}.d")
  return rows


def compare(title, paths, folder, names, repeat, out_name, cold=False):
  """Measures contestants and prints one table."""
  out = os.path.join(folder, out_name)
  total = sum(os.path.getsize(p) for p in paths)
  rows = in_turns(paths, out, names, repeat, cold)
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
  compare("1. 8 x ViT-B", paths, folder, names, repeat, OUT)
  compare("1. 8 x ViT-B", paths, folder, ["soupjax"], repeat, OUT, cold=True)


def memory(folder, sizes, counts, repeat) -> dict[str, dict[str, float]]:
  """Returns size -> K -> peak anonymous memory beyond imports, in MB."""
  out = os.path.join(folder, "out.safetensors")
  peaks = {}
  for size in sizes:
    paths = make(folder, size, 2)
    peaks[size] = {}
    for count in counts:
      links = hard_links(folder, paths, count)
      turns = [launch("soupjax", links, out)[0]["anon"] for _ in range(repeat)]
      peaks[size][str(count)] = statistics.median(turns)
  remove(out)
  return peaks


def table_2(folder, repeat):
  print("\n2. Peak anonymous memory of soupjax beyond imports, MB")
  for size, peaks in memory(folder, "SBL", (2, 8, 32), repeat).items():
    for count, peak in peaks.items():
      print(f"ViT-{size} K={count:>2s}  {peak:6.0f}", flush=True)


def table_3(folder, repeat):
  for scan in (False, True):
    paths = make(folder, "G", 3, scan)
    title = f"3. 3 x ViT-G/14{', scanned blocks' if scan else ''} to "
    for out in (OUT, "out"):
      kind = "safetensors" if "." in out else "Orbax"
      compare(title + kind, paths, folder, ["soupjax"], repeat, out)
    for path in paths:
      os.remove(path)


def make_orbax(folder, size, count) -> list[str]:
  """Writes `count` ViTs as Orbax checkpoints from 8 devices."""
  code = (
    "import sys, jax, soupjax as sj\n"
    "from soupjax import sharding\n"
    "place = sharding.fsdp(sharding.make_mesh({'data': 8}))\n"
    "one = sj.open_ingredient(sys.argv[1])\n"
    "sj.save_params(sys.argv[2], one.load(sharding=place))\n"
  )
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
  outs = []
  for k, path in enumerate(make(folder, size, count)):
    outs.append(os.path.join(folder, f"orbax_{size}_{k}"))
    remove(outs[-1])
    command = [sys.executable, "-c", code, path, outs[-1]]
    subprocess.run(command, env=env, check=True)
  return outs


def bytes_of(directory) -> int:
  files = pathlib.Path(directory).rglob("*")
  return sum(f.stat().st_size for f in files if f.is_file())


def shared_reading(paths, out, processes) -> list[dict[str, float]]:
  """Returns the figures of processes that mix together, with 8 devices in all.

  "share" is the bytes of weights that a process reads, over all bytes of the
  inputs / `processes`.
  """
  import socket

  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  figures = launch(
    "soupjax",
    paths,
    out,
    COUNT=str(processes),
    ADDRESS=address,
    JAX_NUM_CPU_DEVICES=str(8 // processes),
  )
  total = sum(map(bytes_of, paths))
  return [{**f, "share": f["read"] * processes / total} for f in figures]


def table_4(folder, repeat):
  paths = make_orbax(folder, "B", 3)
  out = os.path.join(folder, "out")
  print(
    "\n4. 3 x ViT-B, Orbax to Orbax, saved from 8 devices; in all "
    f"{sum(map(bytes_of, paths)) / 1e9:.2f} GB"
  )
  for name in ("soupjax", "orbax_itself"):
    figures = [
      launch(name, paths, out, JAX_NUM_CPU_DEVICES="8")[0]
      for _ in range(repeat)
    ]
    seconds = statistics.median(f["seconds"] for f in figures)
    print(
      f"{name:14s} 1 process of 8 devices: {seconds:6.2f} s, anon "
      f"{max(f['anon'] for f in figures):.0f} MB",
      flush=True,
    )
  for i, f in enumerate(shared_reading(paths, out, 2)):
    print(
      f"soupjax        process {i} of 2: {f['seconds']:6.2f} s, read "
      f"{f['read'] / 1e9:.3f} GB of weights = {f['share']:.2f} x total / 2",
      flush=True,
    )
  for path in (out, *paths):
    remove(path)


def table_5(folder, repeat):
  paths = make(folder, "L", 8)
  compare("5. 8 x ViT-L", paths, folder, ["soupjax"], repeat, OUT)
  for path in paths:
    os.remove(path)
  paths = make(folder, "B32", 72)
  title = "5. 72 x ViT-B/32"
  compare(title, paths, folder, ["soupjax"], repeat, OUT, cold=True)


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
  parser.add_argument("--peers-python", default=sys.executable)
  arguments = parser.parse_args()
  os.environ["PEERS_PYTHON"] = arguments.peers_python
  os.makedirs(arguments.folder, exist_ok=True)
  try:
    for table in arguments.tables.split(","):
      globals()[f"table_{table}"](arguments.folder, arguments.repeat)
  finally:
    if not arguments.keep:
      remove(arguments.folder)


if __name__ == "__main__":
  main()
