# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detects a checkpoint's model from its leaves and the config beside it."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
import re
from typing import Any

from soupjax.checkpoints import companions
from soupjax.checkpoints import open as open_lib
from soupjax.models import vit
from soupjax.models.pretrained import (
  configs,
  families,
  foreign,
  mappings,
  tables,
  two_towers,
)
from soupjax.models.pretrained.other_models import bit, mixer
from soupjax.soups.core.ingredient import Ingredient

_BLOCK_0 = tables.BLOCK_0
_ATTENTION = _BLOCK_0 + tables.ATTENTION
_MOST_CLASSES = 1_000_000
# Models other than ViTs -> function that measures their options.
_MEASURED = {"Mixer": mixer.measured, "ResNet": bit.measured}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detected:
  """The model of a checkpoint, as far as it is known.

  Attributes:
    family: a key of `mappings.FAMILIES`.
    options: options of `models.ViT`, `Mixer`, `ResNet` or `CLIP`, with
      num_classes if there is a head. `num_heads` of a ViT is None if it is
      unknown; the model then raises an error that asks for it.
    said: the options that a config beside the weights gives.
    assumed: the options that neither the config nor the weights give, with the
      usual values of the family; and "image_size", if it is inferred only from
      a square number of position embeddings.
    image_size: side of the images in pixels, None if they are not square or the
      position embeddings do not determine it.
    classes: names of the outputs in order, if a config has them.
    config: contents of `config.json` beside the weights, {} without one.
    ignored: rule -> leaves of the file that are not read, such as "text tower".
  """

  family: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  said: frozenset[str] = frozenset()
  assumed: frozenset[str] = frozenset()
  image_size: int | None = None
  classes: tuple[str, ...] | None
  config: Mapping[str, Any]
  ignored: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

  @property
  def model(self) -> str:
    """Name of the model in configs: "vit", "mixer" or "resnet".

    For a CLIP it is "vit", that of the image tower.
    """
    return mappings.FAMILIES[self.family].model.lower()


def detect(
  source: str | os.PathLike | Ingredient,
  *,
  family: str | None = None,
  skip: Sequence[str] = (),
  prefix: str = "",
  text: bool = False,
) -> Detected:
  """Detects the model of a checkpoint; reads no weights.

  Sizes, norms and the number of classes follow from names and shapes of leaves.
  The number of heads, activation, epsilon and, with a class token, pooling do
  not: these are read from a config beside the weights (`config.json` of
  transformers or timm, or `open_clip_config.json`). Without one, the number of
  heads is that of the variant with the same width, depth and mlp_dim, or None;
  the others are the family's.

  Args:
    source: path of a checkpoint, as for `open_ingredient`, or an ingredient.
    family: a key of `mappings.FAMILIES`; None recognises it by leaf names.
    skip: regular expressions of leaves of the file to leave out.
    prefix: start of the model's names if the file has several models.
    text: whether to include the text tower; the options are then those of
      `models.CLIP`.

  Returns:
    A description. `ViT(**detect(path).options)` makes the model of a ViT, and
    `CLIP(**detect(path, text=True).options)` that of a CLIP. Without `text`,
    `models.build(detected.model, **{"num_classes": None, **detected.options})`
    makes any model.

  Raises:
    ValueError: if the family is unknown or ambiguous; if the config beside the
      weights belongs to another model or an unknown architecture, or has a key
      or value that soupjax does not support; with `text`, also if there is no
      text tower or one of an unsupported kind.
  """
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  table = open_table(source, family, families.with_prefix(source, skip, prefix))
  if table.family.model == "ViT":
    fields = _detect_vit(table)
  else:
    fields = _detect_other(table)
  if text:
    fields["options"] = two_towers.options(table, fields["options"])
  config = table.said.config
  return Detected(
    family=table.name,
    classes=_classes(_with_labels(source, table)),
    config=config,
    ignored=table.ignored,
    **fields,
  )


def open_table(
  source: Ingredient, family: str | None, skip: Sequence[str] = ()
) -> foreign.SourceTable:
  """Recognises a checkpoint and reads the config beside it.

  Raises:
    ValueError: as for `detect`.
  """
  try:
    table = families.recognise(source, family, skip)
  except ValueError:
    configs.read(
      companions.home(source), None
    )  # An error about a config is more specific.
    raise
  said = configs.read(companions.home(source), table.name)
  if said.heads_of not in (None, _sizes(table).get("width")):
    options = {k: v for k, v in said.options.items() if k != "num_heads"}
    said = dataclasses.replace(said, options=options)
  table = dataclasses.replace(table, said=said)
  if said.path is not None:
    _check_config(table)
  return table


