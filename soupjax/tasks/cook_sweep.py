# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of checkpoints on disk, judged on held-out and shifted test sets.

Reads top to bottom: what there is, every ingredient on everything, soups,
judgement, report. Settings are in `cook_config`.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from soupjax import data, report, sharding
from soupjax.checkpoints import files, find, processes
from soupjax.evaluators import (
  Classification,
  Streaming,
  classification_metrics,
)
from soupjax.models import detect, pretrained
from soupjax.progress import Progress
from soupjax.soups import average
from soupjax.soups.ingredient import Ingredient, check_ingredients
from soupjax.soups.starts import check_same_start
from soupjax.tasks import (
  cook,
  cook_checkpoints,
  cook_config,
  finetune,
  finetune_config,
)
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune_step import put_batch

PyTree = Any

# What models of the report are called that are no ingredients.
_RESERVED = re.compile(
  "(pretrained|uniform|greedy|ensemble|greedy_ensemble|learned_.*|wise_ft_.*)$"
)


# What other libraries keep beside weights.
_CONFIGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Kitchen:
  """What everything here needs.

  Attributes:
    config: as in configs/cook.py.
    model: with a head for the data's classes.
    mesh: with an axis "data".
    place: leaf name and spec -> where it goes on the mesh.
    minival: the source of held-out images.
    tests: name -> source of a test set.
    ingredients: with the leaves of the model.
    initial: the start, None where it is not known.
    theirs: the first of them as it was found.
    notes: lines for the plan, on what the checkpoints told.
  """

  config: ml_collections.ConfigDict
  model: Any
  mesh: jax.sharding.Mesh
  place: Callable[[str, Any], jax.sharding.Sharding]
  minival: data.Source
  tests: Mapping[str, data.Source]
  ingredients: Sequence[Ingredient]
  initial: Ingredient | None
  theirs: Ingredient
  notes: Sequence[str]

  @property
  def images(self) -> int:
    """Images in all sets together."""
    return len(self.minival) + sum(len(t) for t in self.tests.values())

  @property
  def logits_bytes(self) -> int:
    """Of all ingredients on all sets."""
    classes = self.config.data.num_classes
    return 4 * len(self.ingredients) * self.images * classes

  @property
  def ensembles(self) -> bool:
    """Whether there is room for what ensembles are made from."""
    room = self.config.cook.ensembles_gb * 1e9
    return jax.process_count() == 1 and self.logits_bytes <= room

  @property
  def family(self) -> str | None:
    """What the checkpoints were read as; None if they are of the model."""
    return self.ingredients[0].hyperparameters.get("family")


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Cooks and judges what is not there yet.

  Args:
    config: as in configs/cook.py.
    path: the directory of the run: `soups/NAME` (an Orbax checkpoint, how it
      came about, and `model.safetensors` with the names of the family that the
      ingredients are of), `judged/NAME.json`, `results.jsonl`, `report.html`.
    dry_run: opens everything, prints what would be done and stops.

  Returns:
    The path of the report; None after a dry run.

  Raises:
    ValueError: if the config cannot work, or checkpoints, model and data do not
      fit together.
  """
  cook_config.check(config)
  kitchen = open_kitchen(config)
  config = kitchen.config
  if _first():
    print(plan(kitchen))
  if dry_run:
    return None
  workdir = pathlib.Path(path).expanduser().absolute()
  with contextlib.ExitStack() as stack:
    if _first():
      workdir_lib.open_workdir(workdir, config)
      stack.enter_context(workdir_lib.locked(workdir))
    processes.barrier("opened")
    check_unchanged(kitchen, workdir / "cooked_from.json")
    return _run(kitchen, workdir)


def _first() -> bool:
  """Whether this process writes for all."""
  return jax.process_index() == 0


# --- What there is ------------------------------------------------------------


def open_kitchen(config) -> Kitchen:
  """Opens checkpoints and data; reads metadata and an image."""
  patterns = [p.strip() for p in config.ingredients.split(",") if p.strip()]
  opened = find.find_ingredients(patterns)
  start = find.open_ingredient(config.initial) if config.initial else None
  config, detected, notes = cook_checkpoints.resolve(
    config, [*opened, *filter(None, [start])]
  )
  model = cook_config.build_model(config)
  see = functools.partial(
    pretrained.as_ingredient,
    model=model,
    family=config.family or None,
    image_size=config.data.image_size,
  )
  ingredients = [
    dataclasses.replace(see(found), name=_safe(found.name)) for found in opened
  ]
  check_same_start(ingredients)
  check_ingredients(ingredients)
  initial = None
  if start is not None:
    initial = see(start)
    check_ingredients([*ingredients, initial])
  shapes = finetune.abstract_params(config, model)
  mesh = sharding.make_mesh(dict(config.sharding.mesh))
  size = config.cook.learned_batch_size
  sharding.share(mesh, "data", size, "cook.learned_batch_size")
  places = sharding.of_state(
    mesh,
    shapes,
    shapes,
    finetune_config.sharding_rules(config),
    fsdp_min_size=config.sharding.fsdp_min_size,
  )
  by_name = dict(sharding.named(places))
  minival, tests = _open_sources(config, detected, notes)
  return Kitchen(
    config=config,
    model=model,
    mesh=mesh,
    place=lambda leaf, _: by_name[leaf],
    minival=minival,
    tests=tests,
    ingredients=ingredients,
    initial=initial,
    theirs=opened[0],
    notes=notes,
  )


def _safe(name: str) -> str:
  """A name that is a file's, and that no soup has."""
  name = name.replace("/", ".").lstrip(".")
  return f"ingredient_{name}" if _RESERVED.match(name) else name


