# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens the inputs of a search: checkpoints and tasks."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import ml_collections

from soupjax import buckets, data, sharding
from soupjax.checkpoints import open as open_lib
from soupjax.models import pretrained
from soupjax.soups.core.ingredient import Ingredient, check_ingredients
from soupjax.soups.core.records import check_same_init
from soupjax.tasks import heads as heads_lib
from soupjax.tasks import records
from soupjax.tasks.cook import classes as classes_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import infer, window
from soupjax.tasks.cook import inputs as cook_inputs
from soupjax.tasks.finetune.step import leaf_sharding
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search.config import TaskSpec

PyTree = Any
# Names of the two sets of a task.
MINIVAL, TEST = "minival", "test"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task:
  """A dataset and the model with its head, or a metric of a command.

  Attributes:
    spec: the entry of the config.
    own: name of the ingredient that was fine-tuned on the task, or None.
    model: the encoder with a head for the classes; None if a command evaluates.
    minival: the images on which choices are made; None if a command evaluates.
    test: the images that are only reported, or None.
    train: the images on which a probe is fitted, or None.
    head_source: the checkpoint or file of the frozen head, with the leaf names
      of the file; None if the head is fitted, computed or merged.
  """

  spec: TaskSpec
  own: str | None
  model: Any = None
  minival: data.Source | None = None
  test: data.Source | None = None
  train: data.Source | None = None
  head_source: Ingredient | None = None

  @property
  def frozen(self) -> bool:
    """Whether the head is not averaged."""
    return self.spec.head != "merged"


@dataclasses.dataclass(eq=False, kw_only=True)
class FrozenHead:
  """Adds the frozen head of a task to an encoder, like `cook.heads.Head`.

  Attributes:
    classifier: the encoder with a head.
    leaves: module -> name -> array on the mesh; `make_heads` sets them.
  """

  classifier: Any
  leaves: PyTree | None = None

  def __call__(self, params: PyTree) -> PyTree:
    """Returns the parameters of `classifier`."""
    assert self.leaves is not None
    return {**params, **self.leaves}

  def record(self) -> str:
    """Returns "": `searched_from.json` already has the config of the head."""
    return ""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SearchInputs(cook_inputs.Inputs):
  """The opened checkpoints, encoder and tasks.

  Attributes:
    tasks: tasks by name.
    start: the initial model or None, with the leaf names of its file.
    frozen_heads: task -> its head; `make_heads` sets the leaves.
  """

  tasks: Mapping[str, Task]
  start: Ingredient | None
  frozen_heads: Mapping[str, FrozenHead]

  @property
  def sets(self) -> dict[str, data.Source]:
    """All sets, named "TASK/minival" and "TASK/test"."""
    return {
      f"{name}/{split}": source
      for split in (MINIVAL, TEST)
      for name, task in self.tasks.items()
      if (source := getattr(task, split)) is not None
    }

  @property
  def metrics(self) -> tuple[str, ...]:
    """Names of the metrics that decide."""
    if self.is_judged:
      return tuple(task.spec.dataset for task in self.tasks.values())
    return super().metrics

  @property
  def frozen(self) -> bool:
    """Whether heads are frozen; then the ingredients have none."""
    return any(task.frozen for task in self.tasks.values())

  def of_task(self, name: str) -> Ingredient | None:
    """Returns the ingredient that was fine-tuned on a task, or None."""
    own = self.tasks[name].own
    return next((i for i in self.ingredients if i.name == own), None)


