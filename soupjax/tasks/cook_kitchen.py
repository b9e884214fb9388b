# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What cooking needs: checkpoints, a model that fits them, images."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import pathlib
import re
from typing import Any

import jax
import ml_collections

from soupjax import data, files, sharding
from soupjax.checkpoints import open as open_lib
from soupjax.models import pretrained
from soupjax.soups.core.ingredient import Ingredient, check_ingredients
from soupjax.soups.core.same_init import check_same_init
from soupjax.tasks import cook_checkpoints, cook_config
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.finetune import config as finetune_config
from soupjax.tasks.finetune import loop as finetune

# What models of the report are called that are no ingredients.
_RESERVED = re.compile(
  "(pretrained|uniform|greedy|ensemble|greedy_ensemble|learned_.*|wise_ft_.*)$"
)


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
  def learned(self) -> list[str]:
    """Names of learned soups, which need two ingredients at least."""
    if len(self.ingredients) < 2:
      return []
    return [f"learned_{g}" for g in self.config.cook.learned_granularities]

  @property
  def family(self) -> str | None:
    """What the checkpoints were read as; None if they are of the model."""
    return self.ingredients[0].hyperparameters.get("family")


def open_kitchen(config) -> Kitchen:
  """Opens checkpoints and data; reads metadata and an image."""
  patterns = [p.strip() for p in config.ingredients.split(",") if p.strip()]
  opened = open_lib.find_ingredients(patterns)
  start = open_lib.open_ingredient(config.initial) if config.initial else None
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
  check_same_init(ingredients)
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
  opened = {
    name: data.open_source(*where, **options)
    for name, where in cook_config.tests(config).items()
  }
  for name, one in opened.items() if c.minival else ():
    if shared := data.shared_examples(source, one):
      raise ValueError(
        f"tests, {name}: {one.name} has {shared} images of minival, where "
        "every choice is made. Take others."
      )
  classes = cook_checkpoints.classes_of(config, detected, source)
  number = functools.partial(
    cook_checkpoints.labelled, classes=classes, num=c.num_classes
  )
  source = number(source, what="data.name")
  minival = source
  if not c.minival:
    _, minival = data.split_minival(source, per_class=c.minival_per_class)
  tests = {
    name: number(one, what=f"tests, {name}") for name, one in opened.items()
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
    if jax.process_index() == 0:
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
  lines.append("soups: " + ", ".join(["uniform", "greedy", *kitchen.learned]))
  lines.append(
    f"ensembles: {kitchen.logits_bytes / 1e6:,.1f} MB of logits"
    + ("" if kitchen.ensembles else ", for which there is no room: none")
  )
  return "\n".join(lines)