def _open_sources(config, detected, notes):
  """The held-out set and the test sets, labelled as the models' outputs."""
  c = config.data
  options = {"data_dir": c.data_dir or None}
  source = data.open_source(c.name, c.minival or c.train, **options)
  classes = cook_checkpoints.classes_of(config, detected, source)
  number = functools.partial(
    cook_checkpoints.labelled, classes=classes, num=c.num_classes
  )
  source = number(source, what="data.name")
  minival = source
  if not c.minival:
    _, minival = data.split_minival(source, per_class=c.minival_per_class)
  tests = {
    name: number(data.open_source(*where, **options), what=f"tests, {name}")
    for name, where in cook_config.tests(config).items()
  }
  for name, one in {"minival": minival, **tests}.items():
    known = classes
    if name == "minival" and not c.classes:
      known = detected.classes
    notes += cook_checkpoints.incomparable(one, known, name)
    cook_checkpoints.check_images(config, one)
  return minival, tests


def check_unchanged(kitchen: Kitchen, record: pathlib.Path) -> None:
  """Notes the checkpoints at the first start, compares them at later ones."""
  some = [*kitchen.ingredients, *filter(None, [kitchen.initial])]
  now = {i.name: _identity(i.path) for i in some}
  now |= {
    f"the set {name}": [source.name, len(source), source.num_classes]
    for name, source in {"minival": kitchen.minival, **kitchen.tests}.items()
  }
  before = workdir_lib.agreed(
    files.read_json(record) if record.exists() else None
  )
  if before is None:
    if _first():
      files.write_json(record, now)
    return
  changes = [
    f"{name} {what}"
    for name in sorted({*before, *now})
    if (
      what := "is new"
      if name not in before
      else "is gone"
      if name not in now
      else "changed"
      if before[name] != now[name]
      else ""
    )
  ]
  if changes:
    raise ValueError(
      f"{record.parent} holds soups of other checkpoints or images: "
      f"{', '.join(changes[:5])}{', ...' * (len(changes) > 5)}. Choose another "
      "--workdir."
    )


def _identity(path: str) -> list[Any]:
  """Path, and size and time of what is there."""
  if "://" in path:
    return [path]
  place = pathlib.Path(path)
  # A directory's own time does not tell of files that were written over.
  inside = sorted(p for p in place.rglob("*") if p.is_file())
  found = [p.stat() for p in (inside if place.is_dir() else [place])]
  size = sum(one.st_size for one in found)
  return [path, size, max((one.st_mtime_ns for one in found), default=0)]


