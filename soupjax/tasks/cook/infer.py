# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Infers model and preprocessing from checkpoints and the files beside them."""

from collections.abc import Sequence
import dataclasses

import ml_collections

from soupjax import data, models
from soupjax.checkpoints import companions
from soupjax.data import pipeline
from soupjax.models import own, pretrained, rope
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import preprocessing
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import heads

_EXAMPLES = """
  resize_small(256, "bicubic")|central_crop(224)|standardize("imagenet")
  resize_small(248, "bicubic")|central_crop(224)|value_range(-1, 1)
  resize(224)|value_range(-1, 1)"""
# Options that do not affect shapes; shapes are compared leaf by leaf.
_SILENT = (
  *("num_heads", "act", "norm_eps", "pool_type", "post_norm"),
  *("pool_prefix", "pool_heads", "rope", "rope_grid", "conv_eps"),
)


def resolve(
  config: ml_collections.ConfigDict,
  ingredients: Sequence[Ingredient],
  *,
  headless: bool = False,
) -> tuple[
  ml_collections.ConfigDict,
  pretrained.Detected,
  pretrained.Detected | None,
  list[str],
]:
  """Fills the gaps of a config from the checkpoints.

  Args:
    config: as in configs/cook.py.
    ingredients: the ingredients, the start and checkpoints along runs, with
      the leaves of their files.
    headless: whether only image towers without heads are averaged, whose heads
      may then have different classes.

  Returns:
    The config without gaps, the detected model of the first ingredient, the
    same with both towers if the ingredients are whole CLIPs (else None), and
    lines for the plan about detected and assumed settings.

  Raises:
    ValueError: if ingredients differ in their settings or contradict the
      config, or if a required setting is in neither.
  """
  if own.is_own(models.MODELS.get(config.model.name)):
    unknown = pretrained.Detected(family="", classes=None, config={})
    detected = [unknown for _ in ingredients]
  else:
    detected = [
      pretrained.detect(i, family=config.family or None) for i in ingredients
    ]
  whole = None
  if not headless:
    whole = heads.whole_clips(config, ingredients, detected)
  prepared, warnings = _prepared(config, ingredients, detected)
  _check_alike(ingredients, detected, prepared, headless)
  origin, first = ingredients[0], detected[0]
  # Ingredients without config files have the settings of the others.
  named = (model.classes for model in detected)
  first = dataclasses.replace(first, classes=next(filter(None, named), None))

  # --- Options of the model: given, implied by its variant, or detected -------
  written = config.model.to_dict()
  given = {k: v for k, v in written.items() if v is not None}
  name, variant = given.pop("name"), given.pop("variant")
  if name == "vit" and first.model != "vit":  # Only a default.
    name = written["name"] = first.model
  if variant and name == "vit":
    given = {**models.variant(variant), **given}
  for key in _SILENT:
    if key in first.said and given.get(key) not in (None, first.options[key]):
      raise ValueError(
        f"model.{key}={given[key]!r}, but the config.json beside {origin.path} "
        f"has {first.options[key]!r}: leave --config.model.{key} out."
      )
  gaps = [k for k, v in written.items() if v is None]
  filled = {
    k: first.options[k]
    for k in gaps
    if first.options.get(k) is not None and k not in given
  }
  options = {**given, **filled}
  if "num_heads" in gaps and name == "vit" and "num_heads" not in options:
    raise ValueError(
      f"The number of attention heads of {origin.path} is unknown: no file "
      "beside it gives it, and its size is unusual. Set "
      "--config.model.num_heads to a divisor of the width "
      f"{options['width']}, or put its config.json beside it."
    )
  if first.options.get("rope", "") is None and "rope" not in given:
    raise ValueError(
      f"It is unknown whether {origin.path} uses rotary position embeddings: "
      "its leaves do not show it. Give --config.model.rope, one of "
      f"{', '.join(map(repr, rope.ROPES))} or '' for none, or put its "
      "config.json beside it."
    )

  # --- The config without gaps ------------------------------------------------
  full = ml_collections.ConfigDict(config.to_dict())
  known = {k: v for k, v in options.items() if k in gaps}
  full.model = ml_collections.ConfigDict({**written, **known})
  full.data.num_classes = full.data.num_classes or (
    (first.options.get("num_classes") or 0)
    if whole is None
    else heads.count_names(config)
  )
  full.data.image_size = full.data.image_size or first.image_size or 0
  full.data.eval_ops = _eval_ops(config, ingredients, prepared)
  _check_full(full, origin.path or origin.name, headless)
  described = next(filter(None, prepared), None)
  described = described or preprocessing.recorded(companions.home(origin))
  if whole is not None:
    read = {k: v for k, v in first.ignored.items() if k not in heads.RULES}
    first = dataclasses.replace(first, ignored=read)
  lines = [*_lines(full, first, filled, described), *warnings]
  return full.lock(), first, whole, lines


