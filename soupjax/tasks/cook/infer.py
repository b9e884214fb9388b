# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Infers model, preprocessing and class order from checkpoints and files."""

from collections.abc import Mapping, Sequence
import math
import pathlib
import re
from typing import Any

import ml_collections
import numpy as np

from soupjax import data, files, models
from soupjax.data import image_ops
from soupjax.models import pretrained
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks.cook import config as cook_config

# Pillow's numbers, which transformers writes; timm writes names.
_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_EXAMPLES = """
  resize_small(256, "bicubic")|central_crop(224)|standardize("imagenet")
  resize_small(248, "bicubic")|central_crop(224)|value_range(-1, 1)
  resize(224)|value_range(-1, 1)"""
# Options that show in a config only. Shapes are compared leaf by leaf.
_SILENT = ("num_heads", "act", "norm_eps", "pool_type")


def resolve(
  config: ml_collections.ConfigDict, ingredients: Sequence[Ingredient]
) -> tuple[ml_collections.ConfigDict, pretrained.Detected, list[str]]:
  """Fills the gaps of a config from the checkpoints.

  Args:
    config: as in configs/cook.py.
    ingredients: with the leaves of their files; the start, too.

  Returns:
    The config without gaps, the detected model of the first ingredient, and
    lines for the plan about detected and assumed settings.

  Raises:
    ValueError: if ingredients differ in their settings or contradict the
      config, or if a setting is in neither.
  """
  detected = [
    pretrained.detect(i, family=config.family or None) for i in ingredients
  ]
  first = detected[0]
  prepared = [preparation(i.path, d) for i, d in zip(ingredients, detected)]
  for ingredient, model, ops in zip(
    ingredients[1:], detected[1:], prepared[1:]
  ):
    _check_alike(ingredients[0], first, prepared[0], ingredient, model, ops)
  given = {k: v for k, v in config.model.to_dict().items() if v is not None}
  name, variant = given.pop("name"), given.pop("variant")
  if variant and name == "vit":
    given = {**models.variant(variant), **given}
  for key in _SILENT:
    if (
      key in first.said
      and given.get(key, first.options[key]) != (first.options[key])
    ):
      raise ValueError(
        f"model.{key}={given[key]!r}, and the config.json beside "
        f"{ingredients[0].path} says {first.options[key]!r}: leave "
        f"--config.model.{key} out."
      )
  classes = first.options.get("num_classes", 0)
  gaps = [k for k, v in config.model.to_dict().items() if v is None]
  filled = {
    k: first.options[k] for k in gaps if k in first.options and k not in given
  }
  options = {**given, **filled}
  if "num_heads" in gaps and name == "vit" and "num_heads" not in options:
    raise ValueError(
      f"No file beside {ingredients[0].path} says how many attention heads it "
      "has, and there is no usual number for its size: give "
      f"--config.model.num_heads (it divides the width, {options['width']}), "
      "or put its config.json beside it."
    )
  full = ml_collections.ConfigDict(config.to_dict())
  full.model = ml_collections.ConfigDict(
    {
      **config.model.to_dict(),
      **{k: v for k, v in options.items() if k in gaps},
    }
  )
  full.data.num_classes = config.data.num_classes or classes
  full.data.image_size = config.data.image_size or first.image_size or 0
  full.data.eval_ops = config.data.eval_ops or prepared[0] or ""
  _check_full(full, ingredients[0])
  lines = _lines(full, first, filled, prepared[0])
  return full.lock(), first, lines


def _check_alike(first, model, ops, other, other_model, other_ops):
  """Rejects ingredients whose configs imply different forward passes."""
  for setting, a, b in (
    *(
      (f"model.{k}", model.options[k], other_model.options[k])
      for k in _SILENT
      if k in model.said & other_model.said
    ),
    ("the order of classes", model.classes, other_model.classes),
    ("the preparation of images", ops, other_ops),
  ):
    if a is not None and b is not None and a != b:
      raise ValueError(
        f"{first.name!r} and {other.name!r} differ in {setting}, according to "
        f"the files beside them: {a!s:.200} and {b!s:.200}. They cannot be "
        "averaged, or one of these files is wrong."
      )


def _check_full(config, ingredient):
  where = ingredient.path or ingredient.name
  if not config.data.num_classes:
    raise ValueError(
      f"{where} has no head that is known, and so no classes: cooking needs "
      "classifiers. (sj.mix averages any models.)"
    )
  if not config.data.image_size:
    raise ValueError(
      f"{where} does not tell the size of its images: give "
      "--config.data.image_size."
    )
  if not config.data.eval_ops:
    raise ValueError(
      f"No file beside {where} says how images were prepared: give "
      "--config.data.eval_ops, as in training. Usual are, for timm's models of "
      "ImageNet, for those of AugReg, and for transformers' ViT:"
      f"{_EXAMPLES}"
    )