def plan(kitchen: Kitchen) -> str:
  """What there is and what will be done, as text."""
  some = kitchen.ingredients
  known = [i.metrics.get("minival/prec@1") for i in some]
  lines = [
    f"{len(some)} ingredients of {some[0].num_bytes / 1e6:,.1f} MB"
    + (f", read as {kitchen.family!r}" if kitchen.family else "")
  ]
  lines += [
    f"  {i.name}" + ("" if value is None else f"  {value:.4f} on its minival")
    for i, value in zip(some, known)
  ]
  lines += kitchen.notes
  lines.append(
    "start: "
    + (kitchen.initial.path if kitchen.initial else "not known, no WiSE-FT")
  )
  lines.append(
    f"minival: {kitchen.minival.name}, {len(kitchen.minival)} images"
  )
  lines += [
    f"{name}: {source.name}, {len(source)} images"
    for name, source in kitchen.tests.items()
  ]
  if not kitchen.tests:
    lines.append("no test set: give tests= to see what was won")
  lines.append(
    "soups: " + ", ".join(["uniform", "greedy", *_learned_names(kitchen)])
  )
  lines.append(
    f"ensembles: {kitchen.logits_bytes / 1e6:,.1f} MB of logits"
    + ("" if kitchen.ensembles else ", for which there is no room: none")
  )
  return "\n".join(lines)


def _learned_names(kitchen) -> list[str]:
  """Learned soups need two ingredients at least."""
  if len(kitchen.ingredients) < 2:
    return []
  return [f"learned_{g}" for g in kitchen.config.cook.learned_granularities]


# --- The job ------------------------------------------------------------------


def _run(kitchen: Kitchen, workdir: pathlib.Path) -> pathlib.Path:
  began, config = time.monotonic(), kitchen.config
  bench = Bench(kitchen, workdir)
  place = kitchen.place

  # --- Every ingredient, on everything ----------------------------------------
  ingredients = []
  progress = Progress("ingredients", len(kitchen.ingredients), unit="models")
  for one in kitchen.ingredients:
    load = functools.partial(one.load, sharding=place)
    found = bench.judge(one.name, load, keep_logits=kitchen.ensembles)
    metrics = {f"minival/{k}": v for k, v in found["minival"].items()}
    ingredients.append(dataclasses.replace(one, metrics=metrics))
    if _first():
      where = workdir / "ingredients" / one.name / "hyperparameters.json"
      where.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(where, dict(one.hyperparameters))
    progress.step(images=kitchen.images)
  ingredients = cook.ranked(ingredients)
  _warn_of_chance(kitchen, ingredients[0])

  # --- Soups, by minival alone ------------------------------------------------
  names = _cook(kitchen, ingredients, bench, workdir)

  # --- Judgement --------------------------------------------------------------
  models = {i.name: ("ingredient", None) for i in kitchen.ingredients}
  if kitchen.initial:
    models["pretrained"] = (
      "pretrained",
      lambda: kitchen.initial.load(sharding=place),
    )
  for name in names:
    where = workdir / "soups" / name
    models[name] = (
      "soup",
      lambda where=where: find.load_params(where, sharding=place),
    )
  points = config.cook.wise_ft_points if kitchen.initial else 0
  for alpha in np.linspace(0, 1, points).tolist():
    digits = 2 if math.isclose(alpha, round(alpha, 2)) else 4
    models[f"wise_ft_{alpha:.{digits}f}"] = (
      "interpolation",
      lambda alpha=alpha: average.wise_ft(
        kitchen.initial, ingredients[0], alpha, sharding=place
      ),
    )
  progress = Progress("evaluate", len(models), unit="models")
  for name, (_, load) in models.items():
    bench.judge(name, load)
    progress.step(images=kitchen.images)
  joint, sizes = {}, {}
  if kitchen.ensembles:
    logits = {i.name: bench.logits(i.name) for i in ingredients}
    labels = bench.logits(Bench.LABELS)
    joint, sizes = cook.ensembles(
      config, ingredients, "minival", labels["minival"], logits, workdir
    )

  # --- Results ----------------------------------------------------------------
  rows = []
  for name, (kind, _) in sorted(models.items(), key=lambda m: _order(m[1][0])):
    rows += bench.rows(name, kind, bench.judge(name, None))
  for name, outputs in joint.items():
    found = {
      dataset: {
        **classification_metrics(array, labels[dataset]),
        "n": len(array),
      }
      for dataset, array in outputs.items()
    }
    rows += bench.rows(name, "ensemble", found)
  page = workdir / "report.html"
  if not _first():
    return page
  files.write_text(
    workdir / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
  )
  page = report.write_report(workdir)
  results = report.read_results(workdir / "results.jsonl")
  print(report.results_table(results, sizes))
  print(f"{time.monotonic() - began:.0f} s in all. Report: {page}")
  return page


