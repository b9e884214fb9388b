# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens the inputs of cooking: checkpoints, a matching model, datasets."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import re
from typing import Any

import jax
import ml_collections
import numpy as np

from soupjax import data, models, sharding
from soupjax.checkpoints import companions
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
from soupjax.tasks.cook import classes as classes_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import export, heads, infer, protocols, window
from soupjax.tasks.finetune.step import leaf_sharding

# Names that reports use for models other than ingredients.
_RESERVED = re.compile(
  "(pretrained|uniform|greedy|greedy_.*|ensemble|learned_.*|wise_ft|"
  "wise_ft_.*|window|chosen|after_.*|at_.*)$"
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
  """The opened checkpoints and model, for tasks that evaluate averages.

  Attributes:
    config: as in configs/cook.py, with all values filled in.
    model: a model with a head for the classes of the data, a whole CLIP, or an
      encoder without a head; None if a command evaluates.
    mesh: a mesh with an axis "data"; None if a command evaluates.
    place: function of leaf name and spec that returns the sharding on the mesh;
      None if a command evaluates.
    spaces: test set -> its classes among the outputs, if not all.
    ops: test set -> image operations that come before `data.eval_ops`.
    heads: set -> its head, if that is not part of the models.
    unseen: test set with its own classes -> a description of them.
    ingredients: the ingredients, with the leaves of the model or, if a command
      evaluates, of their files.
    initial: the start, or None if unknown.
    original: the first ingredient, with the leaves of its file.
    notes: lines for the plan about the checkpoints.
    clip_start: the CLIP from which a sweep started, whose leaf names exported
      soups get; or None.
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
    """Whether a command evaluates the models; see `judge`."""
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
    minival: the held-out images; None if a command evaluates, or if the task
      "evaluate" has none.
    tests: name -> test set.
    along: ingredient -> checkpoints of its run, oldest first; or "" -> those of
      the only run of `cook.window`; {} without a window.
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
    """Whether ensembles are made: their logits fit `cook.ensembles_gb`."""
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

  Raises:
    ValueError: if nothing matches, or a file or leaves cannot be found.
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
  """Converts checkpoints from `open_checkpoints` to the leaves of a model.

  Returns:
    The ingredients, with names that are safe as file names, and the start.

  Raises:
    ValueError: if a checkpoint does not fit the model.
  """
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
  # The folders of the start and an ingredient may have the same name.
  initial = start and dataclasses.replace(adapted(start), name="initial")
  return ingredients, initial


def open_inputs(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> CookInputs:
  """Opens checkpoints and data; reads metadata and one image of each set.

  Args:
    config: as in configs/cook.py.
    devices: devices of the mesh; None for all of JAX.

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
  _check_untrained(opened, tests)
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
  """Opens the CLIP of a sweep's start, or notes why it cannot be used."""
  try:
    start = export.start_of(config, model, ingredient)
  except ValueError as e:
    notes.append(f"WARNING: soups are not written as CLIPs. {e}")
    return None
  if start:
    text = "" if start.is_whole else ", its text tower and no trained heads"
    notes.append(
      f"export/: the soups with the leaf names of {start.file.path}{text}"
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

  Args:
    config: the config, with `select`.
    ingredients: the ingredients.
    initial: the start, or None if unknown.
    along: as in `CookInputs`.
    same_init: whether it is an error if ingredients record different starts.

  Raises:
    ValueError: if starts, leaves, shapes or dtypes differ.
  """
  if same_init:
    check_same_init([*ingredients, *itertools.chain(*along.values())])
  if not check_selection(config, ingredients, initial):
    check_ingredients([*ingredients, *filter(None, [initial])])
  for run in along.values():
    # A checkpoint may have the same name as an ingredient.
    first = dataclasses.replace(
      ingredients[0], name=f"ingredient {ingredients[0].name}"
    )
    check_ingredients([first, *run])


def check_selection(
  config: ml_collections.ConfigDict,
  ingredients: Sequence[Ingredient],
  initial: Ingredient | None,
) -> dict[str, Any]:
  """Checks `config.select` against the leaves; returns it as a dict.

  Raises:
    ValueError: if an expression has no effect, or its action is not valid.
  """
  select = mix.selection_of(config.select)
  for pattern, action in select.items():
    listed = np.ndim(action) > 0
    fix = None
    if listed and config.task == "cook" and config.cook.window:
      fix = (
        "the window averages other checkpoints; use 'keep' or one number, or "
        "leave cook.window out"
      )
    elif action == "skip":
      fix = "a model without a leaf cannot be evaluated; use 'keep' or numbers"
    elif (
      listed
      and config.task == "cook"
      and initial
      and (config.cook.wise_ft_points)
    ):
      fix = (
        "WiSE-FT uses only one ingredient; use 'keep', or set "
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
  """Makes a name safe as a file name and distinct from reserved names."""
  name = name.replace("/", ".").lstrip(".")
  taken = name == "pretrained" if task == "evaluate" else _RESERVED.match(name)
  return f"ingredient_{name}" if taken else name


def _open_sources(config, detected, notes, model, origin):
  """Opens minival and the test sets, with labels that index the outputs.

  Returns:
    Minival or None; test sets, spaces and zero-shot heads by name; and a set
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
      use = "on which all choices are made" if c.minival else (
        "part of which is minival; the models were trained on the rest"
      )  # fmt: skip
      raise ValueError(
        f"tests.{name}: {test.name} has {shared} images of {minival.name}, "
        f"{use}. Use other images."
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


def _check_untrained(
  ingredients: Sequence[Ingredient], tests: Mapping[str, data.Source]
) -> None:
  """Rejects test sets with images on which soupjax trained an ingredient.

  Args:
    ingredients: opened from their files.
    tests: name -> test set.
  """
  trained = {}  # Dataset, split and data_dir -> an ingredient.
  for ingredient in ingredients if tests else ():
    config = companions.recorded_config(ingredient.path)
    used = config.get("data", {})
    if config.get("task") == "finetune" and {"name", "train"} <= used.keys():
      key = used["name"], used["train"], used.get("data_dir") or None
      trained.setdefault(key, ingredient.name)
  for (name, split, data_dir), ingredient in trained.items():
    try:
      train = data.open_source(name, split, data_dir=data_dir)
    except ValueError:
      continue  # The dataset may have been moved since.
    for test_name, test in tests.items():
      if shared := data.shared_examples(train, test):
        raise ValueError(
          f"tests.{test_name}: {ingredient} was trained on {shared} images of "
          f"{test.name}, from {train.name}. Use other images."
        )
