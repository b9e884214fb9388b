# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches for coefficients on tasks made from real digits.

python benchmarks/digit_tasks/run.py --workdir=runs/searches [--seeds=3]

Writes scikit-learn's digits as tar files, upright and changed. A small ViT is
pretrained on upright and inverted digits of some writers, and fine-tuned with
its head frozen on tasks made from digits of other writers. Each search is then
a command with configs/search.py: WiSE-FT, task addition, negation, an analogy,
PAINT, DiWA, ratatouille and AdaMerging. All commands are printed.

Prints the tables of benchmarks/README.md (accuracy on test), and writes
../results/search.json, or WORKDIR/search.json if --seeds is not 3. Finished
steps are skipped: after an interruption, run the same command again.

Except for DiWA and ratatouille, heads are not merged: the pretrained head is
frozen and used for every task whose labels are digits. The head of "parity" is
made from it, in place of one made by a text tower: its columns are the means of
those of the even digits and of the odd digits.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import io
import pathlib
import subprocess
import sys
import tarfile
from typing import Any

from finetune import RATES
import jax
import numpy as np
from PIL import Image

import soupjax as sj
from soupjax import data, files
from soupjax.data import digits

PyTree = Any
HERE = pathlib.Path(__file__).resolve().parent
SEARCH = HERE.parents[1] / "configs" / "search.py"
RESULTS = HERE.parent / "results" / "search.json"
SHIFTS = (*digits.SHIFTS, "new_writers")
# Task -> change of images (n, height, width, channels) in [-1, 1]. "parity"
# keeps the images and asks whether the digit is odd.
VARIANTS = {
  "upright": lambda images: images,
  "inverted": lambda images: -images,
  "rotated": lambda images: np.rot90(images, axes=(1, 2)),
  "mirrored": lambda images: images[:, :, ::-1],
  "rotated_inverted": lambda images: -np.rot90(images, axes=(1, 2)),
  "parity": lambda images: images,
}
# Folder of images -> tasks, whose images are mixed.
FOLDERS = {task: [task] for task in VARIANTS} | {
  "pretrain": ["upright", "inverted"],
  "joint": ["rotated", "mirrored"],
}
ADDED = ["rotated", "mirrored", "parity"]
PATCHING, SUPPORTED = ["rotated", "mirrored"], ["upright", "inverted", "parity"]
# Tasks that ratatouille recycles, in the order of the learning rates.
AUXILIARY = ["rotated", "mirrored", "rotated_inverted", "parity"]
# Table -> searches whose models are the rows of the table.
TABLES = {
  "wise_ft": ["wise_ft"],
  "addition": ["addition", "uniform", "entropy_model", "entropy_layer"],
  "negation": ["negation"],
  "analogy": ["analogy"],
  "paint": [f"paint_{k}" for k in (*PATCHING, "joint", "second", "parallel")],
  "pools": ["diwa", "ratatouille"],
}


# --- Images -------------------------------------------------------------------


def variant(dataset: data.Dataset, task: str) -> data.Dataset:
  """Returns the task made from a dataset's digits, in the same order."""
  return data.Dataset(
    f"{dataset.name}/{task}",
    np.ascontiguousarray(VARIANTS[task](dataset.images)),
    dataset.labels % 2 if task == "parity" else dataset.labels,
  )


def write_tar(path: pathlib.Path, dataset, tasks, most: int) -> None:
  """Writes a tar file of LABEL/NUMBER.png, unless it exists.

  Args:
    path: the tar file.
    dataset: the digits.
    tasks: keys of `VARIANTS` whose images are mixed.
    most: maximum number of images per task.
  """
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  with tarfile.open(part, "w") as tar:
    for k, task in enumerate(tasks):
      source = data.from_dataset(variant(dataset, task), 10)
      for i in range(min(len(source), most)):
        example, file = source[i], io.BytesIO()
        Image.fromarray(example["image"]).save(file, "PNG")
        info = tarfile.TarInfo(f"{example['label']}/{k}_{i:04d}.png")
        info.size = file.tell()
        file.seek(0)
        tar.addfile(info, file)
  part.rename(path)