def _warn_of_chance(kitchen, best) -> None:
  """Says so if the best ingredient knows next to nothing."""
  accuracy, chance = (
    best.metrics["minival/prec@1"],
    1 / kitchen.model.num_classes,
  )
  if accuracy - chance < 0.1 * (1 - chance) and _first():
    logging.warning(
      "The best ingredient has %.1f %% on minival, hardly better than chance. "
      "If that is not what you measured, its images are prepared otherwise "
      "(data.eval_ops), its classes are in another order (data.classes), or "
      "model.num_heads or model.act is not that of training.",
      100 * accuracy,
    )


def _order(kind: str) -> int:
  return ("pretrained", "ingredient", "soup", "interpolation").index(kind)


def _cook(kitchen, ingredients, bench, workdir) -> list[str]:
  """Makes every soup that is not there yet; returns their names."""
  config, place = kitchen.config.cook, kitchen.place
  soups = workdir / "soups"
  soups.mkdir(exist_ok=True)
  if not workdir_lib.agreed((soups / "uniform").exists()):
    soup = average.uniform_soup(ingredients, sharding=place)
    workdir_lib.save_model(soups / "uniform", soup)
  if not workdir_lib.agreed((soups / "greedy").exists()):
    trace = workdir / "greedy_trace.json"
    greedy = cook.greedy(
      config, "greedy soup", ingredients, bench.minival, trace, place
    )
    record = cook.greedy_record(config, greedy)
    workdir_lib.save_model(soups / "greedy", greedy.params, greedy=record)
    if _first():
      trace.unlink(missing_ok=True)
  for name in _learned_names(kitchen):
    if not workdir_lib.agreed((soups / name).exists()):
      state = workdir / f"{name}_state.json"
      params, record = cook.learned(
        config,
        name.removeprefix("learned_"),
        kitchen.model,
        ingredients,
        _batches(kitchen),
        state,
        place,
      )
      workdir_lib.save_model(soups / name, params, learned=record)
      if _first():
        state.unlink(missing_ok=True)
  names = ["uniform", "greedy", *_learned_names(kitchen)]
  for name in names:
    _export(kitchen, soups / name, workdir / "export" / name)
  return names


def _export(kitchen, soup: pathlib.Path, path: pathlib.Path) -> None:
  """Writes a soup with the names that the ingredients came with."""
  if kitchen.family is None:
    return
  npz = kitchen.family in ("big_vision", "mixer")
  # Beside their configs it is a folder that their libraries open as it is.
  configs = [
    found
    for name in _CONFIGS
    if (found := detect.beside(kitchen.ingredients[0].path, name))
  ]
  file = path.with_name(f"{path.name}.{'npz' if npz else 'safetensors'}")
  if configs:
    file = path / "model.safetensors"
  if not workdir_lib.agreed(file.exists()):
    file.parent.mkdir(parents=True, exist_ok=True)
    for one in configs if _first() else ():
      shutil.copyfile(one, path / one.name)
    params = find.load_params(soup)
    pretrained.save_exported(
      file, params, kitchen.model, kitchen.family, like=kitchen.theirs
    )


