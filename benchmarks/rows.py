# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of `run.py`: measurements, their bars and their figures.

A measurement returns a flat dict of numbers; `run.py` calls it in its own
process. Most measurements use functions of the other scripts in this folder.
"""

from collections.abc import Callable
import dataclasses
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

import contestants
import stream

ROOT = pathlib.Path(__file__).parents[1]


class SkippedError(Exception):
  """Something that a row needs is not installed."""


@dataclasses.dataclass(frozen=True)
class Bar:
  """An upper limit for one figure.

  Attributes:
    label: name of the figure in the table.
    key: its name in the dict of the measurement.
    at_most: the limit.
    unit: text after the number, such as " s".
  """

  label: str
  key: str
  at_most: float
  unit: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    name: name of the row for --only.
    title: description of the measurement.
    measure: function of a folder that all rows share; returns the figures.
    bars: the limits.
    note: formats the figures that have no bar.
    seconds: time limit after which the row is stopped.
  """

  name: str
  title: str
  measure: Callable[[str], dict]
  bars: tuple[Bar, ...] = ()
  note: Callable[[dict], str] = lambda f: ""
  seconds: float = 400


def medians(turns: list[dict]) -> dict[str, float]:
  """The median of every figure over the turns."""
  return {k: statistics.median(t[k] for t in turns) for k in turns[0]}


# --- Commands -----------------------------------------------------------------


