# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detects a checkpoint's model from its leaves and the config beside it."""

from collections.abc import Mapping
import dataclasses
import math
import os
import pathlib
import re
from typing import Any

from soupjax import files
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints.companions import file_beside
from soupjax.models import vit
from soupjax.models.pretrained import families, foreign
from soupjax.soups.core.ingredient import Ingredient

# Names of activations in configs -> names in `layers.ACTIVATIONS`.
_ACTS = {
  "gelu": "gelu_exact",
  "gelu_pytorch_tanh": "gelu",
  "gelu_new": "gelu",
  "gelu_tanh": "gelu",
  "quick_gelu": "quick_gelu",
  "quickgelu": "quick_gelu",
}
_POOLS = {"token": "tok", "avg": "gap", "map": "map"}
# Keys of configs -> options of `models.ViT`.
_TRANSFORMERS = {
  "hidden_size": "width",
  "num_hidden_layers": "depth",
  "intermediate_size": "mlp_dim",
  "num_attention_heads": "num_heads",
  "patch_size": "patch_size",
  "layer_norm_eps": "norm_eps",
}
_TIMM = {
  "embed_dim": "width",
  "depth": "depth",
  "num_heads": "num_heads",
  "patch_size": "patch_size",
}
_OPENCLIP = {"width": "width", "patch_size": "patch_size"}
_BLOCK_0 = "Transformer/encoderblock_0/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detected:
  """The model of a checkpoint, as far as it is known.

  Attributes:
    family: a key of `mappings.FAMILIES`.
    options: of `models.ViT`, with num_classes; {} for a Mixer. `num_heads` is
      missing if it is unknown.
    said: the options that a config beside the weights gives.
    assumed: the options that neither the config nor the weights give, so that
      they are the usual ones of the family.
    image_size: of the position embeddings, None unless their grid is square.
    classes: names of the outputs in order, if a config has them.
    config: contents of `config.json` beside the weights, {} without one.
  """

  family: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  said: frozenset[str] = frozenset()
  assumed: frozenset[str] = frozenset()
  image_size: int | None = None
  classes: tuple[str, ...] | None
  config: Mapping[str, Any]


def detect(
  source: str | os.PathLike | Ingredient, *, family: str | None = None
) -> Detected:
  """Detects the model of a checkpoint; reads no weights.

  Names and shapes of leaves give sizes, pooling, norms and classes. They do not
  give the number of heads, activation and epsilon: these are read from a
  `config.json` beside the weights (of transformers, timm, or
  open_clip_config.json). Without one, the number of heads is that of the
  variant with this width and depth, the others are the family's.

  Args:
    source: path of a checkpoint, as for `open_ingredient`, or an ingredient.
    family: a key of `mappings.FAMILIES`; None recognises it by its names.

  Returns:
    A description; `ViT(**detect(path).options)` is the model.

  Raises:
    ValueError: if the family is unknown or ambiguous, the config beside the
      weights is of another model, or our ViT lacks an option that it needs.
  """
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  table = families.recognise(source, family)
  config, path = _config_beside(source.path)
  vit_fields = {}
  if table.family.model == "ViT":
    vit_fields = _detect_vit(table, config, path)
  return Detected(
    family=table.name, classes=_classes(config), config=config, **vit_fields
  )


def _detect_vit(table, config, path) -> dict[str, Any]:
  """Returns the fields of `Detected` that only a ViT has."""
  measured = _options_of_leaves(table)
  said = _options_of_config(config, table.name)
  for key in ("width", "depth", "mlp_dim", "patch_size"):
    if key in said and key in measured and said[key] != measured[key]:
      raise ValueError(
        f"{path} has {key}={said[key]}, and the weights of {table.where} "
        f"{measured[key]}: it belongs to another model. Replace or remove it."
      )
  kind = table.family
  usual = {"act": kind.acts[0], "norm_eps": 1e-6}
  usual |= {**kind.options, **_usual(measured)}
  options = {**usual, **said, **measured}
  if "pool_type" in said:  # With a class token, leaves leave it open.
    options["pool_type"] = said["pool_type"]
    has_token = "cls" in table.leaves()
    options["class_token"] = has_token and said["pool_type"] != "tok"
  side = math.isqrt(table.tokens())
  square = side > 1 and side**2 == table.tokens()
  return {
    "options": options,
    "said": frozenset(said),
    "assumed": frozenset(usual) - set(said) - set(measured),
    "image_size": side * measured["patch_size"] if square else None,
  }


