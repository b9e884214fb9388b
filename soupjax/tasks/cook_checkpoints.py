# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What checkpoints say of their model, its images and its classes."""

from collections.abc import Mapping, Sequence
import math
import pathlib
import re
from typing import Any

import ml_collections
import numpy as np

from soupjax import data, files, models
from soupjax.data import image_ops
from soupjax.models.pretrained import detection
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import cook_config

# Pillow's numbers, as transformers has them; timm has the names.
_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_EXAMPLES = """
  resize_small(256, "bicubic")|central_crop(224)|standardize("imagenet")
  resize_small(248, "bicubic")|central_crop(224)|value_range(-1, 1)
  resize(224)|value_range(-1, 1)"""
# What only a config tells: shapes are compared leaf by leaf.
_SILENT = ("num_heads", "act", "norm_eps", "pool_type")


def resolve(
  config: ml_collections.ConfigDict, ingredients: Sequence[Ingredient]
) -> tuple[ml_collections.ConfigDict, detection.Detected, list[str]]:
  """Fills in what a config leaves to the checkpoints.

  Args:
    config: as in configs/cook.py.
    ingredients: as they were found, and the start.

  Returns:
    The config without gaps, what the first ingredient is, and lines for the
    plan: where that comes from, and what is taken for granted.

  Raises:
    ValueError: if ingredients differ in what they say, say something else than
      the config, or something is said by neither.
  """
  found = [
    detection.detect(i, family=config.family or None) for i in ingredients
  ]
  first = found[0]
  prepared = [preparation(i.path, d) for i, d in zip(ingredients, found)]
  for one, other, ops in zip(ingredients[1:], found[1:], prepared[1:]):
    _check_alike(ingredients[0], first, prepared[0], one, other, ops)
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
      f"The number of attention heads of {ingredients[0].path} is in no file "
      "that is there, and models of its size have no usual one: give "
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


def _check_alike(first, theirs, ops, one, other, its):
  """Models that compute different things of the same weights are no soup."""
  for what, a, b in (
    *(
      (f"model.{k}", theirs.options[k], other.options[k])
      for k in _SILENT
      if k in theirs.said & other.said
    ),
    ("the order of classes", theirs.classes, other.classes),
    ("the preparation of images", ops, its),
  ):
    if a is not None and b is not None and a != b:
      raise ValueError(
        f"{first.name!r} and {one.name!r} differ in {what}, by the files "
        f"beside them: {a!s:.200} and {b!s:.200}. They cannot be averaged, or "
        "one of these files is wrong."
      )


def _check_full(config, ingredient):
  where = ingredient.path or ingredient.name
  if not config.data.num_classes:
    raise ValueError(
      f"{where} has no head that is known, so that it has no classes: cooking "
      "needs models that classify. (sj.mix averages any.)"
    )
  if not config.data.image_size:
    raise ValueError(
      f"{where} does not tell the size of its images: give "
      "--config.data.image_size."
    )
  if not config.data.eval_ops:
    raise ValueError(
      "How images were prepared is in no file beside "
      f"{where}: give --config.data.eval_ops, as in training. Usual are, for "
      "timm's models of ImageNet, for those of AugReg, and for transformers' "
      f"ViT:{_EXAMPLES}"
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


def _lines(config, found, filled, prepared):
  """What the plan says of the model."""
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
  guessed = sorted(found.assumed & set(filled))
  if guessed:
    lines.append(
      "taken for granted, as no file says it: "
      + ", ".join(f"{k} {shown[k]}" for k in guessed)
    )
  if prepared and prepared != config.data.eval_ops:
    lines.append(f"WARNING: the checkpoints' own preparation is {prepared}")
  if found.image_size not in (None, config.data.image_size):
    lines.append(
      f"WARNING: position embeddings for {found.image_size} px are resampled "
      f"to {config.data.image_size}, in the exported soups too"
    )
  return lines


# --- Images -------------------------------------------------------------------


def preparation(path: str, found: detection.Detected) -> str | None:
  """The operations of evaluation that files beside a checkpoint describe.

  Args:
    path: of the checkpoint.
    found: what is known of it.

  Returns:
    As for `data.Preprocess`; None if there is no such file, or it asks for
    something that cannot be done here.
  """
  file = detection.beside(path, "preprocessor_config.json")
  if file:
    return _of_transformers(files.read_json(file))
  timms = found.config.get("pretrained_cfg", {})
  return _of_timm(timms) if "architecture" in found.config else None


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
  """The operation that takes a mean away and divides by a deviation."""
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
  """A source whose labels are numbered as a model's outputs."""

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
  """What timm sorts class folders by: 2 before 10, a before B."""
  parts = re.split(r"(\d+)", name.lower())
  return [int(part) if part.isdigit() else part for part in parts]


def classes_of(
  config: ml_collections.ConfigDict,
  found: detection.Detected,
  source: data.Source,
) -> tuple[str, ...] | None:
  """Names of the models' outputs, in order; None where they are not known.

  Args:
    config: with `data.classes`.
    found: what is known of the models.
    source: of `data.name`, on which they were trained.

  Raises:
    ValueError: if `data.classes` is no such list, or it is needed.
  """
  wanted, names = config.data.classes, source.class_names
  if wanted not in ("", "text", "natural"):
    path = pathlib.Path(wanted).expanduser()
    if not path.is_file():
      raise ValueError(
        f"data.classes={wanted!r} is neither 'text' nor 'natural' nor a file "
        "with a class a line."
      )
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
  if names is None:
    return found.classes
  if wanted:
    key = natural_key if wanted == "natural" else None
    return tuple(sorted(names, key=key))
  if found.classes and set(found.classes) & set(names):
    return found.classes
  if found.family == "timm" and list(names) != sorted(names, key=natural_key):
    a, b = next(
      p for p in zip(names, sorted(names, key=natural_key)) if p[0] != p[1]
    )
    raise ValueError(
      f"In which order are the classes of {source.name}? timm numbers them "
      f"with {b!r} before {a!r}, torchvision the other way round. Give "
      "--config.data.classes=natural (timm), =text (torchvision), or a file "
      "with a class a line."
    )
  return names


def incomparable(
  source: data.Source, classes: Sequence[str] | None, name: str
) -> list[str]:
  """A line for the plan if a set calls all classes otherwise than models do."""
  names = source.class_names
  if not classes or not names or set(classes) & set(names):
    return []
  return [
    f"WARNING: their classes are called {', '.join(classes[:2])}, ... and "
    f"those of {name} {', '.join(names[:2])}, ...: taken to be in one order"
  ]


def labelled(
  source: data.Source, classes: Sequence[str] | None, num: int, what: str
) -> data.Source:
  """Numbers the labels of a source as the models' outputs are.

  Args:
    source: with the models' classes, or some of them.
    classes: names of the outputs, None if they are not known.
    num: how many there are.
    what: what errors call it.

  Raises:
    ValueError: if it has other classes.
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
        f"{what}: {source.name} has classes that the models do not know: "
        f"{', '.join(others[:3])}{', ...' * (len(others) > 3)}. Theirs are "
        f"called, for instance, {', '.join(left[:3])}."
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