def open_inputs(
  config: ml_collections.ConfigDict,
  *,
  same_init: bool = True,
  one_run: bool = False,
  devices: Sequence[jax.Device] | None = None,
) -> SearchInputs:
  """Opens checkpoints and data; reads metadata and one image of each set.

  Args:
    config: as in configs/search.py.
    same_init: whether it is an error if ingredients record different starts.
    one_run: whether the ingredients are checkpoints along one run, which are
      then sorted from the oldest to the newest.
    devices: devices of the mesh; None for all of JAX.

  Raises:
    ValueError: if checkpoints, tasks and heads do not fit together.
  """
  specs = search_config.tasks(config)
  frozen = [name for name, spec in specs.items() if spec.head != "merged"]
  if frozen and len(frozen) < len(specs):
    other = next(name for name in specs if name not in frozen)
    raise ValueError(
      f"tasks.{frozen[0]} has a frozen head and tasks.{other} a merged one: "
      "give all tasks a frozen head (own, initial, probe, zeroshot or "
      "file:PATH), or none."
    )
  opened, start = cook_inputs.open_checkpoints(config)
  if one_run:
    opened = window.in_order(opened, cook_inputs.patterns(config))
  config, detected, whole, notes = infer.resolve(
    config, [*opened, *filter(None, [start])], headless=bool(frozen)
  )
  if whole is not None:
    raise ValueError(
      f"{opened[0].path} is a CLIP with both towers: give all tasks a frozen "
      "head, such as head=zeroshot, to average the image tower."
    )
  model = cook_config.build_model(config)
  if frozen:
    model = model.clone(num_classes=None)
  ingredients, initial = cook_inputs.adapt(config, model, opened, start)
  if frozen:
    ingredients = [_encoder_record(i) for i in ingredients]
  if same_init:
    check_same_init(ingredients)
  check_ingredients([*ingredients, *filter(None, [initial])])
  cook_inputs.check_selection(config, ingredients, initial)
  mesh = sharding.make_mesh(dict(config.sharding.mesh), devices)
  names = [*(ingredient.name for ingredient in ingredients), None]
  checkpoints = dict(zip(names, [*opened, start]))
  tasks = {
    name: _open_task(config, spec, model, detected, checkpoints, notes)
    for name, spec in specs.items()
  }
  _check_apart(tasks)
  frozen_heads = {
    name: FrozenHead(classifier=task.model)
    for name, task in tasks.items()
    if task.frozen
  }
  inputs = SearchInputs(
    config=config,
    model=model,
    mesh=mesh,
    place=leaf_sharding(config, model, mesh),
    spaces={},
    ops={},
    ingredients=ingredients,
    initial=initial,
    original=opened[0],
    notes=notes,
    heads={},
    unseen={},
    tasks=tasks,
    start=start,
    frozen_heads=frozen_heads,
  )
  task_of = {name: name.rpartition("/")[0] for name in inputs.sets}
  return dataclasses.replace(
    inputs,
    ops={
      name: tasks[task].spec.ops
      for name, task in task_of.items()
      if tasks[task].spec.ops
    },
    heads={
      name: frozen_heads[task]
      for name, task in task_of.items()
      if task in frozen_heads
    },
  )


def _encoder_record(ingredient: Ingredient) -> Ingredient:
  """Replaces the recorded start by that of the encoder; heads may differ."""
  values = dict(ingredient.hyperparameters)
  encoder_hash = values.pop("encoder_init_hash", None)
  values["init_hash"] = encoder_hash  # None, if unknown, is never compared.
  return dataclasses.replace(ingredient, hyperparameters=values)


def other_files(config: ml_collections.ConfigDict) -> dict[str, list[Any]]:
  """Identifies the files of heads, class names and templates.

  Args:
    config: as in configs/search.py.

  Returns:
    Description -> path, size and time of the file, for files that exist.
  """
  paths = {
    f"the head of {name}": spec.head.partition(":")[2]
    for name, spec in search_config.tasks(config).items()
  }
  for key in ("names", "templates"):
    paths[f"zeroshot.{key}"] = config.zeroshot[key]
  paths = {name: os.path.expanduser(path) for name, path in paths.items()}
  return {
    name: records.identity(path)
    for name, path in paths.items()
    if path and (buckets.is_remote(path) or os.path.exists(path))
  }