def _options_of_leaves(table: foreign.SourceTable) -> dict[str, Any]:
  """Returns the options that follow from names and shapes."""
  names = set(table.leaves())
  norm = re.compile(r"Transformer/encoderblock_\d+/LayerNorm_0/scale")
  options: dict[str, Any] = {
    "fc_norm": "fc_norm/scale" in names,
    "pre_norm": "pre_norm/scale" in names,
    "patch_bias": "embedding/bias" in names,
    "class_token": False,
    "depth": sum(bool(norm.fullmatch(name)) for name in names),
  }
  for key, leaf, axis in (
    ("patch_size", "embedding/kernel", 0),
    ("width", "embedding/kernel", 3),
    ("mlp_dim", f"{_BLOCK_0}MlpBlock_0/Dense_0/kernel", 1),
    ("rep_size", "pre_logits/kernel", 1),
    ("proj_size", "proj/kernel", 1),
    ("num_classes", "head/kernel", 1),
  ):
    if (shape := table.shape(leaf)) and len(shape) > axis:
      options[key] = shape[axis]
  if "patch_size" not in options:
    raise ValueError(
      f"{table.where} does not have a known patch embedding, only leaves such "
      f"as {', '.join(list(table.entries)[:3])}: give the model's options."
    )
  query = table.shape(f"{_BLOCK_0}MultiHeadDotProductAttention_0/query/kernel")
  if query and len(query) == 3:  # Other libraries have one axis for all heads.
    options["num_heads"] = query[1]
  if "pos_embedding" not in names:
    options["posemb"] = "sincos2d"
  has_token = "cls" in names
  if has_token and not options["fc_norm"] and "MAPHead_0/probe" not in names:
    return options | {"pool_type": "tok"}
  pool = "map" if "MAPHead_0/probe" in names else "gap"
  return options | {"pool_type": pool, "class_token": has_token}


def _usual(measured) -> dict[str, Any]:
  """Returns the usual options of models of these sizes."""
  options: dict[str, Any] = {}
  for size in vit.VARIANTS.values():
    if all(size[k] == measured.get(k) for k in ("width", "depth", "mlp_dim")):
      options["num_heads"] = size["num_heads"]
  if measured["pre_norm"]:  # CLIP, in timm too.
    options["norm_eps"] = 1e-5
  return options


def _config_beside(path: str) -> tuple[dict[str, Any], pathlib.Path | None]:
  for name in ("config.json", "open_clip_config.json"):
    file = file_beside(path, name)
    config = files.read_json(file) if file else None
    # Configs of other programs, and ours, can have the same file name.
    if isinstance(config, dict) and (
      {"model_type", "architecture", "model_cfg"} & set(config)
    ):
      return config, file
  return {}, None


def _options_of_config(
  config: Mapping[str, Any], family: str
) -> dict[str, Any]:
  """Returns the options that a config gives."""
  if family.startswith("hf_") and "model_type" in config:
    config = config.get("vision_config", config)
    return _renamed(config, _TRANSFORMERS) | _act(config.get("hidden_act"))
  if family == "timm" and "architecture" in config:
    return _options_of_timm(config)
  if family == "openclip" and "model_cfg" in config:
    model = config["model_cfg"]
    vision = model.get("vision_cfg", {})
    options = _renamed(vision, _OPENCLIP)
    if "width" in vision:
      options["num_heads"] = vision["width"] // vision.get("head_width", 64)
    return options | _act("quick_gelu" if model.get("quick_gelu") else "gelu")
  return {}


def _renamed(config, names) -> dict[str, Any]:
  return {option: config[k] for k, option in names.items() if k in config}


def _options_of_timm(config):
  model_args = config.get("model_args") or {}
  options = _renamed(model_args, _TIMM)
  act = model_args.get("act_layer")
  if act is None and "quickgelu" in config["architecture"]:
    act = "quick_gelu"
  pool = config.get("global_pool", model_args.get("global_pool"))
  if pool in _POOLS:
    options["pool_type"] = _POOLS[pool]
  elif pool:
    raise ValueError(
      f"timm's global_pool={pool!r} does not exist in our ViT, which has: "
      f"{', '.join(_POOLS)}."
    )
  return options | _act(act)


def _act(name):
  if name is None:
    return {}
  if name not in _ACTS:
    raise ValueError(
      f"The config beside the weights has the activation {name!r}, and our ViT "
      f"only {', '.join(_ACTS)}."
    )
  return {"act": _ACTS[name]}


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns the names of the outputs, None if they are only numbered."""
  names = config.get("id2label") or config.get("label_names")
  if isinstance(names, dict):
    try:
      names = [names[k] for k in sorted(names, key=int)]
    except ValueError:
      return None
  if not isinstance(names, list) or not names:
    return None
  if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
    return None
  return tuple(map(str, names))