def shell(folder: str, script: str, *arguments: str, **env: str):
  """Starts a script of launch/ with this interpreter and without pip."""
  programs = pathlib.Path(folder) / "venv" / "bin"
  programs.mkdir(parents=True, exist_ok=True)
  for name, text in {
    "python": f'[ "$2" = pip ] || exec {sys.executable} "$@"',
    "soupjax": f'exec {sys.executable} -m soupjax.main "$@"',
  }.items():
    (programs / name).write_text(f"#!/bin/sh\n{text}\n")
    (programs / name).chmod(0o755)
  path = (
    f"{programs}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  )
  return subprocess.Popen(
    [str(ROOT / "launch" / script), *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={
      **os.environ,
      "PATH": path,
      "PYTHONPATH": str(ROOT),
      "VIRTUAL_ENV": str(programs.parent),
      **env,
    },
  )


def main_job(folder):
  """Times launch/local.sh twice; the second run finds compiled programs."""
  figures = {}
  for turn in ("first", "second"):
    workdir = os.path.join(folder, f"digits_{turn}")
    starts, lines = [], []
    start = time.perf_counter()
    process = shell(folder, "local.sh", workdir)
    for line in process.stdout:
      lines.append(line)
      if re.match(r"\[\d/3\]", line):
        starts.append(time.perf_counter())
    end = time.perf_counter()
    if process.wait():
      raise RuntimeError(f"launch/local.sh failed:\n{''.join(lines)[-2000:]}")
    figures[f"{turn}_s"] = end - start
    for name, begun, ended in zip(
      ("pretrain", "sweep", "cook"), starts, [*starts[1:], end]
    ):
      figures[f"{turn}_{name}_s"] = ended - begun
  return figures


def suite(folder):
  """Times launch/test.sh, with PyTorch's models if torch is installed."""
  extras = "test"
  if "torch" in contestants.versions(sys.executable):
    extras += ",torch-tests"
  start = time.perf_counter()
  process = shell(folder, "test.sh", EXTRAS=extras)
  text, _ = process.communicate()
  minutes = (time.perf_counter() - start) / 60
  counts = re.search(r"(\d+) passed", text.rstrip().rpartition("\n")[2])
  if process.returncode or not counts:
    raise RuntimeError(f"launch/test.sh failed:\n{text[-2000:]}")
  return {"minutes": minutes, "passed": int(counts[1]), "extras": extras}


def imports(folder):
  def seconds(package):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {package}"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

  turns = [{p: seconds(p) for p in ("jax", "soupjax")} for _ in range(9)]
  figures = medians(turns)
  return {
    "jax_s": figures["jax"],
    "soupjax_s": figures["soupjax"],
    "ratio": figures["soupjax"] / figures["jax"],
  }


FIRST_STEP = """
import json, os, sys, time
import jax
from soupjax import main, progress
start = time.perf_counter()
events = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: events.append(name))
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
def step(self, *_, **__):
  compiled = sum(e.endswith("backend_compile_duration") for e in events)
  read = sum(e.endswith("compilation_cache/cache_hits") for e in events)
  print("FIGURES", json.dumps(
      {"s": time.perf_counter() - start, "compiled": compiled - read}),
      flush=True)
  os._exit(0)
progress.Progress.step = step
main.run()
"""


def first_step(folder):
  """Measures seconds from the end of imports to the start of the first step."""
  import json

  figures = {}
  config = f"--config={ROOT}/configs/finetune/digits.py:pretrain"
  for turn in ("first", "second"):
    workdir = os.path.join(folder, f"step_{turn}")
    done = subprocess.run(
      [sys.executable, "-c", FIRST_STEP, config, f"--workdir={workdir}"],
      capture_output=True,
      text=True,
      check=False,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if "FIGURES" not in done.stdout:
      raise RuntimeError(f"No step was reached:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.rpartition("FIGURES")[2])
    figures |= {f"{turn}_{key}": value for key, value in found.items()}
  figures["ratio"] = figures["second_s"] / figures["first_s"]
  return figures


def sweep(folder):
  """Counts the programs that the first and later members of a sweep compile."""
  import jax

  from soupjax import config as config_lib
  from soupjax.tasks.finetune import loop, run

  path = str(ROOT / "configs" / "finetune" / "digits.py")
  events, members, train = [], [], loop.train
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: events.append(name)
  )

  def counted(*args):
    before = len(events)
    failed = train(*args)
    compiled = [e.endswith("backend_compile_duration") for e in events[before:]]
    members.append(sum(compiled))
    return failed

  loop.train = counted
  run.run(
    config_lib.load(path),
    os.path.join(folder, "sweep"),
    sweep=config_lib.load_sweep(path)[:4],
  )
  return {"first": members[0], "others": sum(members[1:])}


# --- Files --------------------------------------------------------------------


def vit_b(folder):
  paths = stream.make(folder, "B", 8)
  out = os.path.join(folder, "out.safetensors")
  rows = stream.in_turns(paths, out, ["soupjax"], 11, TURNS="4")
  ours = medians(rows["soupjax"])
  copy = medians(rows["cat + cp + fsync"])
  return {
    "fresh_cpu_s": ours["cpu"],
    "warm_cpu_s": ours["warm_cpu"],
    "fresh_s": ours["seconds"],
    "warm_s": ours["warm_seconds"],
    "fresh_ratio": ours["seconds"] / copy["seconds"],
    "warm_ratio": ours["warm_seconds"] / copy["seconds"],
    "copy_s": copy["seconds"],
    "copy_cpu_s": copy["cpu"],
    "copy_unflushed_s": medians(rows["cat + cp"])["seconds"],
    "anon_mb": ours["anon"],
  }


def peers(folder):
  paths = stream.make(folder, "B", 8)
  out = os.path.join(folder, "out.safetensors")
  names = ["soupjax", *contestants.others()]
  rows = stream.in_turns(paths, out, names, 3)
  figures = {}
  for name in names:
    figures |= {f"{name}_{k}": v for k, v in medians(rows[name]).items()}
  figures["fastest_ratio"] = figures["soupjax_seconds"] / min(
    figures[f"{name}_seconds"] for name in names[1:]
  )
  return {
    **{k: v for k, v in figures.items() if not k.endswith(("read", "rchar"))},
    "versions": contestants.versions(),
  }


def peers_note(figures):
  ratios = [
    f"{name.removesuffix('_seconds')} "
    f"{seconds / figures['soupjax_seconds']:.1f}"
    for name, seconds in figures.items()
    if name.endswith("_seconds") and name != "soupjax_seconds"
  ]
  return f"ratio to soupjax's {figures['soupjax_seconds']:.2f} s: " + ", ".join(
    ratios
  )


def vit_b_bf16(folder):
  whole = stream.make(folder, "B", 8)
  half = stream.make(folder, "B", 8, dtype="BF16")
  kinds = {"fp32": whole, "bf16": half, "mixed": whole[:4] + half[:4]}
  out = os.path.join(folder, "out.safetensors")
  turns = {kind: [] for kind in kinds}
  for _ in range(5):
    for kind, paths in kinds.items():
      turns[kind] += stream.launch("soupjax", paths, out, TURNS="4")
  stream.remove(out)
  figures = {}
  for kind, paths in kinds.items():
    found = medians(turns[kind])
    figures[f"{kind}_fresh_cpu_s"] = found["cpu"]
    figures[f"{kind}_warm_cpu_s"] = found["warm_cpu"]
    read = sum(map(os.path.getsize, paths))
    figures[f"{kind}_warm_cpu_s_per_gb"] = found["warm_cpu"] / read * 1e9
  figures["mixed_ratio"] = (
    figures["mixed_warm_cpu_s_per_gb"] / figures["fp32_warm_cpu_s_per_gb"]
  )
  return figures


def orbax(folder):
  paths = stream.make(folder, "B", 8)
  outs = {
    "safetensors": os.path.join(folder, "out.safetensors"),
    "orbax": os.path.join(folder, "out"),
  }
  turns = {kind: [] for kind in outs}
  for _ in range(5):
    for kind, out in outs.items():
      turns[kind] += stream.launch("soupjax", paths, out, TURNS="4")
  figures = {}
  for kind, out in outs.items():
    stream.remove(out)
    found = medians(turns[kind])
    for key in ("cpu", "seconds", "warm_cpu", "warm_seconds", "anon"):
      figures[f"{kind}_{key}"] = found[key]
  for key in ("cpu", "seconds", "warm_cpu", "warm_seconds"):
    figures[f"{key}_ratio"] = (
      figures[f"orbax_{key}"] / figures[f"safetensors_{key}"]
    )
  return figures


def many_models(folder):
  paths = stream.write_models(folder, "tiny", {"w": (3,)}, 1000)
  out = os.path.join(folder, "out.safetensors")
  figures = {}
  for count in (500, 1000):
    found = medians(
      [stream.launch("soupjax", paths[:count], out)[0] for _ in range(3)]
    )
    figures |= {f"{k}_{count}": found[k] for k in ("cpu", "seconds", "rss")}
  stream.remove(out)
  figures["cpu_ratio"] = figures["cpu_1000"] / figures["cpu_500"]
  return figures


def leaves_of(folder):
  shapes = {
    f"Transformer/encoderblock_{i // 16:05d}/leaf_{i % 16:02d}": (2, 4)
    for i in range(300_000)
  }
  return stream.write_models(folder, "leaves", shapes, 3)


def many_leaves(folder):
  paths = leaves_of(folder)
  out = os.path.join(folder, "out.safetensors")
  mixed = stream.launch("soupjax", paths, out)[0]
  loaded = stream.launch("open_and_load", paths[:1], out)[0]
  stream.remove(out)
  return {
    "mix_cpu_s": mixed["cpu"],
    "mix_s": mixed["seconds"],
    "mix_rss_mb": mixed["rss"],
    "load_cpu_s": loaded["cpu"],
    "load_s": loaded["seconds"],
  }


def many_leaves_orbax(folder):
  paths = leaves_of(folder)
  out = os.path.join(folder, "out")
  found = stream.launch("soupjax", paths, out)[0]
  stream.remove(out)
  return {"cpu_s": found["cpu"], "s": found["seconds"], "rss_mb": found["rss"]}


def memory(folder):
  peaks = stream.memory(folder, "SBL", (2, 32), 3)
  figures = {
    f"{size}_{count}_mb": peak
    for size, counts in peaks.items()
    for count, peak in counts.items()
  }
  figures["most_mb"] = max(figures.values())
  figures["by_k"] = max(p["32"] / p["2"] for p in peaks.values())
  figures["by_size"] = max(
    max(p[count] for p in peaks.values())
    / min(p[count] for p in peaks.values())
    for count in ("2", "32")
  )
  figures["b_by_k"] = peaks["B"]["32"] / peaks["B"]["2"]
  return figures


def bytes_read(folder):
  paths = stream.make_orbax(folder, "B", 3)
  out = os.path.join(folder, "out")
  shares = [f["share"] for f in stream.shared_reading(paths, out, 2)]
  for path in (out, *paths):
    stream.remove(path)
  return {"least": min(shares), "most": max(shares)}


# --- Soups --------------------------------------------------------------------


def learned_memory(folder):
  import learned

  found = learned.memory(folder)
  return {
    "mb_8": found["8"]["anonymous_mb"],
    "mb_72": found["72"]["anonymous_mb"],
    "ratio": found["ratio"],
  }


def learned_step(folder):
  import learned

  found = learned.speed(folder, 3, counts=(8,))
  graph, disk, device = (
    found[f"8, {name}"]
    for name in ("graph over all models", "soupjax, disk", "soupjax, device")
  )
  return {
    "graph_s": graph["seconds_per_step"],
    "disk_s": disk["seconds_per_step"],
    "disk_ratio": disk["ratio"],
    "device_ratio": device["ratio"],
    "graph_mb": graph["anonymous_mb"],
    "disk_mb": disk["anonymous_mb"],
  }


def greedy(folder):
  import greedy as script

  workdir = pathlib.Path(folder)
  found = script.measure(*script.synthetic(workdir / "synthetic"), 3, False)
  figures = {
    "full_ratio": found["full: wall / evaluation"],
    "early_ratio": found["early: wall / evaluation"],
    "early_images": 100 * found["evaluated, all"],
    "full_s": found["full: wall s"],
    "early_s": found["early: wall s"],
  }
  # The main job leaves a sweep.
  finished = workdir / "digits_first" / "sweep"
  if finished.exists():
    digits = script.digits(finished, workdir / "greedy_digits")
    found = script.measure(*digits, 3, False)
    figures["digits_images"] = 100 * found["evaluated, all"]
  return figures


def cook(folder):
  import cook as script

  workdir = pathlib.Path(folder) / "cook"
  images = script.make_images(workdir, 2000)
  script.make_models(workdir, "S/16", 16, *images)
  os.sync()
  found = script.cook(workdir, "first", 5, [])
  keys = ("ratio", "wall", "start-up", "compile", "pure")
  return {key: found[key] for key in keys}


def copying_note(figures):
  return (
    f"{figures['fresh_s']:.2f} and {figures['warm_s']:.2f} s; `cat` + `cp` + "
    f"fsync {figures['copy_s']:.2f} s, {figures['copy_cpu_s']:.2f} of CPU; "
    f"without fsync {figures['copy_unflushed_s']:.2f} s"
  )


ROWS = (
  Row(
    "main_job",
    "the three commands of `launch/local.sh` on digits, from scratch, without "
    "pip",
    main_job,
    (Bar("wall", "first_s", 120, " s"),),
    lambda f: (
      f"pretraining {f['first_pretrain_s']:.0f}, sweep {f['first_sweep_s']:.0f}"
      f", cooking {f['first_cook_s']:.0f} s; a second run "
      f"{f['second_s']:.0f} s"
    ),
  ),
  Row(
    "vit_b",
    "uniform soup of 8 ViT-B (fp32), safetensors to safetensors, warm page "
    "cache, in a fresh process and a warm one",
    vit_b,
    (
      Bar("CPU, fresh", "fresh_cpu_s", 1.15, " s"),
      Bar("warm", "warm_cpu_s", 0.98, " s"),
      Bar("wall over `cat` + `cp` + fsync, fresh", "fresh_ratio", 1.5, " x"),
      Bar("warm", "warm_ratio", 1.25, " x"),
    ),
    copying_note,
  ),
  Row(
    "peers",
    "wall clock of other tools for the same soup (`mergekit`, `sd_mecha`, the "
    "model-soups loop, timm's average in float64, NumPy)",
    peers,
    (Bar("soupjax over the fastest", "fastest_ratio", 1, " x"),),
    peers_note,
  ),
  Row(
    "vit_b_bf16",
    "the same soup of bf16 files, and of four fp32 and four bf16 files, in a "
    "warm process",
    vit_b_bf16,
    (
      Bar("CPU, bf16", "bf16_warm_cpu_s", 0.8, " s"),
      Bar("CPU per byte, mixed over fp32", "mixed_ratio", 1.2, " x"),
    ),
    lambda f: f"fresh {f['bf16_fresh_cpu_s']:.2f} s",
  ),
  Row(
    "orbax",
    "soup of 8 ViT-B to Orbax over the same to safetensors, in a warm process",
    orbax,
    (
      Bar("CPU", "warm_cpu_ratio", 1.8, " x"),
      Bar("wall", "warm_seconds_ratio", 1.8, " x"),
    ),
    lambda f: (
      f"{f['orbax_warm_cpu']:.2f} s of CPU, {f['orbax_warm_seconds']:.2f} s; "
      f"fresh {f['cpu_ratio']:.1f} and {f['seconds_ratio']:.1f} x"
    ),
  ),
  Row(
    "many_models",
    "K = 1,000 files of one tiny leaf: opening and averaging",
    many_models,
    (
      Bar("CPU", "cpu_1000", 2, " s"),
      Bar("over K = 500", "cpu_ratio", 2.2, " x"),
      Bar("resident memory", "rss_1000", 300, " MB"),
    ),
  ),
  Row(
    "many_leaves",
    "300,000 leaves x 3 models: opening and averaging; opening and loading one",
    many_leaves,
    (
      Bar("CPU", "mix_cpu_s", 24, " s"),
      Bar("loading one", "load_cpu_s", 8, " s"),
    ),
    lambda f: f"resident memory {f['mix_rss_mb']:,.0f} MB",
  ),
  Row(
    "many_leaves_orbax",
    "the same to Orbax",
    many_leaves_orbax,
    (
      Bar("CPU", "cpu_s", 72, " s"),
      Bar("resident memory", "rss_mb", 1500, " MB"),
    ),
  ),
  Row(
    "memory",
    "anonymous memory of a uniform soup beyond imports, ViT-S to L, K = 2 and "
    "32",
    memory,
    (
      Bar("maximum", "most_mb", 60, " MB"),
      Bar("K = 32 over 2, maximum", "by_k", 1.1, " x"),
      Bar("ViT-B", "b_by_k", 1.03, " x"),
      Bar("largest over smallest ViT", "by_size", 1.1, " x"),
    ),
  ),
  Row(
    "bytes_read",
    "bytes of weights that one of two processes reads, over half of all bytes",
    bytes_read,
    (Bar("maximum", "most", 1.1, " x"),),
    lambda f: f"minimum {f['least']:.2f} x",
  ),
  Row(
    "learned_memory",
    "learned soup of ViT-S from disk: anonymous memory, K = 72 over 8",
    learned_memory,
    (Bar("ratio", "ratio", 1.1, " x"),),
    lambda f: f"{f['mb_8']:,.0f} and {f['mb_72']:,.0f} MB",
  ),
  Row(
    "learned_step",
    "learned soup: time of a step over that of a graph with all models in "
    "memory, K = 8 ViT-S at 112 px",
    learned_step,
    (Bar("from disk", "disk_ratio", 1.5, " x"),),
    lambda f: (
      f"from devices {f['device_ratio']:.2f} x; graph {f['graph_s']:.2f} s, "
      f"{f['graph_mb']:,.0f} MB, from disk {f['disk_mb']:,.0f} MB"
    ),
  ),
  Row(
    "greedy",
    "greedy soup of 16: wall clock over pure evaluation; images evaluated with "
    "early rejection",
    greedy,
    (
      Bar("full pass", "full_ratio", 1.1, " x"),
      Bar("early rejection", "early_ratio", 1.1, " x"),
      Bar("images", "early_images", 60, " %"),
    ),
    lambda f: (
      f"digits: {f['digits_images']:.0f} % of the images"
      if "digits_images" in f
      else ""
    ),
  ),
  Row(
    "cook",
    "cooking 16 ViT-S on 2,000 images of 64 px from the shell, early rejection "
    "on, over its pure forward passes, without start-up and compilation",
    cook,
    (Bar("wall", "ratio", 1.1, " x"),),
    lambda f: (
      f"forward passes {f['pure']:.0f} of {f['wall']:.0f} s, start-up "
      f"{f['start-up']:.1f}, tracing and compilation {f['compile']:.1f}"
    ),
    seconds=900,
  ),
  Row(
    "sweep",
    "programs that members 2 to 4 of a sweep compile",
    sweep,
    (Bar("programs", "others", 0),),
    lambda f: f"the first compiles {f['first']}",
  ),
  Row(
    "first_step",
    "time from imports to the first step of pretraining on digits, twice with "
    "one cache that is empty at first; second time over first",
    first_step,
    (Bar("programs compiled the second time", "second_compiled", 0),),
    lambda f: (
      f"{f['first_s']:.1f} and {f['second_s']:.1f} s, {f['ratio']:.2f} x"
    ),
  ),
  Row(
    "imports",
    "`import soupjax` over `import jax`, CPU",
    imports,
    (Bar("ratio", "ratio", 1.5, " x"),),
  ),
  # Last: it takes longest.
  Row(
    "tests",
    "`launch/test.sh` with PyTorch's models",
    suite,
    (Bar("wall", "minutes", 12, " min"),),
    lambda f: f"{f['passed']:,} tests, EXTRAS={f['extras']}",
    seconds=1500,
  ),
)
