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
from soupjax.models import vit
from soupjax.models.pretrained import families, foreign, mappings
from soupjax.soups.core.ingredient import Ingredient

# What configs call an activation -> what we do.
_ACTS = {
  "gelu": "gelu_exact",
  "gelu_pytorch_tanh": "gelu",
  "gelu_new": "gelu",
  "gelu_tanh": "gelu",
  "quick_gelu": "quick_gelu",
  "quickgelu": "quick_gelu",
}
_BLOCK_0 = "Transformer/encoderblock_0/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detected:
  """What is known of a checkpoint's model.

  Attributes:
    family: a key of `mappings.FAMILIES`.
    options: of `models.ViT`, num_classes too; none of a Mixer. `num_heads` is
      missing where nothing tells it.
    said: those of `options` that a config beside the weights has.
    assumed: those that are neither there nor in the weights, but what models of
      the family usually have.
    image_size: of the position embeddings, None if they are of no square grid.
    classes: names of the outputs in order, where a config has them.
    config: what `config.json` beside the weights says, {} if there is none.
  """

  family: str
  options: Mapping[str, Any]
  said: frozenset[str]
  assumed: frozenset[str]
  image_size: int | None
  classes: tuple[str, ...] | None
  config: Mapping[str, Any]


def detect(
  source: str | os.PathLike | Ingredient, *, family: str | None = None
) -> Detected:
  """Finds out which model a checkpoint is of; reads no weights.

  Sizes, pooling, norms and classes are in names and shapes. The number of
  heads, activation and epsilon are not: they are read from a `config.json`
  beside the weights (of transformers, timm, or open_clip_config.json). Without
  one, the number of heads is that of the variant with this width and depth,
  the others are the family's.

  Args:
    source: path of a checkpoint, as for `open_ingredient`, or an ingredient.
    family: a key of `mappings.FAMILIES`; None recognises it by its names.

  Returns:
    What is known; `ViT(**detect(path).options)` is the model.

  Raises:
    ValueError: if the family is unknown or cannot be told, the config beside
      the weights is of another model, or our ViT cannot do what it says.
  """
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  entries = foreign.entries(source)
  where = source.path or repr(source.name)
  family, prefix = families.recognise(entries, family, where)
  kind = mappings.FAMILIES[family]
  config, path = _config_beside(source.path)
  if kind.model != "ViT":
    return Detected(
      family=family,
      options={},
      said=frozenset(),
      assumed=frozenset(),
      image_size=None,
      classes=_classes(config),
      config=config,
    )
  there = foreign.Table(kind, families.without_prefix(entries, prefix, kind))
  seen = _of_leaves(there)
  said = _of_config(config, family)
  for key in ("width", "depth", "mlp_dim", "patch_size"):
    if key in said and key in seen and said[key] != seen[key]:
      raise ValueError(
        f"{path} has {key}={said[key]}, and the weights of {where} "
        f"{seen[key]}: it is of another model. Put the right one there, or "
        "take it away."
      )
  usual = {"act": kind.acts[0], "norm_eps": 1e-6}
  assumed = {**usual, **kind.options, **_usual(seen)}
  options = {**assumed, **said, **seen}
  if "pool_type" in said:  # With a class token, both look the same.
    options["pool_type"] = said["pool_type"]
    options["class_token"] = "cls" in _names(there) and (
      said["pool_type"] != "tok"
    )
  side = math.isqrt(there.tokens())
  square = side > 1 and side**2 == there.tokens()
  return Detected(
    family=family,
    options=options,
    said=frozenset(said),
    assumed=frozenset(assumed) - set(said) - set(seen),
    image_size=side * seen["patch_size"] if square else None,
    classes=_classes(config),
    config=config,
  )


def _names(there: foreign.Table) -> set[str]:
  return set(there.ours())


