# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes soups with the leaf names of other libraries, as hub folders."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax

from soupjax import files
from soupjax.checkpoints import companions, model_card, save
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.models import clip, pretrained
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import workdir as workdir_lib

PyTree = Any
# Families whose files are npz.
NPZ = ("big_vision", "mixer", "bit", "bit_original")
# The family with the same leaf names as our models.
OWN = "big_vision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """The CLIP from which a sweep started; soups are exported with its names.

  Attributes:
    file: the checkpoint, with all leaves of its file.
    like: the same checkpoint, without the leaves of `zeroshot.skip`.
    family: the family of its leaf names.
    model: the whole CLIP, or its image tower if the soups have no text tower.
  """

  file: Ingredient
  like: Ingredient
  family: str
  model: nn.Module

  @property
  def is_whole(self) -> bool:
    """Whether the soups have their own text tower."""
    return isinstance(self.model, clip.CLIP)


def start_of(config, model: nn.Module, ingredient: Ingredient) -> Start | None:
  """Opens the CLIP from which a sweep of soupjax started.

  Args:
    config: the config; `zeroshot.text` is the path of the CLIP.
    model: the model of the ingredients.
    ingredient: the first ingredient.

  Returns:
    The start; None if the ingredients have leaf names of another library or
    are not from fine-tuning, or if the CLIP is unknown or has our leaf names.

  Raises:
    ValueError: if the CLIP cannot be opened, or if its leaves and those of the
      ingredient differ in shape.
  """
  c = config.zeroshot
  family = ingredient.hyperparameters.get("family", OWN)
  recorded = companions.recorded_config(ingredient.path)
  if not c.text or family != OWN or recorded.get("task") != "finetune":
    return None
  file = like = open_lib.open_ingredient(c.text)
  if c.skip:
    like = pretrained.without(file, c.skip)
  if not isinstance(model, clip.CLIP):
    model = model.clone(num_classes=None, normalize=None)
  adapted = pretrained.as_ingredient(like, model)
  for leaf, spec in adapted.specs.items():
    found = ingredient.specs[leaf].shape
    if found != spec.shape:
      raise ValueError(
        f"{leaf} has shape {found} in {ingredient.name!r}, but {spec.shape} in "
        f"{c.text}"
      )
  family = adapted.hyperparameters.get("family")
  if family is None:
    return None
  return Start(file=file, like=like, family=family, model=model)


def _weights_name(opened) -> str:
  """Returns the name of a hub folder's weights file; "" if it is not one."""
  if opened.is_judged:
    kind, name, is_directory = layout(opened.original)
    return name if kind == "safetensors" and is_directory else ""
  first, family = opened.ingredients[0], opened.family
  if opened.clip_start:
    first, family = opened.clip_start.file, opened.clip_start.family
  if family in (None, *NPZ) or not model_card.is_known(first.configs):
    return ""
  return model_card.weights_name(first.configs, first.name)


def layout(original: Ingredient) -> tuple[str, str, bool]:
  """Returns the format and file name in which to write models like this one.

  Returns:
    The format ("orbax", "safetensors", "npz" or "torch"), the name of the file
    or Orbax directory, and whether the checkpoint's path is the directory that
    contains the file.

  Raises:
    ValueError: if soupjax cannot write the format.
  """
  home = absolute(str(companions.home(original)))
  inner, module = recognise(home)
  kind = module.__name__.rpartition(".")[2]
  file = pathlib.PurePath(inner)
  is_directory = pathlib.Path(home).is_dir()
  if kind == "orbax":
    return kind, pathlib.PurePath(home).name, False
  if kind not in ("safetensors", "npz", "torch"):
    raise ValueError(
      f"{home}: soupjax cannot write this format, but evaluate_command needs "
      "soups in it. Convert the ingredients to safetensors first, with "
      "configs/mix.py."
    )
  suffixes = {"torch": (".pt", ".pth", ".bin")}.get(kind, (f".{kind}",))
  if pathlib.Path(inner).is_file() and file.suffix in suffixes:
    return kind, file.name, is_directory
  # A directory of shards, an index of shards, or a torch file with another
  # suffix.
  stem = {"safetensors": "model", "torch": "pytorch_model"}.get(kind, "model")
  suffix = ".bin" if kind == "torch" else suffixes[0]
  if not is_directory and file.suffix != ".json":
    stem, suffix = file.stem, suffixes[-2] if kind == "torch" else suffix
  return kind, stem + suffix, is_directory