def write_images(folder: pathlib.Path, seed: int, most: int) -> None:
  """Writes FOLDER/SPLIT.tar for all of `FOLDERS`.

  The splits "few" and "rest" are parts of train, for DiWA and ratatouille.

  Args:
    folder: the directory of all images.
    seed: seed of the splits.
    most: maximum number of images per task in a file.
  """
  own = data.load_digits(seed=seed, num_train=300, num_minival=200)
  train = own.train
  few, rest = (
    data.Dataset("digits/part", train.images[part], train.labels[part])
    for part in (slice(100), slice(100, None))
  )
  pretraining = {"train": own.pretrain, "minival": own.minival}
  splits = {"train": train, "few": few, "rest": rest}
  splits |= {"minival": own.minival, "test": own.test}
  shifts = {s.name.removeprefix("digits/"): s for s in own.shifts}
  for name, tasks in FOLDERS.items():
    sets = pretraining if name == "pretrain" else splits
    sets = sets | (shifts if name == "upright" else {})
    for split, dataset in sets.items():
      write_tar(folder / name / f"{split}.tar", dataset, tasks, most)


# --- Commands -----------------------------------------------------------------


def soupjax(config: str, workdir: pathlib.Path, *flags: str, **values) -> None:
  """Prints and runs a command; `values` are dotted keys of the config."""
  values = {f"config.{key}": value for key, value in values.items()}
  values = {"config": config, "workdir": workdir, **values}
  arguments = [f"--{key}={value}" for key, value in values.items()]
  print("soupjax", *arguments, *flags, flush=True)
  command = [sys.executable, "-m", "soupjax.main", *arguments, *flags]
  subprocess.run(command, check=True)


@dataclasses.dataclass(frozen=True)
class Lab:
  """The models and searches of one seed; finished ones are skipped.

  Attributes:
    workdir: directory of images/, models/, tuned/ (links to models by name),
      starts/ (encoders with other heads) and searches/.
    seed: seed of the split, pretraining and fine-tuning.
    short: whether to train and search only briefly on few images, for a test.
  """

  workdir: pathlib.Path
  seed: int
  short: bool = False

  def tuned(self, name: str) -> pathlib.Path:
    """Returns the path of a fine-tuned model, by its name in the tables."""
    return self.workdir / "tuned" / name

  def start(self, task: str) -> pathlib.Path:
    """Returns the path of the pretrained model with the head of a task."""
    path = self.workdir / "starts" / f"{task}.safetensors"
    return path if path.exists() else self.tuned("pretrained")

  def write_start(self, name: str, encoder: PyTree, head: PyTree) -> str:
    """Writes an encoder with another head; returns the path."""
    path = self.workdir / "starts" / f"{name}.safetensors"
    if not path.exists():
      sj.save_params(path, {**encoder, "head": head})
    return str(path)

  def finetune(self, name: str, folder: str, *flags: str, kind="", **values):
    """Fine-tunes on a key of `FOLDERS`; for `kind`, see finetune.py."""
    workdir, link = self.workdir / "models" / name, self.tuned(name)
    if link.is_symlink():  # Even if dangling, as the link of a sweep is.
      return
    if kind != "pretrain":
      values = {"init.path": str(self.start(folder))} | values
    arg = f"images={self.workdir / 'images' / folder},seed={self.seed}"
    arg += f",{kind}" * bool(kind) + ",short" * self.short
    soupjax(f"{HERE / 'finetune.py'}:{arg}", workdir, *flags, **values)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(workdir / "ingredients" / "last")

  def search(self, name, method, *inputs, **options) -> None:
    """Runs a search unless it is finished.

    Args:
      name: directory of the search.
      method: argument of configs/search.py.
      *inputs: arguments of `inputs`.
      **options: keys of `config.search`.
    """
    workdir = self.workdir / "searches" / name
    if not (workdir / "report.html").exists():
      options = {f"search.{key}": value for key, value in options.items()}
      soupjax(f"{SEARCH}:{method}", workdir, **self.inputs(*inputs), **options)

  def inputs(
    self,
    models: Sequence[str],
    tasks: Sequence[str],
    initial: pathlib.Path | None = None,
  ) -> dict[str, Any]:
    """Returns keys of configs/search.py.

    Args:
      models: names of fine-tuned models, or absolute patterns.
      tasks: keys of `VARIANTS` or shifts, also as TASK:model=NAME.
      initial: the initial model, whose head is averaged, too; None for the
        pretrained model and frozen heads.
    """
    texts = []
    for name in tasks:
      task, *model = name.split(":")
      folder, test = ("upright", task) if task in SHIFTS else (task, "test")
      parts = [f"{task}=folder:{self.workdir / 'images' / folder}"]
      parts += [f"minival=minival:test={test}", *model]
      parts += [f"head=file:{self.start(task)}"] * (initial is None)
      texts.append(":".join(parts))
    return {
      "initial": str(initial or self.tuned("pretrained")),
      "ingredients": ",".join(str(self.tuned(model)) for model in models),
      "tasks": ",".join(texts),
      "data.eval_ops": "value_range(-1, 1)",
    }


