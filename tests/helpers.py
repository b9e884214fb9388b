# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Shared builders of models, data and configs, and starters of processes."""

import fcntl
import functools
import io
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import soupjax as sj
from soupjax import config as config_lib
from soupjax import models
from soupjax.soups.core import tree as tree_lib

ROOT = pathlib.Path(__file__).parents[1]


# --- Several processes of jax.distributed, on one machine ---------------------


def run_workers(
  worker: pathlib.Path,
  logs: pathlib.Path,
  *arguments: str,
  count: int = 2,
  seconds: float = 280,
  **variables: str,
) -> None:
  """Runs a script in several processes; kills all if one fails.

  Args:
    worker: the script; finds ADDRESS, COUNT and INDEX in its environment, and
      the variables that `soupjax --distributed` reads.
    logs: a directory for the output of each process.
    *arguments: arguments of the script.
    count: number of processes.
    seconds: time limit.
    **variables: more environment variables.

  Raises:
    AssertionError: if a process fails or the time is up.
  """
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  workers, deadline = [], time.monotonic() + seconds
  for index in range(count):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"ADDRESS": f"localhost:{port}", "COUNT": str(count)}
    env |= {"INDEX": str(index)}
    # As in setup.cfg, so that workers can import the tests' helpers.
    paths = (ROOT, ROOT / "tests")
    env |= {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    env |= {"JAX_COORDINATOR_ADDRESS": env["ADDRESS"]}
    env |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    env |= variables
    # Not a pipe: a full pipe would block the worker.
    with open(logs / f"log_{index}", "wb") as log:
      workers.append(
        subprocess.Popen(
          [sys.executable, str(worker), *arguments],
          env=env,
          stdout=log,
          stderr=log,
          start_new_session=True,
        )
      )
  try:
    while any(w.poll() is None for w in workers):
      if any(w.poll() not in (None, 0) for w in workers):
        time.sleep(1)
        break
      assert time.monotonic() < deadline, "timeout"
      time.sleep(0.05)
  finally:
    for w in workers:
      if w.poll() is None:
        os.killpg(w.pid, signal.SIGKILL)
      w.wait()
  texts = [(logs / f"log_{i}").read_text()[-3000:] for i in range(count)]
  assert [w.returncode for w in workers] == [0] * count, "\n".join(texts)


def join_workers() -> None:
  """Joins the processes that `run_workers` started, with two devices each."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_disable_most_optimizations", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    os.environ["ADDRESS"],
    num_processes=int(os.environ["COUNT"]),
    process_id=int(os.environ["INDEX"]),
  )


# --- The console script -------------------------------------------------------

# Runs each command in a fork, so that modules are imported only once.
_SERVER = """
import json, os, sys
import grain.python, matplotlib.figure
from orbax.checkpoint import v1
import soupjax.main, soupjax.tasks.diagnose, soupjax.tasks.mix
import soupjax.tasks.cook.run, soupjax.tasks.finetune.run
for line in sys.stdin:
  request = json.loads(line)
  pid = os.fork()
  if not pid:
    break
  print(pid, flush=True)
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
  sys.exit()
for stream, name in ((1, "out"), (2, "err")):
  path = os.path.join(request["logs"], name)
  os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
os.environ |= request["env"]
os.chdir(request["cwd"])
sys.path[:0] = request["path"]
sys.argv = ["soupjax", *request["arguments"]]
if request["code"]:
  exec(request["code"])
else:
  soupjax.main.run()
"""


@functools.cache
def _server() -> subprocess.Popen:
  # Commands get one device instead of the eight of the tests.
  skipped = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
  env = {k: v for k, v in os.environ.items() if k not in skipped}
  env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  # Compiling takes longer than running the programs.
  env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  command = [sys.executable, "-c", _SERVER]
  return subprocess.Popen(command, env=env, bufsize=0, **pipes)


def _start(arguments, logs, cwd=ROOT, path=(), code=None) -> int:
  """Starts soupjax, or the code, in a fork; returns the process id."""
  request = {
    "arguments": list(map(str, arguments)),
    "code": code,
    "logs": str(logs),
    "cwd": str(cwd),
    "path": list(map(str, path)),
    # Variables of a store that was started after the server.
    "env": {k: v for k, v in os.environ.items() if k.startswith("AWS_")},
  }
  _server().stdin.write(json.dumps(request).encode() + b"\n")
  return int(_server().stdout.readline())


def _exit_code(seconds: float) -> int | None:
  """Returns the exit code of the command, or None if it is still running."""
  if select.select([_server().stdout], [], [], seconds)[0]:
    return int(_server().stdout.readline())
  return None


def soupjax(
  *arguments, cwd=ROOT, path=(), code=None, timeout=280
) -> subprocess.CompletedProcess:
  """Runs the console script with one device.

  Args:
    *arguments: arguments of the command.
    cwd: working directory of the command.
    path: additional directories to import from.
    code: Python code to run instead of the script.
    timeout: time limit in seconds.

  Returns:
    The exit code, and stdout and stderr as text.

  Raises:
    AssertionError: if the time is up.
  """
  with tempfile.TemporaryDirectory() as logs:
    pid = _start(arguments, logs, cwd, path, code)
    status = _exit_code(timeout)
    if status is None:
      os.kill(pid, signal.SIGKILL)
      _exit_code(60)
    output = [pathlib.Path(logs, name).read_text() for name in ("out", "err")]
  assert status is not None, f"timeout\n{output[1][-2000:]}"
  return subprocess.CompletedProcess(arguments, status, *output)


def kill_soupjax_when(directory: pathlib.Path, pattern: str, *arguments):
  """Starts a command and kills it once a file in a directory matches a pattern.

  Raises:
    AssertionError: if the command ends, or the time is up, before that.
  """
  with tempfile.TemporaryDirectory() as logs:
    pid = _start(arguments, logs)
    deadline, code = time.monotonic() + 200, None
    while code is None and not any(directory.glob(pattern)):
      code = _exit_code(0.002) if time.monotonic() < deadline else "timeout"
    if code is None or code == "timeout":
      os.kill(pid, signal.SIGKILL)
      _exit_code(60)
    error = pathlib.Path(logs, "err").read_text()[-2000:]
  assert code is None, f"ended with {code} before {pattern} was there\n{error}"


# Samples anonymous memory and the size of --workdir while the script runs, and
# prints the peaks.
_WATCHED = """
import os, threading, jax
# Compiling needs memory; loading what other tests have compiled does not.
jax.config.update("jax_enable_compilation_cache", False)
peak, disk, done = [0], [0], threading.Event()
workdir = [a[10:] for a in sys.argv if a.startswith("--workdir=")]
def size():
  total = 0
  for folder, _, names in os.walk(workdir[0]):
    for name in names:
      try:
        total += os.stat(os.path.join(folder, name)).st_size
      except OSError:
        pass
  return total
def now():
  with open("/proc/self/status") as f:
    return next(int(x.split()[1]) for x in f if x.startswith("RssAnon"))
def watch():
  while not done.wait(0.002):
    peak[0] = max(peak[0], now())
    if workdir:
      disk[0] = max(disk[0], size())
threading.Thread(target=watch, daemon=True).start()
try:
  soupjax.main.run()
finally:
  done.set()
  print("PEAK", 1024 * peak[0], disk[0])
"""


def peaks(*arguments, **options) -> tuple[int, int]:
  """Returns a command's peak anonymous memory and peak --workdir, in bytes."""
  done = soupjax(*arguments, code=_WATCHED, **options)
  assert done.returncode == 0, done.stderr
  memory, disk = done.stdout.rpartition("PEAK ")[2].split()
  return int(memory), int(disk)


# --- Configs that fine-tune and cook in seconds -------------------------------

DIGITS = str(ROOT / "configs" / "finetune" / "digits.py")
FINETUNE = {
  "data.name": "digits",  # 100 images, with augmentation on the host.
  "data.train_ops": "random_crop({image_size}, 2)|value_range(-1, 1)",
  "data.batch_ops": "erasing({erasing})|mixup({mixup})|cutmix({cutmix})",
  "optimizer.b2": 0.999,
  "steps_per_call": 1,
  "model.width": 16,
  "model.depth": 1,
  "model.mlp_dim": 32,
  "data.batch_size": 16,
  "data.eval_batch_size": 160,
  "probe.total": "0steps",
  "hyper.total": "12steps",
  "hyper.warmup": "2steps",
  "hyper.ema": (0.9,),
  "log": "4steps",
  "checkpoint": "5steps",
}


def finetune_config(**changes):
  return config_lib.load(DIGITS, **{**FINETUNE, **changes})


def three_members() -> pathlib.Path:
  """Trains three members from one start, until they clearly differ.

  All tests of a run share them; a test that changes them must copy them.

  Returns:
    The workdir of the sweep.
  """
  from soupjax.tasks.finetune import run as finetune_run

  workdir = pathlib.Path(os.environ["SOUPJAX_TESTS_SHARED"]) / "three_members"
  config = finetune_config(**{"hyper.ema": (), "hyper.total": "60steps"})
  overrides = [{"seed": k, "hyper.learning_rate": 5e-3 * k} for k in (1, 2, 3)]
  with open(f"{workdir}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / "member_002" / "done.json").exists():
      finetune_run.run(config, workdir, sweep=overrides)
  return workdir


def saved_adapter(folder: pathlib.Path, config):
  """Writes an adapter with random values, without training.

  Returns:
    The paths of the adapter and of its base, and the merged parameters.
  """
  from soupjax.tasks import workdir as workdir_lib
  from soupjax.tasks.finetune import adapter_files, step
  from soupjax.tasks.finetune import config as settings

  model, rng = settings.build_model(config), np.random.default_rng(0)

  def moved(path, x):
    name = jax.tree_util.keystr(path)
    noise = rng.normal(size=x.shape).astype("f")
    new = any(word in name for word in ("_lora_", "_ia3", "head"))
    return x + noise if new else x

  start = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype("f") / 3,
    step.abstract_params(config, model),
  )
  workdir_lib.save_model(folder / "initial", start)
  base = adapter_files.base_of(config, model, folder)
  adapter = settings.adapter_of(config)
  params = jax.tree_util.tree_map_with_path(
    moved, adapter.added(start, jax.random.key(0))
  )
  adapter_files.write(folder / "adapters/last", params, config, base)
  return folder / "adapters/last", base.path, adapter.merged(params)


def without_noise(params):
  """Drops leaves whose gradient is rounding noise, which optimizers amplify."""
  leaves, _ = tree_lib.flatten(params)
  return {k: v for k, v in leaves.items() if not k.endswith("key/bias")}


COOK_CONFIG = str(ROOT / "configs" / "cook.py")
COOK = {
  "tests": "test=test,blur=blur",
  "cook.metric": "prec@1,loss",
  "cook.learned.steps": 3,
  "cook.learned.granularities": ("layer",),
  "cook.learned.batch_size": 96,
  "cook.wise_ft_points": 3,
}


def cook_config(sweep, **changes):
  return config_lib.load(COOK_CONFIG, f"sweep={sweep}", **{**COOK, **changes})


def diagnose_config(sweep, **changes):
  path = ROOT / "configs" / "diagnose.py"
  return config_lib.load(str(path), f"sweep={sweep}", **changes)


def result_rows(workdir):
  lines = (workdir / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def result_values(workdir, metric="prec@1"):
  return {
    (r["model"], r["dataset"]): r["value"]
    for r in result_rows(workdir)
    if r["metric"] == metric
  }


# --- Merge rules on small trees -----------------------------------------------


def mix_trees(rule, trees, base=None, **more):
  """Merges trees in memory; an array stands for a tree with one leaf "w"."""

  def named(name, tree):
    tree = tree if isinstance(tree, dict) else {"w": tree}
    tree = {k: np.asarray(v) for k, v in tree.items()}
    tree = {k: v.astype("f") if v.dtype == "d" else v for k, v in tree.items()}
    return sj.Ingredient.from_params(name, tree)

  result = sj.mix(
    rule,
    [named(f"m{k}", tree) for k, tree in enumerate(trees)],
    base=None if base is None else named("base", base),
    **more,
  ).params
  return {k: np.asarray(v) for k, v in result.items()}


# --- Small labelled images ----------------------------------------------------

IMAGE_CLASSES = ("ant", "bee", "cat")


def fake_image(index: int) -> np.ndarray:
  """Returns a (20 + index % 3, 24, 3) image, smooth enough for JPEG."""
  rng = np.random.default_rng(index)
  small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
  return np.asarray(small.resize((24, 20 + index % 3), Image.BILINEAR))


def encoded_image(index: int, kind: str = "JPEG") -> bytes:
  file = io.BytesIO()
  Image.fromarray(fake_image(index)).save(file, kind, quality=95)
  return file.getvalue()


def write_image_folder(path: pathlib.Path, counts: dict[str, int]) -> None:
  """Writes CLASS/NN.jpg; image n overall, from 0, is `encoded_image(n)`."""
  n = 0
  for name, count in counts.items():
    (path / name).mkdir(parents=True)
    for i in range(count):
      (path / name / f"{i:02d}.jpg").write_bytes(encoded_image(n))
      n += 1


def write_tar(path: pathlib.Path, folder: pathlib.Path, mode="w") -> None:
  with tarfile.open(path, mode) as archive:
    for name in sorted(p.name for p in folder.iterdir()):
      archive.add(folder / name, arcname=name)


# --- Parameters with old names ------------------------------------------------

_OLD_NAMES = {
  "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
  "LayerNorm_1": "LayerNorm_2",
  "MlpBlock_0": "MlpBlock_3",
}


def flat_leaves(params):
  """Returns leaf name -> array."""
  return {k: np.asarray(v) for k, v in tree_lib.flatten(params)[0].items()}


def old_layout(params, class_position=0.5):
  """Renames parameters as vision_transformer saved them until 2021 (AugReg).

  `class_position` is the position embedding of the class token.
  """
  result = {}
  for name, value in flat_leaves(params).items():
    if name.startswith("Transformer/encoderblock_"):
      top, block, layer, rest = name.split("/", 3)
      name = "/".join([top, block, _OLD_NAMES.get(layer, layer), rest])
    result[name] = value
  table = result.pop("pos_embedding")
  position = np.full_like(table[:, :1], class_position)
  result["cls"] = result["cls"] - position
  result["Transformer/posembed_input/pos_embedding"] = np.concatenate(
    [position, table], axis=1
  )
  return result


# --- Learned soups: models, data, a differentiable mixture --------------------

COUNT = 4
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 5)).astype(np.float32)
LABELS = RNG.integers(3, size=32)