def _open_task(config, spec, model, detected, checkpoints, notes) -> Task:
  """Opens the sets of a task.

  Args:
    config: the resolved config.
    spec: the entry of the task.
    model: the encoder, or the model with a head that is averaged.
    detected: the model detected from the first ingredient.
    checkpoints: name -> ingredient with the leaf names of its file; None -> the
      start, or None.
    notes: lines for the plan are added here.
  """
  where = f"tasks.{spec.name}"
  options = {"data_dir": config.data.data_dir or None}
  kind = spec.head.partition(":")[0]
  own = own_model(spec, list(filter(None, checkpoints)))
  head_source = _head_source(spec, checkpoints, own)
  try:
    part = data.open_source(spec.dataset, spec.minival or spec.train, **options)
    test = train = None
    if spec.test:
      test = data.open_source(spec.dataset, spec.test, **options)
    if kind == "probe":
      train = data.open_source(spec.dataset, spec.train, **options)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from e
  classes, count = part.class_names, part.num_classes
  if kind == "merged" or heads_lib.has_encoder(head_source):
    # The head has its own class order.
    if head_source is not None:
      detected = pretrained.detect(head_source, family=config.family or None)
    classes = classes_lib.classes_of(config, detected, part)
  if kind == "merged":
    count = config.data.num_classes
  if not spec.minival:
    rest, part = data.split_minival(
      part, per_class=config.data.minival_per_class
    )
    train = train and rest
  elif train is not None and (shared := data.shared_examples(train, part)):
    raise ValueError(
      f"{where}: {shared} images are in both train={spec.train!r}, on which "
      f"the probe is fitted, and minival={spec.minival!r}."
    )
  for other, use in ((part, "minival"), (train, "train, which fits the probe")):
    if test and other and (shared := data.shared_examples(other, test)):
      raise ValueError(
        f"{where}: {shared} images of the test set {test.name} are also in "
        f"{use}. Use other images."
      )
  sources = [
    source and classes_lib.labelled(source, classes, count, f"{where}.{split}")
    for split, source in (("minival", part), ("test", test), ("train", train))
  ]
  for source in filter(None, sources):
    infer.check_images(config, source, spec.ops)
    notes += classes_lib.incomparable(source, classes, spec.name)
  made = model.clone(num_classes=count)
  if kind == "zeroshot" or heads_lib.normalizes(head_source):
    made = made.clone(normalize=True)
  return Task(
    spec=spec,
    model=made,
    minival=sources[0],
    test=sources[1],
    train=sources[2],
    own=own,
    head_source=head_source,
  )


def _head_source(spec, checkpoints, own: str | None) -> Ingredient | None:
  """Returns the checkpoint of a frozen head; arguments as for `_open_task`.

  Raises:
    ValueError: if it is missing.
  """
  where, (kind, _, path) = f"tasks.{spec.name}", spec.head.partition(":")
  if kind == "file":
    try:
      return open_lib.open_ingredient(path)
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from e
  if kind == "own" and own is None:
    raise ValueError(
      f"{where}: head=own needs the ingredient of this task, model=NAME, one "
      f"of {', '.join(filter(None, checkpoints))}."
    )
  if kind in ("initial", "probe", "zeroshot") and checkpoints[None] is None:
    raise ValueError(f"{where}: head={kind} needs --config.initial.")
  sources = {"own": own, "initial": None}
  return checkpoints[sources[kind]] if kind in sources else None


def own_model(spec: TaskSpec, names: Sequence[str]) -> str | None:
  """Returns the ingredient that was fine-tuned on a task, or None.

  Args:
    spec: the entry of the task.
    names: names of all ingredients.

  Raises:
    ValueError: if the entry names a model that is not an ingredient.
  """
  own = named(names, spec.model or spec.name)
  if own is None and spec.model:
    raise ValueError(
      f"tasks.{spec.name}: model={spec.model!r} is not an ingredient, one of "
      f"{', '.join(names)}."
    )
  return own


def named(names: Iterable[str], name: str) -> str | None:
  """Returns the ingredient with a name or stem; None if absent or ambiguous."""
  names = list(names)
  stems = [n for n in names if pathlib.PurePath(n).stem == name]
  return name if name in names else (stems[0] if len(stems) == 1 else None)


def _check_apart(tasks: Mapping[str, Task]) -> None:
  """Rejects test images that are in the minival of another task."""
  for name, task in tasks.items():
    for other, held_out in tasks.items():
      shared = task.test and data.shared_examples(task.test, held_out.minival)
      if shared and name != other:
        raise ValueError(
          f"tasks.{name}: {shared} images of its test set are in the minival "
          f"of {other}, on which choices are made. Use other images."
        )