def _prepared(config, ingredients, detected):
  """Returns each ingredient's preprocessing, if described, and warnings.

  Raises:
    ValueError: if files describe unsupported preprocessing and `data.eval_ops`
      is empty.
  """
  prepared, warnings = [], []
  for ingredient, model in zip(ingredients, detected):
    try:
      ops = preprocessing.of_files(companions.home(ingredient), model.family)
    except ValueError as e:
      if not config.data.eval_ops:
        raise
      ops = None
      warnings.append(f"WARNING: {e} data.eval_ops is used instead.")
    prepared.append(ops)
  return prepared, list(dict.fromkeys(warnings))


def _eval_ops(config, ingredients, prepared):
  """Returns the image operations of evaluation; "" if they are unknown.

  Raises:
    ValueError: if an ingredient was trained on pixels with other values.
  """
  texts = [
    ops or preprocessing.recorded(companions.home(ingredient))
    for ingredient, ops in zip(ingredients, prepared)
  ]
  given = cook_config.eval_ops(config) or next(filter(None, texts), "")
  for ingredient, text in zip(ingredients, texts):
    if given and text:
      preprocessing.check_values(given, text, ingredient.path)
  return config.data.eval_ops or given


def _check_alike(ingredients, detected, prepared, headless) -> None:
  """Rejects ingredients whose files imply different forward passes."""
  settings = {
    f"model.{key}": [
      m.options.get(key) if key in m.said else None for m in detected
    ]
    for key in sorted(set().union(*(model.said for model in detected)))
  }
  if not headless:
    settings["the order of classes"] = [model.classes for model in detected]
  settings["the preprocessing of images"] = prepared
  for setting, values in settings.items():
    described = [
      (ingredient.name, value)
      for ingredient, value in zip(ingredients, values)
      if value is not None
    ]
    for name, value in described[1:]:
      first, expected = described[0]
      if value != expected:
        raise ValueError(
          f"{first!r} and {name!r} differ in {setting}, according to the files "
          f"beside them: {expected!s:.200} and {value!s:.200}. They cannot be "
          "averaged, unless one of these files is wrong."
        )


def _check_full(config, path: str, headless: bool) -> None:
  if not headless and not config.data.num_classes:
    raise ValueError(
      f"{path} has no known head and no text tower, but cooking needs "
      "classifiers. sj.mix averages models of any kind."
    )
  if not config.data.image_size:
    raise ValueError(
      f"The image size of {path} is unknown: give --config.data.image_size."
    )
  if not config.data.eval_ops:
    raise ValueError(
      f"The preprocessing of images is unknown, since no file beside {path} "
      "describes it: give --config.data.eval_ops, as in training. Usual values "
      "for timm's ImageNet models, AugReg and transformers' ViT are:"
      f"{_EXAMPLES}"
    )


def check_images(
  config: ml_collections.ConfigDict, source: data.Source, before: str = ""
) -> None:
  """Raises a ValueError if preprocessed images lack the model's size."""
  ops, side = cook_config.eval_ops(config, before), config.data.image_size
  # Has the shape of the first image that can be decoded.
  shape = pipeline.Reader(source, data.Preprocess(ops), 0).blank().shape
  if shape != (side, side, 3):
    raise ValueError(
      f"data.eval_ops={ops!r} gives images of {shape[0]} x {shape[1]}, but the "
      f"model takes data.image_size={side}: change one of them."
    )


def _lines(config, detected, filled, prepared):
  """Describes model and preprocessing for the plan."""
  options = config.model.to_dict()
  options |= options.get("image") or {}  # For a sweep of whole CLIPs.

  def listed(keys):
    keys = [k for k in keys if options.get(k) not in (None, "")]
    return ", ".join(f"{k} {options[k]}" for k in keys)

  sizes = ("patch_size", "width", "depth", "mlp_dim", "num_heads", "pool_type")
  lines = [
    f"model: {listed(['variant', *sizes])}",
    f"images: {config.data.image_size} px, {cook_config.eval_ops(config)}",
  ]
  values = data.Preprocess(cook_config.eval_ops(config)).values
  if values.dtype == "uint8" and not prepared:
    lines.append(
      f"WARNING: data.eval_ops gives pixels in {values}; most models need "
      "value_range(-1, 1) or standardize"
    )
  assumed = listed(sorted(detected.assumed & set(filled)))
  if "image_size" in detected.assumed and (
    detected.image_size == config.data.image_size
  ):
    square = f"square images of {detected.image_size} px"
    assumed = f"{assumed}, {square}" if assumed else square
  if assumed:
    lines.append(f"assumed, since no file specifies it: {assumed}")
  for rule, leaves in detected.ignored.items():
    lines.append(f"not read, {rule}: {len(leaves)} leaves, such as {leaves[0]}")
  if prepared and prepared != cook_config.eval_ops(config):
    lines.append(f"WARNING: the checkpoints' own preprocessing is {prepared}")
  if detected.image_size not in (None, config.data.image_size):
    lines.append(
      f"WARNING: position embeddings for {detected.image_size} px are "
      f"resampled to {config.data.image_size}, in the exported soups too"
    )
  return lines