def _of_leaves(there: foreign.Table) -> dict[str, Any]:
  """Options that names and shapes tell."""
  names, shape = _names(there), there.shape
  found: dict[str, Any] = {
    "fc_norm": "fc_norm/scale" in names,
    "pre_norm": "pre_norm/scale" in names,
    "patch_bias": "embedding/bias" in names,
    "class_token": False,
    "depth": sum(
      bool(re.fullmatch(r"Transformer/encoderblock_\d+/LayerNorm_0/scale", k))
      for k in names
    ),
  }
  for key, leaf, axis in (
    ("patch_size", "embedding/kernel", 0),
    ("width", "embedding/kernel", 3),
    ("mlp_dim", f"{_BLOCK_0}MlpBlock_0/Dense_0/kernel", 1),
    ("rep_size", "pre_logits/kernel", 1),
    ("proj_size", "proj/kernel", 1),
    ("num_classes", "head/kernel", 1),
  ):
    if (size := shape(leaf)) and len(size) > axis:
      found[key] = size[axis]
  query = shape(f"{_BLOCK_0}MultiHeadDotProductAttention_0/query/kernel")
  if query and len(query) == 3:  # As ours; elsewhere heads are in one axis.
    found["num_heads"] = query[1]
  if "pos_embedding" not in names:
    found["posemb"] = "sincos2d"
  has_token = "cls" in names
  if "MAPHead_0/probe" in names:
    found |= {"pool_type": "map", "class_token": has_token}
  elif has_token and not found["fc_norm"]:
    found["pool_type"] = "tok"
  else:
    found |= {"pool_type": "gap", "class_token": has_token}
  if "patch_size" not in found:
    raise ValueError(
      "The weights have no patch embedding that is known, only "
      f"{', '.join(list(there.found)[:3])} and such: give the model's options."
    )
  return found


def _usual(seen) -> dict[str, Any]:
  """What models of these sizes have."""
  found: dict[str, Any] = {}
  for one in vit.VARIANTS.values():
    if all(one[k] == seen.get(k) for k in ("width", "depth", "mlp_dim")):
      found["num_heads"] = one["num_heads"]
  if seen["pre_norm"]:  # CLIP's, also as timm has them.
    found["norm_eps"] = 1e-5
  return found


def beside(path: str, name: str) -> pathlib.Path | None:
  """A file in the directory of a checkpoint, None if it is not there."""
  if not path or "://" in path:
    return None
  place = pathlib.Path(path)
  file = (place if place.is_dir() else place.parent) / name
  return file if file.is_file() else None


def _config_beside(path: str) -> tuple[dict[str, Any], pathlib.Path | None]:
  for name in ("config.json", "open_clip_config.json"):
    file = beside(path, name)
    found = files.read_json(file) if file else None
    # Other programs' configs are called so as well, ours too.
    if isinstance(found, dict) and (
      {"model_type", "architecture", "model_cfg"} & set(found)
    ):
      return found, file
  return {}, None


def _of_config(config: Mapping[str, Any], family: str) -> dict[str, Any]:
  """Options that a config says."""
  if family.startswith("hf_") and "model_type" in config:
    return _of_transformers(config)
  if family == "timm" and "architecture" in config:
    return _of_timm(config)
  if family == "openclip" and "model_cfg" in config:
    vision = config["model_cfg"].get("vision_cfg", {})
    found = {k: vision[k] for k in ("width", "patch_size") if k in vision}
    quick = config["model_cfg"].get("quick_gelu", False)
    found["act"] = "quick_gelu" if quick else "gelu_exact"
    if "width" in vision:
      found["num_heads"] = vision["width"] // vision.get("head_width", 64)
    return found
  return {}


def _of_transformers(config):
  config = config.get("vision_config", config)
  names = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "intermediate_size": "mlp_dim",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "layer_norm_eps": "norm_eps",
  }
  found = {ours: config[k] for k, ours in names.items() if k in config}
  return found | _act(config.get("hidden_act"))


def _of_timm(config):
  options = config.get("model_args") or {}
  names = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
  }
  found = {ours: options[k] for k, ours in names.items() if k in options}
  act = options.get("act_layer")
  if act is None and "quickgelu" in config["architecture"]:
    act = "quick_gelu"
  pool = config.get("global_pool", options.get("global_pool"))
  if pool in _POOLS:
    found["pool_type"] = _POOLS[pool]
  elif pool:
    raise ValueError(
      f"timm's global_pool={pool!r} is none that our ViT has: "
      f"{', '.join(_POOLS)}."
    )
  return found | _act(act)


_POOLS = {"token": "tok", "avg": "gap", "map": "map"}


def _act(name):
  if name is None:
    return {}
  if name not in _ACTS:
    raise ValueError(
      f"The config beside the weights has the activation {name!r}; our ViT has "
      f"those that are called {', '.join(_ACTS)}."
    )
  return {"act": _ACTS[name]}


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Names of the outputs, None where they are only numbered."""
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