# --- Experiments --------------------------------------------------------------


def run(lab: Lab) -> None:
  """Trains the models and runs the searches of a seed."""
  points, steps, most = (3, 3, 60) if lab.short else (21, 500, 1000)
  write_images(lab.workdir / "images", lab.seed, most)
  lab.finetune("pretrained", "pretrain", kind="pretrain")
  pretrained = sj.load_params(lab.tuned("pretrained"))
  lab.write_start("parity", pretrained, parity_head(pretrained["head"]))
  for name in (*VARIANTS, "joint"):
    lab.finetune(name, name)

  def search(name, models, tasks, **options):
    lab.search(name, name, models, tasks, points=points, **options)

  shifts = {"choose_on": "upright", "show": "0.5"}
  search("wise_ft", ["upright"], ["upright", *SHIFTS], **shifts)
  search("addition", ADDED, ADDED, show="0.3")
  lab.search("uniform", "diwa", ADDED, ADDED, average="uniform")
  for granularity in ("model", "layer"):
    # All images of minival in every batch.
    options = {"granularity": granularity, "batch_size": min(200, most)}
    options["steps"] = steps
    lab.search(f"entropy_{granularity}", "entropy", ADDED, ADDED, **options)
  options = {"forget": "inverted", "control": "upright", "most": 2.0}
  search("negation", ["inverted"], ["inverted", "upright"], **options)
  a, b, c, target = "upright", "inverted", "rotated", "rotated_inverted"
  search("analogy", [a, b, c, target], [target], a=a, b=b, c=c, show="1")
  paint(lab, points)
  pools(lab)


def parity_head(head: PyTree) -> PyTree:
  """Makes a head of two classes: the means of even and of odd columns."""
  return {
    name: np.stack([leaf[..., k::2].mean(-1) for k in (0, 1)], -1)
    for name, leaf in head.items()
  }


def paint(lab: Lab, points: int) -> None:
  """Patches the model on `PATCHING`; `SUPPORTED` are the control tasks."""
  tasks, (first, second) = [*PATCHING, *SUPPORTED], PATCHING
  options = {"points": points, "supported": "+".join(SUPPORTED)}
  for name in PATCHING:
    title = f"paint_{name}"
    lab.search(title, "paint", [name], tasks, patching=name, **options)
  options["patching"] = "+".join(PATCHING)
  lab.search("paint_joint", "paint", ["joint"], tasks, **options)
  budget = 6 if lab.short else 50
  lab.search(
    *("paint_parallel", "paint_parallel", PATCHING, tasks),
    **{"budget": budget, **options},
  )
  # The second task is fine-tuned from the model patched on the first.
  lab.search("paint_first", "paint_sequential", [first], tasks, **options)
  stage = lab.workdir / "searches" / "paint_first" / "stages" / second
  lab.finetune("second", second, **{"init.path": str(stage)})
  models, tasks[1] = [first, "second"], f"{second}:model=second"
  lab.search("paint_second", "paint_sequential", models, tasks, **options)