def _batches(kitchen):
  """Held-out images in random order, for learned soups."""
  config = kitchen.config
  loader = data.train_loader(
    kitchen.minival,
    batch_size=config.cook.learned_batch_size,
    seed=config.seed,
    preprocess=cook_config.eval_ops(config),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  for batch in loader:
    batch = put_batch(kitchen.mesh, batch, ("data",))
    yield batch["images"], batch["labels"]


# --- Judges -------------------------------------------------------------------


class Bench:
  """Evaluates models on all sets, and remembers it on disk."""

  LABELS = ".labels"  # Beside the logits of models.

  def __init__(self, kitchen: Kitchen, workdir: pathlib.Path):
    self._kitchen, self._workdir = kitchen, workdir
    config, mesh = kitchen.config, kitchen.mesh
    self._sources = {"minival": kitchen.minival, **kitchen.tests}
    self._size = finetune_config.rounded_up(
      config.data.batch_size, mesh.shape["data"]
    )
    put = functools.partial(put_batch, mesh, axes=("data",))
    self._judges = {
      name: Streaming(
        kitchen.model,
        data.eval_batches(
          source,
          batch_size=self._size,
          preprocess=cook_config.eval_ops(config),
          process_index=jax.process_index(),
          process_count=jax.process_count(),
        ),
        put,
        name=name,
      )
      for name, source in self._sources.items()
    }
    self._labels: dict[str, np.ndarray] = {}

  @functools.cached_property
  def minival(self) -> Classification | Streaming:
    """Scores candidates on held-out images; decoded once if there is room."""
    kitchen, judge = self._kitchen, self._judges["minival"]
    config, mesh = kitchen.config, kitchen.mesh
    needed = 12 * config.data.image_size**2 * len(kitchen.minival)
    if jax.process_count() > 1:
      return judge
    if needed > config.data.cache_gb * 1e9:
      logging.warning(
        "minival takes %.1f GB decoded, more than data.cache_gb=%g: it is "
        "decoded anew for every candidate, and all of it evaluated.",
        needed / 1e9,
        config.data.cache_gb,
      )
      return judge
    images, labels = judge.examples()
    place = sharding.along(mesh, "data")
    predict = judge.predict
    return Classification(
      lambda params, batch: predict(params, jax.device_put(batch, place)),
      images,
      labels,
      batch_size=self._size,
    )

  def judge(
    self,
    name: str,
    load: Callable[[], PyTree] | None,
    keep_logits: bool = False,
  ) -> dict[str, dict[str, float]]:
    """Metrics of a model by set; those of an earlier run if there are any."""
    record = self._workdir / "judged" / f"{name}.json"
    kept = self._logits_file(name)
    if workdir_lib.agreed(
      record.exists() and (kept.exists() or not keep_logits)
    ):
      return workdir_lib.agreed(files.read_json(record) if _first() else None)
    params, logits = load(), {}
    found = {}
    for dataset, judge in self._judges.items():
      try:
        if keep_logits:
          logits[dataset], labels = judge.logits(params)
          found[dataset] = classification_metrics(logits[dataset], labels)
          found[dataset]["n"] = len(labels)
          self._labels[dataset] = labels
        else:
          found[dataset] = judge.totals(params)
      except ValueError as e:
        raise ValueError(f"{name} on {dataset}: {e}") from e
    if _first():
      record.parent.mkdir(exist_ok=True)
      if keep_logits:
        files.write_arrays(self._logits_file(self.LABELS), self._labels)
        files.write_arrays(kept, logits)
      files.write_json(record, found)
    processes.barrier(f"judged {name}")
    return found

  def _logits_file(self, name: str) -> pathlib.Path:
    return self._workdir / "logits" / f"{name}.npz"

  def logits(self, name: str) -> dict[str, np.ndarray]:
    """Logits of a model that was judged, by set."""
    with np.load(self._logits_file(name), allow_pickle=False) as stored:
      return {dataset: stored[dataset] for dataset in self._judges}

  def rows(self, name: str, kind: str, found) -> list[dict[str, Any]]:
    """Lines of `results.jsonl`."""
    title = pathlib.PurePath(self._kitchen.config.data.name).name
    return [
      {
        "model": name,
        "kind": kind,
        "dataset": f"{title}/{dataset}",
        "metric": metric,
        "value": value,
        "n": values["n"],
      }
      for dataset, values in found.items()
      for metric, value in values.items()
      if metric != "n"
    ]