def check_images(
  config: ml_collections.ConfigDict, source: data.Source
) -> None:
  """Checks that images come out in the size that the model takes.

  Raises:
    ValueError: if they do not.
  """
  ops, side = cook_config.eval_ops(config), config.data.image_size
  shape = data.Preprocess(ops)(source[0]["image"]).shape
  if shape != (side, side, 3):
    raise ValueError(
      f"data.eval_ops={ops!r} makes images of {shape[0]} x {shape[1]}, and the "
      f"model takes data.image_size={side}: change one of them."
    )


def _lines(config, detected, filled, prepared):
  """Describes model and preprocessing for the plan."""
  shown = config.model.to_dict()
  sizes = ("patch_size", "width", "depth", "mlp_dim", "num_heads", "pool_type")
  lines = [
    "model: "
    + ", ".join(
      f"{k} {shown[k]}"
      for k in ("variant", *sizes)
      if shown.get(k) is not None and shown[k] != ""
    ),
    f"images: {config.data.image_size} px, {cook_config.eval_ops(config)}",
  ]
  guessed = sorted(detected.assumed & set(filled))
  if guessed:
    lines.append(
      "assumed, since no file says it: "
      + ", ".join(f"{k} {shown[k]}" for k in guessed)
    )
  if prepared and prepared != config.data.eval_ops:
    lines.append(f"WARNING: the checkpoints' own preparation is {prepared}")
  if detected.image_size not in (None, config.data.image_size):
    lines.append(
      f"WARNING: position embeddings for {detected.image_size} px are "
      f"resampled to {config.data.image_size}, in the exported soups too"
    )
  return lines


# --- Images -------------------------------------------------------------------


def preparation(path: str, detected: pretrained.Detected) -> str | None:
  """Returns the operations of evaluation by the files beside a checkpoint.

  Args:
    path: of the checkpoint.
    detected: its model.

  Returns:
    Operations for `data.Preprocess`; None if there is no such file, or it asks
    for an operation that does not exist here.
  """
  file = pretrained.file_beside(path, "preprocessor_config.json")
  if file:
    return _of_transformers(files.read_json(file))
  pretrained_cfg = detected.config.get("pretrained_cfg", {})
  return _of_timm(pretrained_cfg) if "architecture" in detected.config else None


def _of_transformers(c: Mapping[str, Any]) -> str | None:
  parts = []
  if c.get("do_resize"):
    size, method = c.get("size"), _METHODS.get(c.get("resample", 2))
    if isinstance(size, int):
      size = {"height": size, "width": size}
    if not isinstance(size, dict) or method is None:
      return None
    if "shortest_edge" in size:
      parts.append(f'resize_small({size["shortest_edge"]}, "{method}")')
    elif {"height", "width"} <= set(size):
      parts.append(f'resize({_sides(size)}, "{method}")')
    else:
      return None
  if c.get("do_center_crop"):
    crop = c.get("crop_size")
    if isinstance(crop, int):
      crop = {"height": crop, "width": crop}
    parts.append(f"central_crop({_sides(crop)})")
  if not c.get("do_rescale", True) or not math.isclose(
    c.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3
  ):
    return None
  if c.get("do_normalize"):
    values = _values(c.get("image_mean"), c.get("image_std"))
  else:
    values = "value_range(0, 1)"
  return "|".join([*parts, values]) if values else None


def _sides(size: Mapping[str, int]) -> str:
  height, width = size["height"], size["width"]
  return str(height) if height == width else f"({height}, {width})"


def _of_timm(c: Mapping[str, Any]) -> str | None:
  size = c.get("input_size")
  values = _values(c.get("mean"), c.get("std"))
  method = c.get("interpolation", "bicubic")
  if not size or not values or method not in _METHODS.values():
    return None
  side, crop = size[-1], c.get("crop_pct", 0.875)
  if c.get("crop_mode", "center") == "squash":
    return f'resize({math.floor(side / crop)}, "{method}")|' + (
      f"central_crop({side})|{values}"
    )
  if c.get("crop_mode", "center") != "center":
    return None
  larger = math.floor(side / crop)
  return f'resize_small({larger}, "{method}")|central_crop({side})|{values}'