def pools(lab: Lab) -> None:
  """Averages five runs on few images, from one encoder or from five.

  One encoder is DiWA, and five are ratatouille.
  """
  runs = lab.workdir / "models" / "diwa"
  inputs, options = [["upright", *SHIFTS], runs / "initial"], {}
  options["choose_on"] = "upright"
  lab.finetune("diwa", "upright", "--sweep", kind="pool")
  pool = [f"{runs}/member_*/ingredients/last"]
  lab.search("diwa", "diwa", pool, *inputs, **options)
  head = sj.load_params(runs / "initial")["head"]
  # The first run of both is the same.
  pool = [f"{runs}/member_000/ingredients/last"]
  for task, rate in zip(AUXILIARY, RATES[1:]):
    # Auxiliary tasks have other images than the target task.
    lab.finetune(f"auxiliary_{task}", task, **{"data.train": "rest"})
    encoder = sj.load_params(lab.tuned(f"auxiliary_{task}"))
    start = lab.write_start(f"auxiliary_{task}", encoder, head)
    values = {"init.path": start, "probe.total": "0steps"}
    values["hyper.learning_rate"] = rate
    pool.append(f"recycled_{task}")
    lab.finetune(pool[-1], "upright", kind="pool", **values)
  lab.search("ratatouille", "ratatouille", pool, *inputs, **options)


# --- Results ------------------------------------------------------------------


def table_of(lab: Lab, name: str) -> dict[str, dict[str, float]]:
  """Returns row -> column -> accuracy on test, for a key of `TABLES`."""
  made: dict[str, dict[str, float]] = {}
  for search in TABLES[name]:
    record = files.read_json(lab.workdir / "searches" / search / "search.json")
    table = record["tables"][0]
    rows = {k: dict(zip(table["columns"], v)) for k, v in table["rows"].items()}
    if name == "pools":  # The best run is where the greedy soup starts.
      best = record["greedy"]["greedy"]["selected"][0]
      rows["best run"] = rows[best]
      models = "pretrained", "best run", "uniform", "chosen"
      rows = {f"{search}: {model}": rows[model] for model in models}
    for model, scores in rows.items():
      if "noise" in scores:
        shifts = np.mean([scores[shift] for shift in SHIFTS])
        scores = {"test": scores["upright"], "8 shifts": float(shifts)}
      if name == "paint":  # Over both tasks, even if only one was patched.
        means = [
          np.mean([scores[t] for t in group]) for group in (PATCHING, SUPPORTED)
        ]
        scores["combined"] = float(np.mean(means))
      is_own = model.startswith(("at_", "after_", "chosen"))
      made.setdefault(f"{search}: {model}" if is_own else model, scores)
  return made


def record_of(lab: Lab) -> dict[str, Any]:
  """Returns the results of a seed."""
  searches = sorted(lab.workdir.glob("searches/*/search.json"))
  return {
    "accuracies": {name: table_of(lab, name) for name in TABLES},
    "chosen": {s.parent.name: files.read_json(s)["summary"] for s in searches},
  }


def markdown(name: str, runs: Sequence[dict[str, Any]]) -> str:
  """Returns a table of means and standard deviations over seeds."""
  tables = [run["accuracies"][name] for run in runs]
  columns = list(next(iter(tables[0].values())))
  lines = [
    f"| {' | '.join([name, *columns])} |",
    f"|---{'|---' * len(columns)}|",
  ]
  for row in tables[0]:
    cells = [row]
    for column in columns:
      values = [100 * table[row][column] for table in tables]
      cells.append(f"{np.mean(values):.1f}")
      if len(runs) > 1:
        cells[-1] += f" +- {np.std(values, ddof=1):.1f}"
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  root, runs = args.workdir.expanduser().absolute(), []
  for seed in range(args.seeds):
    lab = Lab(root / f"seed_{seed}", seed)
    run(lab)
    runs.append(record_of(lab))
  record = {"jax": jax.__version__, "soupjax": sj.__version__, "runs": runs}
  files.write_json(RESULTS if args.seeds == 3 else root / RESULTS.name, record)
  for name in TABLES:
    print(f"\n{markdown(name, runs)}")
  for search in runs[0]["chosen"]:
    print(f"\n{search}", *(run["chosen"][search] for run in runs), sep="\n  ")


if __name__ == "__main__":
  main()