def write_like(
  original: Ingredient,
  params: PyTree,
  folder: pathlib.Path,
  metadata: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes a model in the format of a checkpoint, with its config files.

  Args:
    original: the checkpoint, with the same leaves.
    params: the weights.
    folder: a new directory.
    metadata: JSON to store with the weights.

  Returns:
    The path of the model: that of the folder if the original is a folder.
  """
  kind, name, is_directory = layout(original)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / name
  if kind == "orbax":
    record = {"soupjax": metadata} if metadata else None
    save.save_params(path, params, metadata=record)
  else:
    keys = ("format",) if kind == "safetensors" else ()
    text = {k: original.text[k] for k in keys if k in original.text}
    save.write(path, params, metadata, text=text or None)
  beside = companions.beside(companions.home(original))
  companions.copy(beside, folder, original)
  return folder if is_directory else path


def write_new(
  original: Ingredient,
  params: PyTree,
  folder: pathlib.Path,
  metadata: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Like `write_like`, but atomically; an existing folder is kept.

  Returns:
    The path of the model.
  """
  if not folder.exists():
    with files.new_directory(folder) as new:
      write_like(original, params, new, metadata)
  _, name, is_directory = layout(original)
  return folder if is_directory else folder / name


def write(
  opened,
  soup: pathlib.Path,
  path: pathlib.Path,
  metadata: Mapping[str, Any] | None = None,
  rest: Ingredient | None = None,
) -> None:
  """Writes a soup with the leaf names of the ingredients' files.

  Soups of a sweep that started from a CLIP are written as whole CLIPs, without
  a trained head. Nothing is written if the output exists, or if the soup itself
  has the leaf names (and for a command, the format) of the ingredients.

  Args:
    opened: the `inputs.Inputs`.
    soup: the path of the soup.
    path: the path of the output, without a suffix. It becomes a folder if there
      are configs beside the ingredients, so that other libraries can open it.
    metadata: JSON to store with the weights.
    rest: a checkpoint of the same family whose other leaves and configs are
      copied, as in `pretrained.save_exported`. If None, no other leaves are
      copied, and the configs are those of the first ingredient.
  """
  if opened.is_judged:
    # Orbax soups are already in `soups/`.
    if layout(opened.original)[0] != "orbax" and not path.exists():
      params = open_lib.load_params(soup)
      write_new(opened.original, params, path, metadata)
    return
  family, model, like = opened.family, opened.model, opened.original
  first, start = opened.ingredients[0], opened.clip_start
  if start:
    family, model, like = start.family, start.model, start.like
    first = rest = start.file
  if family is None:
    return
  beside = companions.beside(companions.home(rest or first))
  suffix = "npz" if family in NPZ else "safetensors"
  file = path.with_name(f"{path.name}.{suffix}")
  if beside:
    file = path / (_weights_name(opened) or "model.safetensors")
  if workdir_lib.exists(file):
    return
  files.make_directory(file.parent)
  if jax.process_index() == 0:
    companions.copy(beside, path, first)
  params = open_lib.load_params(soup)
  if start and not start.is_whole:
    params = {name: value for name, value in params.items() if name != "head"}
  pretrained.save_exported(
    file, params, model, family, like=like, metadata=metadata, rest=rest
  )


def write_cards(
  opened,
  ingredients: Sequence[Ingredient],
  soups: Sequence[str],
  results: Mapping[str, tuple[str, Mapping[str, Mapping[str, float]]]],
  workdir: pathlib.Path,
) -> None:
  """Writes a model card for every soup that is exported as a hub folder.

  Args:
    opened: the `inputs.CookInputs`.
    ingredients: the ingredients with their metrics, best first.
    soups: names of the soups.
    results: model -> (kind, set -> metric -> value).
    workdir: the directory of the run.
  """
  headless = opened.clip_start and not opened.clip_start.is_whole
  if headless or not _weights_name(opened):
    return  # Scores with the trained head do not apply to the exported CLIP.
  best = ingredients[0].name
  for soup in soups:
    names = [soup, best, *(["pretrained"] if "pretrained" in results else [])]
    scores = [_score_row(name, best, results[name][1]) for name in names]
    recipe, chosen = _recipe(opened, soup, workdir / "soups" / soup)
    rows = [
      {"name": i.name, **({} if chosen is None else {"in": i.name in chosen})}
      | i.metrics
      for i in ingredients
    ]
    configs = (
      opened.clip_start.file if opened.clip_start else ingredients[0]
    ).configs
    card = model_card.text(soup, configs, recipe, rows, scores)
    model_card.write(workdir / "export" / soup, card)


def _score_row(name, best, values) -> dict[str, Any]:
  label = f"{name} (best ingredient)" if name == best else name
  return {"model": label} | {
    f"{split}/{metric}": value
    for split, metrics in values.items()
    for metric, value in metrics.items()
    if metric != "n"
  }


def _recipe(opened, soup, folder) -> tuple[dict[str, Any], list[str] | None]:
  """Returns the settings of a soup, and its chosen ingredients, if known."""
  recipe = {
    "soup": soup,
    "select": str(opened.config.select or ""),
    "chosen on": f"minival of {opened.config.evaluate_command}"
    if opened.is_judged
    else f"{opened.minival.name}, {len(opened.minival)} images",
  }
  if soup in opened.greedy:
    record = files.read_json(folder / "greedy.json")
    keys = ("metric", "accept", "min_delta", "selected")
    return recipe | {key: record[key] for key in keys}, record["selected"]
  if soup == "wise_ft":
    record = files.read_json(folder / "wise_ft.json")
    keys = ("metric", "alpha", "initial")
    return recipe | {k: record[k] for k in keys}, [record["fine-tuned"]]
  if soup == "window":
    record = files.read_json(folder / "window.json")
    keys = ("metric", "checkpoints", "selected")
    return recipe | {key: record[key] for key in keys}, None
  if soup in opened.learned:
    record = files.read_json(folder / "learned.json")
    alphas = {
      k: v for k, v in record["alphas"].items() if len(record["alphas"]) == 1
    }
    recipe |= {"coefficients": alphas, "in the order of": record["names"]}
  return recipe, None