def _values(mean, deviation) -> str | None:
  """Returns the operation that subtracts a mean and divides by a deviation."""
  if not (
    isinstance(mean, (list, tuple))
    and isinstance(deviation, (list, tuple))
    and len(mean) == len(deviation) == 3
  ):
    return None
  for name, known in image_ops.STATISTICS.items():
    if np.allclose([mean, deviation], known, atol=1e-4):
      return f'standardize("{name}")'
  if len(set(mean)) == len(set(deviation)) == 1:
    low, high = -mean[0] / deviation[0], (1 - mean[0]) / deviation[0]
    return f"value_range({low:.7g}, {high:.7g})"
  return f"standardize({tuple(mean)}, {tuple(deviation)})"


# --- Classes ------------------------------------------------------------------


class _Relabelled(data.Source):
  """A source with the label numbers of a model's outputs."""

  def __init__(self, parent: data.Source, classes: Sequence[str]):
    super().__init__(parent.name, len(parent), len(classes), classes)
    place = {name: k for k, name in enumerate(classes)}
    self._parent = parent
    self._numbers = np.array([place[name] for name in parent.class_names])

  def _read(self, index):
    example = self._parent[index]
    return example["image"], self._numbers[example["label"]]

  def _label(self, index):
    return self._numbers[self._parent.label(index)]

  def describe(self, index: int) -> str:
    return self._parent.describe(index)


def natural_key(name: str) -> list[Any]:
  """Returns the key by which timm sorts folders: 2 before 10, a before B."""
  parts = re.split(r"(\d+)", name.lower())
  return [int(part) if part.isdigit() else part for part in parts]


def classes_of(
  config: ml_collections.ConfigDict,
  detected: pretrained.Detected,
  source: data.Source,
) -> tuple[str, ...] | None:
  """Returns the names of the models' outputs in order, None if unknown.

  Args:
    config: with `data.classes`.
    detected: the model.
    source: of `data.name`, on which the models were trained.

  Raises:
    ValueError: if `data.classes` cannot be read, or is missing but needed.
  """
  order, names = config.data.classes, source.class_names
  if order not in ("", "text", "natural"):
    path = pathlib.Path(order).expanduser()
    if not path.is_file():
      raise ValueError(
        f"data.classes={order!r} is neither 'text' nor 'natural' nor a file "
        "with one class per line."
      )
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
  if names is None:
    return detected.classes
  if order:
    key = natural_key if order == "natural" else None
    return tuple(sorted(names, key=key))
  if detected.classes and set(detected.classes) & set(names):
    return detected.classes
  if detected.family == "timm" and list(names) != sorted(
    names, key=natural_key
  ):
    a, b = next(
      p for p in zip(names, sorted(names, key=natural_key)) if p[0] != p[1]
    )
    raise ValueError(
      f"The order of the classes of {source.name} is unknown: timm puts {b!r} "
      f"before {a!r}, torchvision {a!r} before {b!r}. Give "
      "--config.data.classes=natural (timm), =text (torchvision), or a file "
      "with one class per line."
    )
  return names


def incomparable(
  source: data.Source, classes: Sequence[str] | None, name: str
) -> list[str]:
  """Returns a line for the plan if a set shares no class name with models."""
  names = source.class_names
  if not classes or not names or set(classes) & set(names):
    return []
  return [
    f"WARNING: the models' classes are called {', '.join(classes[:2])}, ... "
    f"and those of {name} {', '.join(names[:2])}, ...: assumed to be in the "
    "same order"
  ]


def labelled(
  source: data.Source, classes: Sequence[str] | None, num: int, what: str
) -> data.Source:
  """Maps the labels of a source to the models' outputs.

  Args:
    source: with the models' classes, or some of them.
    classes: names of the outputs, None if they are not known.
    num: number of outputs.
    what: the name of the source in errors.

  Raises:
    ValueError: if the source has other classes.
  """
  if classes is not None and len(classes) != num:
    raise ValueError(
      f"{what}: {len(classes)} names of classes, and the models have {num} "
      "outputs."
    )
  names = source.class_names
  common = set(names or ()) & set(classes or ())
  if common:
    others = sorted(set(names) - common)
    if others:
      left = sorted(set(classes) - common) or list(classes)
      raise ValueError(
        f"{what}: {source.name} has classes that the models do not have: "
        f"{', '.join(others[:3])}{', ...' * (len(others) > 3)}. Those of the "
        f"models are called, for instance, {', '.join(left[:3])}."
      )
    return (
      source
      if tuple(names) == tuple(classes)
      else (_Relabelled(source, classes))
    )
  if source.num_classes != num:
    raise ValueError(
      f"{what}: {source.name} has {source.num_classes} classes, and the models "
      f"data.num_classes={num}. A set of some of the classes needs the names "
      "of all, or labels of the whole set."
    )
  return source
