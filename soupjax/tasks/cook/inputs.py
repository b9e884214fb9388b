# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens the inputs of cooking: checkpoints, a model that fits, datasets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import os
import pathlib
import re
from typing import Any

import jax
import ml_collections
import numpy as np

from soupjax import buckets, data, evaluators, files, models, sharding
from soupjax import config as config_lib
from soupjax.checkpoints import companions, replaceable
from soupjax.checkpoints import open as open_lib
from soupjax.evaluators.label_spaces import LabelSpace
from soupjax.models import pretrained
from soupjax.soups.core.ingredient import (
  Ingredient,
  check_ingredients,
  check_names,
)
from soupjax.soups.core.records import check_same_init
from soupjax.soups.core.select import Selection, reordered
from soupjax.tasks import mix
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import classes as classes_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import export, heads, infer, protocols, window
from soupjax.tasks.finetune.step import leaf_sharding

# Names that the report uses for models other than ingredients.
_RESERVED = re.compile(
  "(pretrained|uniform|greedy|greedy_.*|ensemble|learned_.*|wise_ft|"
  "wise_ft_.*|window|chosen|after_.*|at_.*)$"
)
# If one image changes accuracy by more than this, the plan warns of ties.
_COARSE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
  """The opened checkpoints and model, for tasks that evaluate averages.

  Attributes:
    config: as in configs/cook.py, with all values filled in.
    model: with a head for the data's classes, or a whole CLIP, or an encoder
      without a head; None if a command evaluates.
    mesh: with an axis "data"; None if a command evaluates.
    place: leaf name and spec -> its sharding on the mesh; None if a command
      evaluates.
    spaces: name -> the classes of a test set among the outputs, if not all.
    ops: name -> operations of a test set that come before `data.eval_ops`.
    heads: name -> zero-shot head of a set, if the models do not have one.
    unseen: name -> what is known of the classes of a test set with its own.
    ingredients: with the leaves of the model.
    initial: the start, or None if unknown.
    original: the first ingredient with the leaves of its file.
    notes: lines for the plan about the checkpoints.
    clip_start: the CLIP of a sweep, whose leaf names soups get, or None.
  """

  config: ml_collections.ConfigDict
  model: Any
  mesh: jax.sharding.Mesh | None
  place: Callable[[str, Any], jax.sharding.Sharding] | None
  spaces: Mapping[str, LabelSpace]
  ops: Mapping[str, str]
  heads: Mapping[str, heads.Head]
  unseen: Mapping[str, str]
  ingredients: Sequence[Ingredient]
  initial: Ingredient | None
  original: Ingredient
  notes: Sequence[str]
  clip_start: export.Start | None = None

  @property
  def sets(self) -> dict[str, data.Source]:
    """All sets by name."""
    raise NotImplementedError

  @property
  def num_images(self) -> int:
    """Images in all sets together."""
    return sum(map(len, self.sets.values()))

  @property
  def metrics(self) -> tuple[str, ...]:
    """Names of the metrics of `cook.metric`; the first one ranks."""
    return cook_config.metrics(self.config)

  @property
  def calibration(self) -> bool:
    """Whether the calibration of every model is measured."""
    return self.config.cook.get("calibration", False)

  @property
  def is_judged(self) -> bool:
    """Whether a command evaluates, see `judge`."""
    return bool(self.config.evaluate_command)

  def mode(self, metric: str) -> str:
    """Returns "max" if higher values of a metric are better, else "min"."""
    return cook_config.mode(self.config, metric)

  def selection(self, ingredients: Sequence[Ingredient]) -> dict[str, Any]:
    """Returns `select` and `base` for soups of the ingredients in this order.

    Lists of numbers in `config.select` are in the order of `ingredients`.
    """
    select = mix.selection_of(self.config.select)
    if not select:
      return {}
    names = [ingredient.name for ingredient in self.ingredients]
    order = [names.index(ingredient.name) for ingredient in ingredients]
    return {"select": reordered(select, order), "base": self.initial}

  @property
  def family(self) -> str | None:
    """The family of the checkpoints; None if their leaves are the model's."""
    return self.ingredients[0].hyperparameters.get("family")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CookInputs(Inputs):
  """The opened checkpoints, model, mesh and datasets of cooking.

  Attributes:
    minival: the source of held-out images; None if a command evaluates, or the
      task "evaluate" has none.
    tests: name -> source of a test set.
    along: ingredient -> checkpoints of its run, oldest first; or "" -> those
      of the only run of `cook.window`. {} without a window.
  """

  minival: data.Source | None
  tests: Mapping[str, data.Source]
  along: Mapping[str, Sequence[Ingredient]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def sets(self) -> dict[str, data.Source]:
    """All sets by name, minival first."""
    minival = {} if self.minival is None else {"minival": self.minival}
    return {**minival, **self.tests}

  @property
  def greedy(self) -> dict[str, str]:
    """Name of each greedy soup -> its metric."""
    names = self.metrics
    return {cook_config.greedy_name(names, name): name for name in names}

  @property
  def logits_bytes(self) -> int:
    """Bytes of the logits of all ingredients on all sets."""
    classes = self.config.data.num_classes
    outputs = sum(
      len(source) * (source.num_classes if name in self.unseen else classes)
      for name, source in self.sets.items()
    )
    return 4 * len(self.ingredients) * outputs

  @property
  def ensembles(self) -> bool:
    """Whether the logits that ensembles need may be kept."""
    if self.is_judged:
      return False
    return self.logits_bytes <= self.config.cook.ensembles_gb * 1e9

  @property
  def learned(self) -> list[str]:
    """Names of the learned soups, which need two ingredients and gradients."""
    if len(self.ingredients) < 2 or self.is_judged:
      return []
    return [f"learned_{g}" for g in self.config.cook.learned.granularities]


def open_checkpoints(
  config: ml_collections.ConfigDict,
) -> tuple[list[Ingredient], Ingredient | None]:
  """Opens checkpoints, with leaves chosen by `config.skip` and `.prefix`.

  Returns:
    The ingredients, and the start or None, with the leaves of their files.
  """
  opened = open_lib.find_ingredients(
    patterns(config), base=config.base or config.initial or None
  )
  opened = [chosen_leaves(config, ingredient) for ingredient in opened]
  start = open_lib.open_ingredient(config.initial) if config.initial else None
  if start and config.skip:
    start = pretrained.without(start, config.skip)
  if start and config.prefix:
    if any(leaf.startswith(config.prefix) for leaf in start.specs):
      start = pretrained.under(start, config.prefix)
  return opened, start


def chosen_leaves(
  config: ml_collections.ConfigDict, ingredient: Ingredient
) -> Ingredient:
  """Returns an ingredient with leaves chosen by `config.skip` and `.prefix`."""
  if config.skip:
    ingredient = pretrained.without(ingredient, config.skip)
  if config.prefix:
    ingredient = pretrained.under(ingredient, config.prefix)
  return ingredient


def adapt(
  config: ml_collections.ConfigDict,
  model: Any,
  opened: Sequence[Ingredient],
  start: Ingredient | None,
) -> tuple[list[Ingredient], Ingredient | None]:
  """Gives checkpoints the leaves of a model; see `open_checkpoints`."""
  adapted = functools.partial(
    pretrained.as_ingredient,
    model=model,
    family=config.family or None,
    image_size=config.data.image_size,
  )
  ingredients = [
    dataclasses.replace(
      adapted(original), name=safe_name(original.name, config.task)
    )
    for original in opened
  ]
  # The folder of the start may have the name of an ingredient's.
  initial = start and dataclasses.replace(adapted(start), name="initial")
  return ingredients, initial


def open_inputs(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> CookInputs:
  """Opens checkpoints and data; reads metadata and one image of each set.

  Args:
    config: as in configs/cook.py.
    devices: of the mesh; None takes those of JAX.

  Raises:
    ValueError: if checkpoints, model and data do not fit together.
  """
  opened, start = open_checkpoints(config)
  runs: list[list[Ingredient]] = []
  if config.task == "cook":
    choose = functools.partial(chosen_leaves, config)
    runs = window.open_runs(config, opened, choose)
  config, detected, whole, notes = infer.resolve(
    config, [*opened, *filter(None, [start]), *itertools.chain(*runs)]
  )
  model = cook_config.build_model(config)
  if whole is not None and not isinstance(model, models.CLIP):
    model = heads.clip_of(model, whole.options)
  ingredients, initial = adapt(config, model, opened, start)
  along = window.by_ingredient(
    ingredients, [adapt(config, model, run, None)[0] for run in runs]
  )
  if config.task == "evaluate":
    check_names(ingredients)
  else:
    check_models(config, ingredients, initial, along)
  mesh = sharding.make_mesh(dict(config.sharding.mesh), devices)
  if config.task != "evaluate":
    sharding.share(
      mesh, "data", config.cook.learned.batch_size, "cook.learned.batch_size"
    )
  minival, tests, spaces, made, labels = _open_sources(
    config, detected, notes, model, opened[0]
  )
  if whole is not None:
    heads.check_scales(
      [
        *ingredients,
        *filter(None, [initial]),
        *itertools.chain(*along.values()),
      ]
    )
  clip_start = None
  if config.task == "cook":
    clip_start = _clip_start(config, model, ingredients[0], notes)
  _check_untrained(opened[0].path, tests)
  return CookInputs(
    config=config,
    model=model,
    mesh=mesh,
    place=leaf_sharding(config, model, mesh),
    minival=minival,
    tests=tests,
    spaces=spaces,
    ops={k: t.ops for k, t in cook_config.tests(config).items() if t.ops},
    heads=made,
    unseen={
      name: heads.about(
        config, made[name], labels, "minival" if minival else labels.name
      )
      for name, test in cook_config.tests(config).items()
      if test.names
    },
    ingredients=ingredients,
    initial=initial,
    original=opened[0],
    notes=notes,
    along=along,
    clip_start=clip_start,
  )


def _clip_start(
  config, model, ingredient, notes: list[str]
) -> export.Start | None:
  """Opens the CLIP of a sweep, or notes why soups do not get its names."""
  try:
    start = export.start_of(config, model, ingredient)
  except ValueError as e:
    notes.append(f"WARNING: soups are not written as CLIPs. {e}")
    return None
  if start:
    text = "" if start.is_whole else " and text tower, without their heads"
    notes.append(
      f"export/: the soups with the leaf names{text} of {start.file.path}"
    )
  return start


def check_models(
  config: ml_collections.ConfigDict,
  ingredients: Sequence[Ingredient],
  initial: Ingredient | None,
  along: Mapping[str, Sequence[Ingredient]],
  *,
  same_init: bool = True,
) -> None:
  """Checks that models of cooking can be averaged.

  Raises:
    ValueError: if starts, leaves, shapes or dtypes differ.
  """
  if same_init:
    check_same_init([*ingredients, *itertools.chain(*along.values())])
  if not check_selection(config, ingredients, initial):
    check_ingredients([*ingredients, *filter(None, [initial])])
  for run in along.values():
    # A checkpoint may have the name of an ingredient.
    first = dataclasses.replace(
      ingredients[0], name=f"ingredient {ingredients[0].name}"
    )
    check_ingredients([first, *run])


def check_selection(
  config: ml_collections.ConfigDict,
  ingredients: Sequence[Ingredient],
  initial: Ingredient | None,
) -> dict[str, Any]:
  """Checks `config.select` against the leaves; returns it as a dict."""
  select = mix.selection_of(config.select)
  for pattern, action in select.items():
    listed = np.ndim(action) > 0
    fix = None
    if listed and config.task == "cook" and config.cook.window:
      fix = (
        "the window averages other checkpoints; take 'keep' or one number, or "
        "leave cook.window out"
      )
    elif action == "skip":
      fix = "a model without a leaf cannot be evaluated; take 'keep' or numbers"
    elif (
      listed
      and config.task == "cook"
      and initial
      and (config.cook.wise_ft_points)
    ):
      fix = (
        "WiSE-FT has one ingredient, not a list of them; take 'keep', or set "
        "cook.wise_ft_points=0"
      )
    elif (
      not listed
      and config.task == "cook"
      and len(ingredients) > 1
      and config.cook.learned.granularities
      and not config.evaluate_command
    ):
      fix = (
        "learned soups of this task have no base; give one number for each "
        "ingredient, or set cook.learned.granularities=()"
      )
    if fix:
      raise ValueError(f"select has {action!r} for {pattern!r}, but {fix}.")
  Selection(
    ingredients,
    base=initial,
    select=select,
    dtype=None,
  )
  return select


def patterns(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the patterns of `config.ingredients`."""
  return open_lib.split_patterns(config.ingredients)


def safe_name(name: str, task: str = "cook") -> str:
  """Makes a name safe as a file name and distinct from those of the task."""
  name = name.replace("/", ".").lstrip(".")
  taken = name == "pretrained" if task == "evaluate" else _RESERVED.match(name)
  return f"ingredient_{name}" if taken else name


def _open_sources(config, detected, notes, model, origin):
  """Opens minival and the test sets, labelled by the models' outputs.

  Returns:
    Minival or None; test sets, spaces and zero-shot heads by name; a source
    with the classes of the models.
  """
  c, asked = config.data, cook_config.tests(config)
  options = {"data_dir": c.data_dir or None}
  minival = None
  if split := c.minival or c.train:
    minival = data.open_source(c.name, split, **options)
  tests = {
    name: data.open_source(test.dataset, test.split, **options)
    for name, test in asked.items()
  }
  for name, test in tests.items():
    if minival and (shared := data.shared_examples(minival, test)):
      use = "on which every choice is made" if c.minival else (
        "of which a part is minival, and the rest trained the models"
      )  # fmt: skip
      raise ValueError(
        f"tests.{name}: {test.name} has {shared} images of {minival.name}, "
        f"{use}. Take other images."
      )
  # Without minival, the classes are those of a test set that has all of them.
  every = [s for s in tests.values() if s.num_classes == c.num_classes]
  labels = minival or [*every, *tests.values()][0]
  classes = classes_lib.classes_of(config, detected, labels)
  label = functools.partial(
    classes_lib.labelled, classes=classes, num=c.num_classes
  )
  if minival:
    minival = labels = label(minival, what="data.name")
    if not c.minival:
      _, minival = data.split_minival(minival, per_class=c.minival_per_class)
  spaces: dict[str, LabelSpace] = {}
  made: dict[str, heads.Head] = {}
  if isinstance(model, models.CLIP):
    own = heads.own_head(
      config, model, origin, labels, classes, detected.classes
    )
    made = dict.fromkeys(["minival", *tests], own)
  for name, source in tests.items():
    what, test = f"tests.{name}", asked[name]
    if test.names:
      made[name] = heads.unseen_head(
        config, model, origin, source, test.names, what
      )
      continue
    if test.map:
      tests[name], spaces[name] = protocols.mapped(
        source, test.map, classes, c.num_classes, what
      )
      continue
    if not test.labels:
      tests[name] = label(source, what=what)
    if test.labels or source.several:
      tests[name], spaces[name] = protocols.answered(
        tests[name], test.labels, c.num_classes, what
      )
      continue
    chosen = classes_lib.evaluated(
      tests[name], test.dataset, test.classes, source.num_classes, classes, what
    )
    notes += classes_lib.about_outputs(tests[name], chosen, name)
    if chosen is not None:
      spaces[name] = LabelSpace.of_outputs(chosen)
  for name, source in {"minival": minival, **tests}.items():
    if source is None:
      continue
    known = classes
    if name == "minival" and not c.classes:
      known = detected.classes
    if name not in asked or not asked[name].names:
      notes += classes_lib.incomparable(source, known, name)
    before = asked[name].ops if name in asked else ""
    infer.check_images(config, source, before)
  return minival, tests, spaces, made, labels


def _check_untrained(path: str, tests: Mapping[str, data.Source]) -> None:
  """Rejects tests with images on which our own run trained an ingredient."""
  config = companions.recorded_config(path)
  trained = config.get("data", {})
  if not tests or config.get("task") != "finetune":
    return
  try:
    train = data.open_source(
      trained["name"],
      trained["train"],
      data_dir=trained.get("data_dir") or None,
    )
  except (ValueError, KeyError):
    return  # It may have been moved since.
  for name, test in tests.items():
    if shared := data.shared_examples(train, test):
      raise ValueError(
        f"tests.{name}: the models were trained on {shared} images of "
        f"{test.name}, in {train.name}. Take other images."
      )


# --- The record of inputs -----------------------------------------------------


def check_workdir(opened: Inputs, path: str | os.PathLike | None) -> None:
  """Checks that results are not written into the folder of a checkpoint.

  Args:
    opened: the inputs.
    path: the directory of the run, None in a dry run.

  Raises:
    ValueError: naming the checkpoint.
  """
  if path:
    given = [*opened.ingredients, *([opened.initial] if opened.initial else [])]
    given += itertools.chain(*getattr(opened, "along", {}).values())
    replaceable.check_outside(os.path.expanduser(path), given)


def check_unchanged(
  config: ml_collections.ConfigDict,
  inputs: Inputs,
  record: pathlib.Path,
  more: Mapping[str, Any] | None = None,
) -> None:
  """Records the inputs at the first start and compares them at later ones.

  Args:
    config: of the user, with gaps.
    inputs: of this start.
    record: a file of the workdir.
    more: further inputs by name, as JSON.

  Raises:
    ValueError: naming the inputs that changed.
  """
  ingredients = [*inputs.ingredients, *filter(None, [inputs.initial])]
  present = {i.name: identity(i.path) for i in ingredients}
  present |= {
    f"the base of {i.name}": identity(i.base.path)
    for i in ingredients
    if i.base
  }
  present |= {
    f"the set {name}": [
      *(source.name, len(source), source.num_classes),
      *source.identity(),
    ]
    for name, source in inputs.sets.items()
  }
  present |= {
    f"the classes of {name}": space.record()
    for name, space in inputs.spaces.items()
  }
  present |= {f"the operations of {k}": ops for k, ops in inputs.ops.items()}
  present |= {
    f"names or templates of {k}": head.record()
    for k, head in inputs.heads.items()
  }
  present |= more or {}
  recorded = workdir_lib.read(record)
  if recorded is None:
    if jax.process_index() == 0:
      record_of = cook_config.record_of(config)
      values = {"config": config_lib.to_dict(record_of), "inputs": present}
      files.write_json(record, values | {"files": _matches(config)})
    return
  if changes := changed(recorded.get("inputs", recorded), present):
    raise ValueError(
      f"{record.parent} holds results of other checkpoints or images: "
      f"{', '.join(changes[:5])}{', ...' * (len(changes) > 5)}. Choose another "
      "--workdir."
    )


def along_files(opened: CookInputs) -> dict[str, list[Any]]:
  """Identifies the checkpoints of `cook.window`, by what they are."""
  return {
    f"{checkpoint.name} along the run {name}".rstrip(): identity(
      str(checkpoint.path)
    )
    for name, run in opened.along.items()
    for checkpoint in run
  }


def is_record_of(
  record: pathlib.Path, config: ml_collections.ConfigDict
) -> bool:
  """Whether a record is of this config and of unchanged checkpoints.

  Compares paths, sizes and times of files, without opening any.
  """
  recorded = files.read_json(record) if record.exists() else {}
  return (
    recorded.get("config") == config_lib.to_dict(cook_config.record_of(config))
    and "files" in recorded
    and recorded["files"] == _matches(config)
  )


def _matches(config) -> list[list[Any]]:
  """Identifies all paths that match `ingredients`, and `initial`."""
  found = matches([*patterns(config), config.initial, config.base])
  along = config.cook.get("window", "")
  for path in matches(patterns(config)) if along else ():
    found += matches(window.patterns(along, path))
  return [identity(path) for path in dict.fromkeys(found)]


def matches(given: Iterable[str]) -> list[str]:
  """Returns all paths that match some patterns, sorted."""
  paths: list[str] = []
  for pattern in given:
    if buckets.is_remote(pattern):
      paths += open_lib.matches(pattern)
    else:
      paths += glob.glob(os.path.expanduser(pattern), recursive=True)
  return sorted(paths)


def changed(
  recorded: Mapping[str, Any], present: Mapping[str, Any]
) -> list[str]:
  """Lists inputs that differ between two starts, in words."""
  changes = []
  for name in sorted({*recorded, *present}):
    if name not in recorded:
      changes.append(f"{name} is new")
    elif name not in present:
      changes.append(f"{name} is gone")
    elif recorded[name] != present[name]:
      changes.append(f"{name} changed")
  return changes


def identity(path: str) -> list[Any]:
  """Returns a path with the size and the time of its files."""
  if buckets.is_remote(path):
    if not buckets.is_directory(path):
      return [path, *buckets.identity(path)]
    text = json.dumps(buckets.objects(path)).encode()
    return [path, hashlib.sha256(text).hexdigest()]
  root = pathlib.Path(path)
  # Overwriting a file does not change the time of its directory.
  contents = [p for p in root.rglob("*") if p.is_file()]
  stats = [p.stat() for p in (contents if root.is_dir() else [root])]
  size = sum(stat.st_size for stat in stats)
  return [path, size, max((stat.st_mtime_ns for stat in stats), default=0)]


# --- The plan -----------------------------------------------------------------


def plan(inputs: CookInputs) -> str:
  """Describes the inputs and the work to be done, as text."""
  start = inputs.initial.path if inputs.initial else "unknown, so no WiSE-FT"
  lines = [*about_models(inputs), f"start: {start}", *about_sets(inputs)]
  if not inputs.tests:
    lines.append("no test set: name one with tests= to measure gains of soups")
  names = ["uniform", *inputs.greedy, *inputs.learned]
  names += ["window"] if inputs.along else []
  names += ["wise_ft"] if _wise_ft_points(inputs) else []
  lines += window.plan_lines(inputs.along)
  lines.append(f"soups: {', '.join(names)}")
  models, candidates = evaluations(inputs)
  lines.append(
    f"evaluations: {models} models on all {inputs.num_images:,} images; at "
    f"most {candidates} candidates on the {len(inputs.minival):,} of minival"
  )
  lines += _about_metrics(inputs)
  size = inputs.config.data.image_size
  needed = 12 * size**2 * len(inputs.minival) / 1e9
  if needed > inputs.config.data.cache_gb:
    lines.append(
      f"minival takes {needed:.1f} GB decoded, more than data.cache_gb: it is "
      "decoded again for every candidate"
    )
  lines.append(
    f"ensembles: {inputs.logits_bytes / 1e6:,.1f} MB of logits"
    + ("" if inputs.ensembles else ", more than cook.ensembles_gb: none")
  )
  return "\n".join(lines)


def evaluations(inputs: CookInputs) -> tuple[int, int]:
  """Returns how many models are evaluated on all sets, and on minival alone."""
  count, points = len(inputs.ingredients), _wise_ft_points(inputs)
  soups = 1 + len(inputs.greedy) + len(inputs.learned) + bool(points)
  models = count + bool(inputs.initial) + soups + bool(inputs.along) + points
  windows = max(map(len, inputs.along.values()), default=0)
  return models, len(inputs.greedy) * count + windows


def _wise_ft_points(inputs: CookInputs) -> int:
  return inputs.config.cook.wise_ft_points if inputs.initial else 0


def about_models(inputs: CookInputs, kind: str = "ingredients") -> list[str]:
  """Describes the checkpoints in lines for the plan."""
  ingredients = inputs.ingredients
  values = [i.metrics.get("minival/prec@1") for i in ingredients]
  lines = [
    f"{len(ingredients)} {kind} of {ingredients[0].num_bytes / 1e6:,.1f} "
    "MB" + (f", read as {inputs.family!r}" if inputs.family else "")
  ]
  lines += [
    f"  {i.name}" + ("" if value is None else f"  {value:.4f} on its minival")
    for i, value in zip(ingredients, values)
  ]
  return [*lines, *inputs.notes]


def about_sets(inputs: CookInputs) -> list[str]:
  """Describes the sets and their protocols in lines for the plan."""
  lines = [
    "; ".join(
      [
        f"{name}: {source.name}, {len(source)} images",
        *filter(None, [inputs.ops.get(name)]),
        *source.notes,
      ]
    )
    for name, source in inputs.sets.items()
  ]
  lines += [
    f"{name}: {text}"
    for name, text in protocols.described(inputs.spaces, {}).items()
  ]
  lines += [f"{name}: {text}" for name, text in inputs.unseen.items()]
  if own := inputs.heads.get("minival"):
    lines.append(
      "whole CLIPs: each is judged with the head of its own text tower, "
      f"{len(own.names):,} names x {len(own.templates):,} templates"
    )
  return lines


def _about_metrics(inputs: CookInputs) -> Iterable[str]:
  """Yields lines on the metrics of choices, and on their resolution."""
  first, count = inputs.metrics[0], len(inputs.minival)
  chosen = [f"{name} by {metric}" for name, metric in inputs.greedy.items()]
  yield f"chosen on minival: ranks by {first}, " + ", ".join(chosen)
  for metric in inputs.metrics:
    if evaluators.get_metric(metric).bound is None:
      yield f"{metric} has no bound: no early rejection by it"
  if first == "prec@1" and 1 / count > _COARSE:
    yield (
      f"WARNING: with {count} images, accuracy moves in steps of "
      f"{100 / count:.2g} points: small differences cannot be told apart. "
      "--config.cook.metric=loss is recommended."
    )