def _check_config(table: foreign.SourceTable) -> None:
  """Rejects a config whose sizes are not those of the leaves."""
  said, names = table.said, set(table.leaves())
  if measure := _MEASURED.get(table.family.model):
    measured = measure(table)
  else:
    parts = _parts(table)
    # The norms before and after pooling can have the same name.
    del parts["fc_norm"]
    measured = {**parts, **_sizes(table), "has_cls": "cls" in names}
  sizes = {
    k: (v, measured[k]) for k, v in said.options.items() if k in measured
  }
  if "layer_scale" in sizes:  # The config has the initial value.
    sizes["layer_scale"] = tuple(v > 0 for v in sizes["layer_scale"])
  patch = measured.get("patch_size")
  sized = "pos_embedding" in names or table.family.model == "Mixer"
  if said.image_size is not None and patch and sized:
    height, width = said.image_size
    patches = (height // patch) * (width // patch)
    sizes[f"patches ({height} x {width} pixels)"] = (
      patches,
      table.tokens(),
    )
  for key, (value, leaf_value) in sizes.items():
    if value != leaf_value:
      raise ValueError(
        f"{said.path} has {key}={value}, but the weights of {table.where} have "
        f"{leaf_value}: it belongs to another model. Replace or remove it."
      )


def _detect_vit(table: foreign.SourceTable) -> dict[str, Any]:
  """Returns the fields of `Detected` that depend on the model, for a ViT."""
  measured = _options_of_leaves(table)
  said = dict(table.said.options)
  said.pop("has_cls", None)
  kind = table.family
  usual = {"act": kind.acts[0], "norm_eps": 1e-6}
  usual |= {**kind.options, **_usual(measured, _may_rotate(table, measured))}
  if measured["pool_type"] != "map":
    # Class token, mean and first patch have the same leaves.
    usual["pool_type"] = measured.pop("pool_type")
  options = {**usual, **measured, **said}
  has_token = "cls" in table.leaves()
  options["class_token"] = has_token and "tok" not in options["pool_type"]
  assumed = set(usual) - set(said) - set(measured)
  size = _image_size(table, measured["patch_size"])
  if size is not None and table.said.image_size is None:
    assumed.add("image_size")  # Images may not be square.
  return {
    "options": options,
    "said": frozenset(table.said.options) & frozenset(options),
    "assumed": frozenset(assumed),
    "image_size": size,
  }


def _detect_other(table: foreign.SourceTable) -> dict[str, Any]:
  """Returns the same fields of `Detected` for a Mixer or a ResNet."""
  kind, said = table.family, dict(table.said.options)
  usual = dict(kind.options)
  if kind.model == "Mixer":
    usual.setdefault("act", kind.acts[0])
  measured = _MEASURED[kind.model](table)
  assumed, size = set(usual) - set(said), None
  if kind.model == "Mixer":
    size = _image_size(table, measured.get("patch_size", 0))
    if size is not None and table.said.image_size is None:
      assumed.add("image_size")
  elif table.said.image_size is not None:
    size = table.said.image_size[0]
  return {
    "options": {**usual, **measured, **said},
    "said": frozenset(said),
    "assumed": frozenset(assumed),
    "image_size": size,
  }


def _image_size(table: foreign.SourceTable, patch_size: int) -> int | None:
  """Returns the side of images, None if unknown or they are not square."""
  if table.said.image_size is not None:
    height, width = table.said.image_size
    return height if height == width else None
  patches = table.tokens()
  side = math.isqrt(patches)
  if side < 2 or side**2 != patches or table.class_position_is_open():
    return None
  return side * patch_size


def _sizes(table: foreign.SourceTable) -> dict[str, int]:
  """Returns the options that are sizes of leaves."""
  norm = re.compile(r"Transformer/encoderblock_\d+/LayerNorm_0/scale")
  options = {"depth": sum(bool(norm.fullmatch(k)) for k in table.leaves())}
  for key, leaf, axis in (
    ("patch_size", "embedding/kernel", 0),
    ("width", "embedding/kernel", 3),
    ("mlp_dim", f"{_BLOCK_0}MlpBlock_0/Dense_1/kernel", 0),
    ("rep_size", "pre_logits/kernel", 1),
    ("proj_size", "proj/kernel", 1),
    ("num_classes", "head/kernel", 1),
    ("registers", "reg_tokens", 1),
    ("pool_mlp_dim", "MAPHead_0/MlpBlock_0/Dense_1/kernel", 0),
  ):
    if (shape := table.shape(leaf)) and len(shape) > axis:
      options[key] = shape[axis]
  query = table.shape(f"{_ATTENTION}query/kernel")
  if query and len(query) == 3:  # Other libraries have one axis for all heads.
    options["num_heads"] = query[1]
  return options


def _parts(table: foreign.SourceTable) -> dict[str, Any]:
  """Returns the options that determine which leaves exist."""

  def has(leaf):
    return table.locate(leaf)[1] is not None

  final = has("Transformer/encoder_norm/scale")
  # A name that both norms share stands for the one before pooling.
  pooled = "fc_norm/scale" in table.leaves()
  biases = (k[0] for k in tables.QKV if has(f"{_ATTENTION}{k}/bias"))
  return {
    "fc_norm": pooled,
    "pre_norm": has("pre_norm/scale"),
    "final_norm": final or pooled,
    "patch_bias": has("embedding/bias"),
    "qkv_bias": "".join(biases),
    "qk_norm": has(f"{_ATTENTION}query_norm/scale"),
    "attention_norm": has(f"{_ATTENTION}norm/scale"),
    "gated": has(f"{_BLOCK_0}MlpBlock_0/gate/kernel"),
    "mlp_norm": has(f"{_BLOCK_0}MlpBlock_0/norm/scale"),
    "layer_scale": 1e-5 if has(f"{_BLOCK_0}LayerScale_0/gamma") else 0.0,
    "distilled": has("dist_token"),
    "distilled_head": not has("dist_token") or has("head_dist/kernel"),
    "registers": 0,
  }


def _options_of_leaves(table: foreign.SourceTable) -> dict[str, Any]:
  """Returns the options that follow from names and shapes."""
  names = set(table.leaves())
  options = {"class_token": False, **_parts(table), **_sizes(table)}
  if "patch_size" not in options:
    raise ValueError(
      f"{table.where} does not have a known patch embedding, only leaves such "
      f"as {', '.join(list(table.entries)[:3])}: give the model's options."
    )
  if "pos_embedding" not in names:
    ours = table.name == "big_vision" and _beyond_big_vision(options)
    options["posemb"] = "none" if ours else table.family.without_positions
  if options.get("pool_mlp_dim") == options.get("mlp_dim"):
    options.pop("pool_mlp_dim", None)
  has_token = "cls" in names
  if has_token and not options["fc_norm"] and "MAPHead_0/probe" not in names:
    return options | {"pool_type": "tok"}
  pool = "map" if "MAPHead_0/probe" in names else "gap"
  return options | {"pool_type": pool, "class_token": has_token}


def _beyond_big_vision(options) -> bool:
  """Whether a model with big_vision's names is one that only soupjax has.

  Without a leaf for positions, big_vision's models use sincos2d; ours may have
  rotary positions instead.
  """
  return bool(
    options["layer_scale"]
    or options["gated"]
    or options["qk_norm"]
    or options["qkv_bias"] != "qkv"
  )


def _may_rotate(table: foreign.SourceTable, measured) -> bool:
  """Whether models with these leaves may have rotary positions."""
  if "pos_frequencies" in table.leaves():
    return True
  if table.name == "big_vision":
    return measured.get("posemb") == "none"
  if table.name != "timm":
    return False
  names = " ".join(table.entries)
  no_positions = measured.get("posemb") == "none"
  pooled_prefix = measured["pool_type"] == "map" and measured["class_token"]
  return (
    bool(re.search(r"gamma_1|attn\.q_bias|attn\.q_proj|fc1_g", names))
    or no_positions
    or (measured["pre_norm"] and (not measured["final_norm"] or pooled_prefix))
  )


def _usual(measured, may_rotate) -> dict[str, Any]:
  """Returns the usual options of models of these sizes."""
  options: dict[str, Any] = {"num_heads": None}
  if may_rotate:
    options["rope"] = None
  for size in vit.VARIANTS.values():
    if all(size[k] == measured.get(k) for k in ("width", "depth", "mlp_dim")):
      options["num_heads"] = size["num_heads"]
  if measured["pre_norm"]:  # CLIP, in timm too.
    options["norm_eps"] = 1e-5
  return options


def _with_labels(source: Ingredient, table: foreign.SourceTable):
  """Returns the config with the classes of the outputs.

  An adapter with a head of its own does not have the classes of its base.
  """
  config, path = table.said.config, table.said.path
  if source.base is None or path is None:
    return config
  return source.configs.get(path.name, config)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns the names of the outputs, None if they are only numbered."""
  names = config.get("id2label") or config.get("label_names")
  if isinstance(names, dict):
    try:
      numbered = {int(k): name for k, name in names.items()}
    except ValueError:
      return None
    # Unnamed outputs between named ones get names, too.
    count = max(numbered, default=-1) + 1
    if count > _MOST_CLASSES or min(numbered, default=0) < 0:
      return None
    names = [numbered.get(k, f"LABEL_{k}") for k in range(count)]
  if not isinstance(names, list) or not names:
    return None
  if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
    return None
  return tuple(map(str, names))
