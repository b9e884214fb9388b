# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads another library's config beside the weights.

Such a file determines the forward pass. Each of its keys is obeyed, known to
leave outputs in inference unchanged, or refused by name. An architecture that
is not in the tables is refused too, even if all leaves fit.
"""

from collections.abc import Collection, Mapping
import dataclasses
import pathlib
import re
from typing import Any, NamedTuple

from soupjax import files
from soupjax.checkpoints.companions import file_beside
from soupjax.models.pretrained import architectures, timm_models

# Names of activations in configs -> names in `layers.ACTIVATIONS`.
ACTS = {
  "gelu": "gelu_exact",
  "gelu_python": "gelu_exact",
  "gelu_pytorch_tanh": "gelu",
  "gelu_new": "gelu",
  "gelu_fast": "gelu",
  "gelu_tanh": "gelu",
  "quick_gelu": "quick_gelu",
  "quickgelu": "quick_gelu",
  "silu": "silu",
  "swish": "silu",
}
_TIMM_POOLS = {"token": "tok", "avg": "gap", "map": "map"}
_OPENCLIP_POOLS = {"tok": "tok", "avg": "gap", "none": "none"}
_NAMES = ("config.json", "open_clip_config.json")


@dataclasses.dataclass(frozen=True)
class Said:
  """The computation that a config beside the weights describes.

  Attributes:
    options: options of `models.ViT`; {} without a config.
    image_size: (height, width) in pixels that the weights were trained with.
    class_position: whether the class token has a position embedding; None if
      the config does not tell.
    heads_of: the width for which `num_heads` holds, if it follows only from the
      architecture's name; at another width the number of heads is unknown.
    config: contents of the file, {} without one.
    path: path of the file.
  """

  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  class_position: bool | None = None
  heads_of: int | None = None
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  path: pathlib.Path | None = None


def read(path: str, family: str | None) -> Said:
  """Reads the config beside a checkpoint.

  Args:
    path: path of the checkpoint, "" if it is not in a file.
    family: family of the leaves, a key of `mappings.FAMILIES`; None for any.

  Returns:
    Options of our ViT and sizes; empty if no file is a config of a known
    library.

  Raises:
    ValueError: if the config belongs to another library than the weights or to
      an unknown architecture, or has a key or value that is not supported.
  """
  configs = []
  for name in _NAMES:
    file = file_beside(path, name)
    config = files.read_json(file) if file else None
    # Configs of other programs, and ours, can have the same file name.
    if isinstance(config, dict) and (library := _library(config)):
      configs.append((library, config, file))
  fitting = [
    c for c in configs if family is None or family in _families(c[0], c[1])
  ]
  if configs and not fitting:
    library, config, file = configs[0]
    raise ValueError(
      f"{file} is a config of {_described(library, config)}, but the weights "
      f"beside it have the names of {family!r}: move it if it belongs to other "
      "weights."
    )
  if not fitting:
    return Said()
  library, config, file = fitting[-1]  # OpenCLIP's, if it has a timm trunk.
  said = _READERS[library](config, _Reader(file))
  return dataclasses.replace(said, config=config, path=file)


def _library(config: Mapping[str, Any]) -> str | None:
  if "model_cfg" in config:
    return "OpenCLIP"
  if "architecture" in config:
    return "timm"
  if "model_type" in config or "architectures" in config:
    return "transformers"
  return None


def _families(library, config) -> Collection[str]:
  if library == "timm":
    return timm_models.families(config["architecture"])
  if library == "OpenCLIP":
    model = config["model_cfg"]
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    trunk = isinstance(vision, dict) and vision.get("timm_model_name")
    return ("timm",) if trunk else ("openclip",)
  model = architectures.transformers_model(config)
  # An unknown model is refused by its name, whatever its leaves look like.
  return (model.family,) if model else architectures.TRANSFORMERS_FAMILIES


def _described(library, config) -> str:
  for key in ("model_type", "architecture"):
    if key in config:
      return f"{library} ({key} {config[key]!r})"
  return library


class Keys(NamedTuple):
  """The keys of one kind of config.

  Attributes:
    obeyed: key -> (option, function that converts the value).
    only: key -> values that our ViT supports.
    free: regular expression of keys that do not change outputs in inference, or
      whose values can be inferred from the leaves.
  """

  obeyed: Mapping[str, tuple[str, Any]]
  only: Mapping[str, tuple[Any, ...]]
  free: str


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads the values of a config, with errors that name file and key."""

  path: pathlib.Path
  section: str = ""

  def at(self, section: str) -> "_Reader":
    return _Reader(self.path, f"{section}.")

  def refuse(self, key: str, value: Any, reason: str) -> ValueError:
    return ValueError(f"{self.path} has {self.section}{key}={value!r}{reason}")

  def mapping(self, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns a nested config, {} if it is absent."""
    value = config.get(key)
    if value is None:
      return {}
    if not isinstance(value, dict):
      raise self.refuse(key, value, ", which should be a mapping.")
    return value

  def options(self, config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Converts the keys that are obeyed; refuses unknown ones that are set."""
    options = {}
    for key, value in config.items():
      if key in keys.obeyed:
        option, convert = keys.obeyed[key]
        if value is not None:
          options[option] = convert(self, key, value)
      elif key in keys.only:
        if value is not None and value not in keys.only[key]:
          raise self.refuse(
            key,
            value,
            f", but our ViT only supports {keys.only[key][0]!r}.",
          )
      elif value and not re.fullmatch(keys.free, key):
        raise self.refuse(
          key,
          value,
          ", a key that soupjax does not know: remove it from the file if it "
          "does not change the outputs.",
        )
    return options


# --- Values -------------------------------------------------------------------


def _count(reader, key, value) -> int:
  # The side of a square may be given as a pair.
  sides = value if isinstance(value, list) else [value]
  for side in sides:
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
      raise reader.refuse(key, value, ", which should be a positive integer.")
  if len(set(sides)) != 1:
    raise reader.refuse(key, value, ", which should be a positive integer.")
  return sides[0]


def _number(reader, key, value) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise reader.refuse(key, value, ", which should be a number.")
  return value


def _pair(reader, key, value) -> tuple[int, int]:
  if isinstance(value, list) and len(value) == 2:
    height, width = (_count(reader, key, v) for v in value)
    return height, width
  side = _count(reader, key, value)
  return side, side


def _epsilon(reader, key, value) -> float:
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not number or not 0 <= value < 1:
    raise reader.refuse(key, value, ", which should be in [0, 1).")
  return float(value)


def _flag(reader, key, value) -> bool:
  if not isinstance(value, bool):
    raise reader.refuse(key, value, ", which should be true or false.")
  return value


def _choice(choices, what):
  def convert(reader, key, value):
    if not isinstance(value, str) or value not in choices:
      reason = f": our ViT has no such {what}, only {', '.join(choices)}."
      raise reader.refuse(key, value, reason)
    return choices[value]

  return convert


_act = _choice(ACTS, "activation")

# --- transformers -------------------------------------------------------------

_TRANSFORMERS = Keys(
  obeyed={
    "hidden_size": ("width", _count),
    "num_hidden_layers": ("depth", _count),
    "intermediate_size": ("mlp_dim", _count),
    "num_attention_heads": ("num_heads", _count),
    "patch_size": ("patch_size", _count),
    "layer_norm_eps": ("norm_eps", _epsilon),
    "hidden_act": ("act", _act),
    "image_size": ("image_size", _pair),
    "num_register_tokens": ("registers", _number),
    "use_swiglu_ffn": ("gated", _flag),
    "use_gated_mlp": ("gated", _flag),
  },
  only={
    "qkv_bias": (True,),
    "vision_use_head": (True,),
    "proj_bias": (True,),
    "mlp_bias": (True,),
    "rope_theta": (100.0,),
  },
  free=architectures.TRANSFORMERS_FREE,
)


def _of_transformers(config: Mapping[str, Any], reader: _Reader) -> Said:
  model = architectures.transformers_model(config)
  if model is None:
    names = [config.get("model_type"), *architectures.class_names(config)]
    raise ValueError(
      f"{reader.path} is a config of {' '.join(str(n) for n in names if n)!r}, "
      "which is not known to soupjax. It supports "
      f"{', '.join(architectures.transformers_names())}."
    )
  options = dict(model.defaults)
  if "vision_config" in config or "vision_config_dict" in config:
    reader.options(config, _TRANSFORMERS)
    vision = {
      # The second overrides the first, as in transformers.
      **reader.mapping(config, "vision_config"),
      **reader.mapping(config, "vision_config_dict"),
    }
    options |= reader.at("vision_config").options(vision, _TRANSFORMERS)
  else:
    options |= reader.options(config, _TRANSFORMERS)
  if config.get("use_swiglu_ffn"):  # SwiGLU ignores hidden_act.
    options["act"] = "silu"
  if model.family.startswith("hf_dinov2"):  # DINOv2 ignores intermediate_size.
    options.pop("mlp_dim", None)
  for name in architectures.class_names(config):
    options |= model.architectures[name]
  size = options.pop("image_size", None)
  return Said(options, size)


# --- timm ---------------------------------------------------------------------

_timm_pool = _choice(_TIMM_POOLS, "global_pool")
_TIMM_ARGS = Keys(
  obeyed={
    "embed_dim": ("width", _count),
    "depth": ("depth", _count),
    "num_heads": ("num_heads", _count),
    "patch_size": ("patch_size", _count),
    "img_size": ("image_size", _pair),
    "global_pool": ("pool_type", _timm_pool),
    "act_layer": ("act", _act),
    "norm_layer": ("norm_eps", _choice(timm_models.NORMS, "norm_layer")),
    "class_token": ("has_cls", _flag),
    "pre_norm": ("pre_norm", _flag),
    "fc_norm": ("fc_norm", _flag),
    "no_embed_class": ("no_embed_class", _flag),
    "pool_include_prefix": ("pool_prefix", _flag),
    "use_post_norm": ("post_norm", _flag),
    "attn_pool_num_heads": ("pool_heads", _count),
    "reg_tokens": ("registers", _number),
    "num_reg_tokens": ("registers", _number),
    "init_values": ("layer_scale", _number),
    "qk_norm": ("qk_norm", _flag),
    "scale_attn_norm": ("attention_norm", _flag),
    "scale_attn_inner": ("attention_norm", _flag),
    "scale_mlp_norm": ("mlp_norm", _flag),
    "scale_mlp": ("mlp_norm", _flag),
    "swiglu_mlp": ("gated", _flag),
    "final_norm": ("final_norm", _flag),
  },
  only={"proj_bias": (True,)},
  free=timm_models.FREE_ARGS,
)
_TIMM = Keys(
  obeyed={"global_pool": ("pool_type", _timm_pool)},
  # transformers saves timm's models with additional keys.
  only={"model_type": ("timm_wrapper",), "do_pooling": (True,)},
  free=f"{timm_models.FREE}|{architectures.TRANSFORMERS_FREE}",
)


# Arguments of timm's models other than ViTs.
_FREE_ARGS = "num_classes|in_chans|.*drop_rate|drop_path_rate|zero_init_last"
_OTHER_ARGS = {
  "timm_mixer": Keys(
    obeyed={
      "embed_dim": ("width", _count),
      "num_blocks": ("depth", _count),
      "patch_size": ("patch_size", _count),
      "img_size": ("image_size", _pair),
      "act_layer": ("act", _act),
    },
    only={"global_pool": ("avg",), "stem_norm": (False,)},
    free=f"{_FREE_ARGS}|nlhb|mlp_ratio",
  ),
  "timm_bit": Keys(
    obeyed={},
    only={"global_pool": ("avg",), "output_stride": (32,)},
    free=f"{_FREE_ARGS}|layers|channels|width_factor|stem_chs",
  ),
}
_OTHER = Keys(
  obeyed={},
  only={**_TIMM.only, "global_pool": ("avg",)},
  free=_TIMM.free,
)


def _of_other_timm(config, family: str, reader: _Reader) -> Said:
  """Reads the config of a Mixer or a ResNet of timm."""
  model_args = reader.mapping(config, "model_args")
  options = dict(timm_models.OTHER_OPTIONS[family])
  options |= reader.at("model_args").options(model_args, _OTHER_ARGS[family])
  reader.options(config, _OTHER)
  size = options.pop("image_size", None)
  if family == "timm_bit":  # Any image size fits: take that of training.
    sides = reader.mapping(config, "pretrained_cfg").get("input_size")
    if isinstance(sides, list) and len(sides) == 3 and sides[1] == sides[2]:
      size = _pair(reader.at("pretrained_cfg"), "input_size", sides[1:])
  return Said(options, size)


def _of_timm(config: Mapping[str, Any], reader: _Reader) -> Said:
  [family, *unknown] = timm_models.families(config["architecture"])
  if family in _OTHER_ARGS and not unknown:
    return _of_other_timm(config, family, reader)
  options = _timm_architecture(reader, "architecture", config["architecture"])
  model_args = reader.mapping(config, "model_args")
  given = reader.at("model_args").options(model_args, _TIMM_ARGS)
  outer = reader.options(config, _TIMM)
  for option in outer.keys() & given.keys():
    if outer[option] != given[option]:
      raise reader.refuse(
        "global_pool",
        config["global_pool"],
        f" and model_args.global_pool={model_args['global_pool']!r}: correct "
        "the one that is wrong.",
      )
  return _timm_said(options, {**given, **outer})


def _timm_said(named: dict[str, Any], given: dict[str, Any]) -> Said:
  """Merges the options of an architecture with those that a config gives."""
  sized = {"width", "num_heads"} & set(given)
  heads_of = None if sized else named["width"]
  options = {**named, **given}
  if "width" not in given:
    del options["width"]
  size = options.pop("image_size", None)
  class_position = not options.pop("no_embed_class")
  return Said(options, size, class_position, heads_of)


def _timm_architecture(reader: _Reader, key: str, name: Any) -> dict[str, Any]:
  options = timm_models.options(name) if isinstance(name, str) else None
  if options is None:
    raise reader.refuse(
      key,
      name,
      ", an architecture that is not known to soupjax. It supports "
      f"{timm_models.ABOUT}.",
    )
  return options


# --- OpenCLIP -----------------------------------------------------------------


def _only_key(name: str, convert: Any):
  """Returns a converter of a mapping that has a single key."""

  def get(reader, key, value):
    if not isinstance(value, dict) or set(value) - {name}:
      raise reader.refuse(
        key, value, f", of which our ViT supports only the key {name!r}."
      )
    return convert(reader, key, value[name]) if value else None

  return get


_OPENCLIP = Keys(
  obeyed={"quick_gelu": ("quick_gelu", _flag), "embed_dim": ("dim", _count)},
  only={},
  free="vision_cfg|text_cfg|multimodal_cfg|custom_text|output_dict|cast_dtype|"
  "init_logit_scale|init_logit_bias|nonscalar_logit_scale",
)
_VISION = Keys(
  obeyed={
    "width": ("width", _count),
    "layers": ("depth", _count),
    "head_width": ("head_width", _count),
    "patch_size": ("patch_size", _count),
    "image_size": ("image_size", _pair),
    "pool_type": ("pool_type", _choice(_OPENCLIP_POOLS, "pool_type")),
    "final_ln_after_pool": ("fc_norm", _flag),
    "no_ln_pre": ("no_ln_pre", _flag),
    "norm_kwargs": ("norm_eps", _only_key("eps", _epsilon)),
    "act_kwargs": (
      "approximate",
      _only_key(
        "approximate",
        _choice({"none": "gelu_exact", "tanh": "gelu"}, "approximation"),
      ),
    ),
  },
  only={
    "pos_embed_type": ("learnable", "sin_cos_2d"),  # Both are stored.
    "block_type": ("default",),
  },
  free="mlp_ratio|patch_dropout|attn_pooler_(queries|heads)|output_tokens|"
  "timm_.*",
)
_TRUNK = Keys(
  obeyed={"image_size": ("image_size", _pair)},
  only={
    "timm_proj": ("linear", "none", ""),
    "timm_proj_bias": (False,),
  },
  # OpenCLIP ignores the sizes of its own tower if the trunk is timm's.
  free="timm_(model_name|pool|model_pretrained|drop|drop_path)|patch_dropout|"
  "layers|width|head_width|mlp_ratio|patch_size|output_tokens",
)


def _of_openclip(config: Mapping[str, Any], reader: _Reader) -> Said:
  model = reader.mapping(config, "model_cfg")
  reader = reader.at("model_cfg")
  given = reader.options(model, _OPENCLIP)
  vision = reader.mapping(model, "vision_cfg")
  reader = reader.at("model_cfg.vision_cfg")
  if vision.get("timm_model_name"):
    return _of_trunk(vision, reader)
  options = {**architectures.OPENCLIP_DEFAULTS}
  options |= reader.options(vision, _VISION)
  size = options.pop("image_size", None)
  options["num_heads"] = options["width"] // options.pop("head_width")
  options["pre_norm"] = not options.pop("no_ln_pre")
  approximate = options.pop("approximate", None)
  quick = given.get("quick_gelu", False)
  if quick and approximate:
    raise reader.refuse(
      "act_kwargs", vision["act_kwargs"], ", which quick_gelu does not accept."
    )
  options["act"] = "quick_gelu" if quick else approximate or "gelu_exact"
  # The norm of a single token is the same before and after its selection.
  if options["pool_type"] != "gap":
    options["fc_norm"] = False
  if "dim" in given:
    options["proj_size"] = given["dim"]
  return Said({k: v for k, v in options.items() if v is not None}, size)


def _of_trunk(vision: Mapping[str, Any], reader: _Reader) -> Said:
  key = "timm_model_name"
  options = _timm_architecture(reader, key, vision[key])
  given = reader.options(vision, _TRUNK)
  pool = vision.get("timm_pool", "avg")
  if pool:
    given["pool_type"] = _timm_pool(reader, "timm_pool", pool)
  elif not vision.get("timm_proj", "linear"):
    raise reader.refuse("timm_pool", pool, ", but no projection.")
  return _timm_said(options, given)


_READERS = {
  "transformers": _of_transformers,
  "timm": _of_timm,
  "OpenCLIP": _of_openclip,
}