def vit_specs(**options):
  """Returns the shapes of a tiny ViT's parameters, as a tree."""
  model = models.ViT(
    num_classes=3, patch_size=4, num_heads=2, pool_type="map", **options
  )
  image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def make(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(dtype)

  return {
    "embed": {"kernel": normal(5, 8), "bias": normal(8)},
    "blocks": {
      "dense": {"kernel": 0.5 * normal(2, 8, 8), "bias": normal(2, 8)}
    },
    "head": {"kernel": normal(8, 3), "bias": normal(3)},
    "count": np.int32(3),
  }


def logits_of(params, images=IMAGES):
  x = images @ params["embed"]["kernel"] + params["embed"]["bias"][None]
  for k in range(2):
    dense = jax.tree.map(lambda leaf, k=k: leaf[k], params["blocks"]["dense"])
    x = x + jnp.tanh(x @ dense["kernel"] + dense["bias"][None])
  return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss_of(params, beta, keep=None):
  logits = beta * logits_of(params)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
  return losses.mean() if keep is None else (losses * keep).sum() / keep.sum()


TREES = [make(k) for k in range(COUNT)]
POOL = [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(TREES)]

# (granularity, stacked) -> leaf -> its group, or one group per stacked layer.
LAYERS = ["blocks[0]", "blocks[1]"]
GROUPS = {
  ("model", None): dict.fromkeys(
    [
      "embed/kernel",
      "embed/bias",
      "blocks/dense/kernel",
      "blocks/dense/bias",
      "head/kernel",
      "head/bias",
    ],
    "model",
  ),
  ("layer", None): {
    "embed/kernel": "embed",
    "embed/bias": "embed",
    "blocks/dense/kernel": "blocks/dense",
    "blocks/dense/bias": "blocks/dense",
    "head/kernel": "head",
    "head/bias": "head",
  },
  ("layer", "blocks/"): {
    "embed/kernel": "embed",
    "embed/bias": "embed",
    "blocks/dense/kernel": LAYERS,
    "blocks/dense/bias": LAYERS,
    "head/kernel": "head",
    "head/bias": "head",
  },
  ("tensor", None): {
    name: name
    for name in (
      "embed/kernel",
      "embed/bias",
      "blocks/dense/kernel",
      "blocks/dense/bias",
      "head/kernel",
      "head/bias",
    )
  },
  ("tensor", "blocks/"): {
    "embed/kernel": "embed/kernel",
    "embed/bias": "embed/bias",
    "blocks/dense/kernel": [f"blocks/dense/kernel[{k}]" for k in range(2)],
    "blocks/dense/bias": [f"blocks/dense/bias[{k}]" for k in range(2)],
    "head/kernel": "head/kernel",
    "head/bias": "head/bias",
  },
}
# One coefficient for the whole model does not depend on how layers are stored.
GROUPS["model", "blocks/"] = GROUPS["model", None]


def mixture(logits, groups, trees=None):
  """Returns the soup as one differentiable expression of all models.

  Args:
    logits: group -> (K,) logits of the coefficients.
    groups: leaf -> its group or groups; other leaves are those of the first.
    trees: K models; `TREES` by default.
  """
  trees = TREES if trees is None else trees

  def mix(path, *leaves):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name not in groups:
      return leaves[0]
    group = groups[name]
    if isinstance(group, str):
      return jnp.tensordot(jax.nn.softmax(logits[group]), jnp.stack(leaves), 1)
    alphas = jnp.stack([jax.nn.softmax(logits[g]) for g in group])  # (L, K)
    return jnp.einsum("lk,kl...->l...", alphas, jnp.stack(leaves))

  return jax.tree_util.tree_map_with_path(mix, *trees)


# --- A made-up finished run, for reports --------------------------------------

SHIFTS = ("rotate", "noise", "writers")


def record(model, kind, split, value, n=200, metric="prec@1"):
  return {
    "model": model,
    "kind": kind,
    "dataset": f"digits/{split}",
    "metric": metric,
    "value": value,
    "n": n,
  }


def records_of(model, kind, minival, test, shift, shifts=SHIFTS, loss=0.1):
  accuracies = {"minival": minival, "test": test}
  accuracies |= {s: shift + 0.01 * i for i, s in enumerate(shifts)}
  return [record(model, kind, s, a) for s, a in accuracies.items()] + [
    record(model, kind, s, loss, metric="loss") for s in accuracies
  ]


def records(size=4, shifts=SHIFTS):
  """Returns result lines of all kinds; ingredient_01 is the best ingredient."""
  out = records_of("pretrained", "pretrained", 0.93, 0.92, 0.80, shifts)
  for i in range(size):
    minival = 0.97 if i == min(1, size - 1) else 0.95
    name = f"ingredient_{i:02d}"
    out += records_of(name, "ingredient", minival, 0.95, 0.75, shifts)
  for name, test, shift in (
    ("uniform", 0.94, 0.79),
    ("greedy", 0.96, 0.80),
    ("learned_model", 0.955, 0.785),
    ("learned_layer", 0.965, 0.775),
  ):
    out += records_of(name, "soup", 0.975, test, shift, shifts)
  for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
    name = f"wise_ft_{alpha:.2f}"
    out += records_of(name, "interpolation", 0.95, 0.94, 0.78, shifts)
  for name in ("ensemble", "greedy_ensemble"):
    out += records_of(name, "ensemble", 0.98, 0.97, 0.82, shifts)
  return out


def with_gains(lines):
  """Adds differences, as cooking records them, to two of the soups."""
  changes = {
    ("greedy", "digits/test"): (0.01, 0.002, 0.018, 0.04),
    ("greedy", "digits/shifts"): (0.05, -0.01, 0.11, None),
    ("uniform", "digits/test"): (-0.01, -0.02, -0.001, 1e-5),
  }
  lines = [*lines, record("greedy", "soup", "shifts", 0.81, 600)]
  for line in lines:
    values = changes.get((line["model"], line["dataset"]))
    if values and line["metric"] == "prec@1":
      line.update(zip(("difference", "low", "high", "p"), values))
  return lines


def write_results(workdir, lines):
  path = pathlib.Path(workdir) / "results.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def _write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def greedy_trace(names, scores=None):
  scores = scores or [0.97 + 0.005 * (-1) ** i for i in range(len(names))]
  history, bar, selected = [], None, []
  for name, score in zip(names, scores):
    accepted = bar is None or score >= bar
    selected += [name] if accepted else []
    history.append(
      {
        "name": name,
        "score": score,
        "bar": bar,
        "accepted": accepted,
        "reason": "",
        "size": len(selected),
      }
    )
    bar = score if accepted else bar
  return {
    "accept": "ge",
    "min_delta": 0.0,
    "selected": selected,
    "history": history,
  }


def learned_trace(names, groups=("model",)):
  row = [(i + 1) / sum(range(len(names) + 1)) for i in range(len(names))]
  return {
    "names": names,
    "alphas": {g: row for g in groups},
    "beta": 0.1,
    "history": [{"step": 0, "loss": 1.0, "beta": 0.0}],
  }


def write_run(workdir, size=4, shifts=SHIFTS):
  """Writes the workdir of a finished cooking run; returns it."""
  workdir = pathlib.Path(workdir)
  write_results(workdir, records(size, shifts))
  names = [f"ingredient_{i:02d}" for i in range(size)]
  soups = workdir / "soups"
  _write(soups / "greedy/greedy.json", greedy_trace(names))
  _write(soups / "learned_model/learned.json", learned_trace(names))
  _write(
    soups / "learned_layer/learned.json",
    learned_trace(names, ("embedding", "blocks/0", "blocks/1", "head")),
  )
  for i, name in enumerate(names):
    _write(
      workdir / "ingredients" / name / "hyperparameters.json",
      {"learning_rate": 0.001 * (i + 1), "augment": "none"},
    )
  _write(workdir / "config.json", {"seed": 0, "sweep": {"size": size}})
  return workdir
