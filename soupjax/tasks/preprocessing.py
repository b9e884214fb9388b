# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the preprocessing of a checkpoint from the files beside it.

Reads `preprocessor_config.json` and `processor_config.json` of transformers,
timm's `config.json`, OpenCLIP's `open_clip_config.json`, and the `config.json`
of soupjax runs. A value that changes pixels in a way that soupjax cannot follow
is an error.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import pathlib
import re
from typing import Any

import numpy as np

from soupjax import files
from soupjax.checkpoints import companions
from soupjax.data import image_ops
from soupjax.data.preprocess import Preprocess
from soupjax.models import pretrained

# Pillow's numbers, which transformers writes; the other libraries write names.
_METHODS = {
  **{0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"},
  **{4: "box", 5: "hamming"},
}
_CLIP = image_ops.STATISTICS["clip"]
_IMAGENET = image_ops.STATISTICS["imagenet"]
_HALF = (0.5,) * 3, (0.5,) * 3


def of_files(path: str, family: str | None = None) -> str | None:
  """Returns the evaluation operations that files beside a checkpoint describe.

  Args:
    path: path of the checkpoint.
    family: the checkpoint's family, a key of `mappings.FAMILIES`. If a folder
      has files of several libraries, that of the family is used.

  Returns:
    Operations for `data.Preprocess`; None if there are no such files.

  Raises:
    ValueError: if a file has a value that soupjax cannot follow, or two files
      contradict each other.
  """
  described = {}
  for name, read in _READERS.items():
    file = pretrained.file_beside(path, name)
    content = files.read_json(file) if file else None
    if isinstance(content, dict):
      ops = read(_Values(file, content))
      if ops is not None:
        described[file] = ops
  if not described:
    return None
  first = _of_family(described, family)
  for file, ops in described.items():
    # timm's default crop is smaller than that in a CLIP's files beside it.
    timm = "config.json" in (first.name, file.name)
    if _comparable(ops, timm) != _comparable(described[first], timm):
      raise ValueError(
        f"{first} and {file} describe different preprocessing, "
        f"{described[first]} and {ops}: correct or remove one of them."
      )
  return described[first]


def _of_family(described: Mapping[pathlib.Path, str], family) -> pathlib.Path:
  names = {"timm": "config.json", "openclip": "open_clip_config.json"}
  for file in described:
    if file.name == names.get(family or ""):
      return file
  return next(iter(described))


def _comparable(ops: str, values_alone: bool) -> str:
  """Returns operations in a form that can be compared between libraries."""
  if values_alone:
    ops = ops.rpartition("|")[2]
  return re.sub(r', like="\w+"', "", ops)


def recorded(path: str) -> str | None:
  """Returns `data.eval_ops` of the run that wrote a checkpoint, or None."""
  data = companions.recorded_config(path).get("data", {})
  values = {"image_size": data.get("image_size"), **data.get("augment", {})}
  try:
    return data.get("eval_ops", "").format(**values) or None
  except (KeyError, IndexError, ValueError):
    return None


def check_values(ops: str, described: str, where: str) -> None:
  """Checks that operations scale pixels as a checkpoint expects.

  Resizing and cropping may differ, for instance between resolutions.

  Args:
    ops: the operations of evaluation.
    described: the operations that the checkpoint was trained with.
    where: path of the checkpoint, for errors.

  Raises:
    ValueError: if the values of black or white pixels differ.
  """
  given, expected = Preprocess(ops).values, Preprocess(described).values
  if not given.close_to(expected):
    raise ValueError(
      f"data.eval_ops={ops!r} gives pixels in {given}, but according to the "
      f"files beside {where} it was trained with pixels in {expected}: end the "
      f"operations with {described.rpartition('|')[2]}, or correct or remove "
      "these files."
    )


class _Values:
  """The values in a file, with errors that name the file and the key."""

  def __init__(
    self, file: pathlib.Path, values: Mapping[str, Any], of: str = ""
  ):
    self.file, self.values, self._of = file, values, of

  def part(self, key: str) -> "_Values":
    """Returns the values of a nested dict, which are empty if it is absent."""
    value = self.values.get(key)
    if value is None:
      value = {}
    if not isinstance(value, dict):
      raise self.error(key, "must be a dict")
    return _Values(self.file, value, f"{self._of}{key}.")

  def get(self, key: str, default: Any = None) -> Any:
    """Returns a value; null means absent."""
    value = self.values.get(key)
    return default if value is None else value

  def error(self, key: str, why: str) -> ValueError:
    """Returns an error for a value; `why` completes "which ..."."""
    return ValueError(
      f"{self.file} has {self._of}{key}={self.values.get(key)!r}, which {why}. "
      "Correct the file, or remove it and describe the preprocessing in "
      "data.eval_ops."
    )

  def method(self, key: str, default: str) -> str:
    """Returns the name of a resizing method."""
    value = self.get(key, default)
    name = _METHODS.get(value, value) if isinstance(value, int) else value
    if name not in _METHODS.values():
      raise self.error(key, f"is not one of {', '.join(_METHODS.values())}")
    return name

  def sides(self, key: str, default: Any = None) -> tuple[int, int] | None:
    """Returns (height, width) from a number, a pair or a dict."""
    value = self.get(key, default)
    if isinstance(value, dict):
      value = [value.get("height"), value.get("width")]
    if isinstance(value, (int, float)):
      value = [value, value]
    if value is None or (value == [None, None] and key in self.values):
      return None
    if (
      not isinstance(value, (list, tuple))
      or len(value) != 2
      or not all(isinstance(v, (int, float)) and v >= 1 for v in value)
      or any(v != int(v) for v in value)
    ):
      raise self.error(key, "is not a height and a width in pixels")
    return int(value[0]), int(value[1])

  def number(self, key: str, default: float) -> float:
    """Returns a number, which must be finite and above 0."""
    value = self.get(key, default)
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
      raise self.error(key, "is not a number above 0")
    return float(value)

  def channels(self, key: str, default: Sequence[float]) -> tuple[float, ...]:
    """Returns one number for each of the three channels."""
    value = self.get(key, default)
    if isinstance(value, (int, float)):
      value = [value]
    if isinstance(value, (list, tuple)) and len(value) == 1:
      value = [*value] * 3
    if (
      not isinstance(value, (list, tuple))
      or len(value) != 3
      or not all(isinstance(v, (int, float)) for v in value)
      or not np.isfinite(value).all()
      or ("std" in key and min(value) <= 0)
    ):
      raise self.error(key, "is not a number for each of three channels")
    return tuple(map(float, value))


def _text(sides: tuple[int, int]) -> str:
  return str(sides[0] if sides[0] == sides[1] else sides)


def _normalize(mean, deviation, scale: float = 1.0) -> str:
  """Returns the operation (x * scale / 255 - mean) / deviation."""
  if math.isclose(scale, 1, rel_tol=1e-9):
    scale = 1.0
    for name, known in image_ops.STATISTICS.items():
      if np.allclose([mean, deviation], known, rtol=1e-9, atol=0):
        return f'standardize("{name}")'
  if len(set(mean)) == len(set(deviation)) == 1:
    low, high = (0 - mean[0]) / deviation[0], (scale - mean[0]) / deviation[0]
    return f"value_range({low:.9g}, {high:.9g})"
  parts = [tuple(v / scale for v in values) for values in (mean, deviation)]
  return f"standardize({parts[0]}, {parts[1]})"


# --- transformers -------------------------------------------------------------

_ON = {"do_resize": True, "do_rescale": True, "do_normalize": True}
_CROPPED = {**_ON, "do_center_crop": True, "crop_size": 224}
_OF_HALF = dict(zip(("image_mean", "image_std"), _HALF))
_OF_CLIP = dict(zip(("image_mean", "image_std"), _CLIP))
_OF_IMAGENET = dict(zip(("image_mean", "image_std"), _IMAGENET))
_SHORTEST = {**_CROPPED, "size": {"shortest_edge": 224}, "resample": 3}
# Image processors that resize, crop, rescale and normalize -> their defaults.
# With "shortest", a number as size is the shorter side, not that of a square.
_PROCESSORS: dict[str, dict[str, Any]] = {
  "ViT": {**_ON, **_OF_HALF, "size": 224},
  "DeiT": {**_CROPPED, **_OF_HALF, "size": 256, "resample": 3},
  "Beit": {**_CROPPED, **_OF_HALF, "size": 256, "resample": 3},
  "CLIP": {**_SHORTEST, **_OF_CLIP, "shortest": True},
  "ChineseCLIP": {**_SHORTEST, **_OF_CLIP, "shortest": True},
  "Bit": {**_SHORTEST, **_OF_CLIP, "shortest": True},
  "Siglip": {**_ON, **_OF_HALF, "size": 224, "resample": 3},
  "Blip": {**_ON, **_OF_CLIP, "size": 384, "resample": 3},
  "Pvt": {**_ON, **_OF_IMAGENET, "size": 224},
  "MobileNetV1": {
    **_CROPPED, **_OF_HALF, "size": {"shortest_edge": 256}, "shortest": True,
  },
}  # fmt: skip
# model_type of config.json -> image processor, for files that do not name it.
_OF_MODELS = {
  **{"vit": "ViT", "vit_mae": "ViT", "ijepa": "ViT", "vit_msn": "ViT"},
  **{"deit": "DeiT", "beit": "Beit", "data2vec-vision": "Beit"},
  **{
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "chinese_clip": "ChineseCLIP",
  },
  **{"dinov2": "Bit", "dinov2_with_registers": "Bit"},
  **{"siglip": "Siglip", "siglip_vision_model": "Siglip"},
}
_KNOWN = (
  *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
  *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
# Keys that do not change the pixels of RGB images. Other unknown keys might,
# unless they are null or false.
_WITHOUT_EFFECT = re.compile(
  "image_processor_type|feature_extractor_type|processor_class|auto_map|_.*|"
  "do_convert_rgb|data_format|input_data_format|return_tensors|device|"
  "disable_grouping|default_to_square|do_reduce_labels|reduce_labels|"
  "image_seq_len(gth)?|num_channels"
)


def _of_preprocessor(c: _Values) -> str | None:
  if "image_processor" in c.values:  # Saved like a processor_config.json.
    return _of_processor(c)
  return _of_transformers(c)


def _of_processor(c: _Values) -> str | None:
  """Reads the image part of the config of a processor of images and texts."""
  part = c.part("image_processor")
  return _of_transformers(part) if part.values else None


def _of_transformers(c: _Values) -> str | None:
  defaults = _defaults(c)
  off = {"do_resize": False, "do_center_crop": False, "do_normalize": False}
  on = {**off, "do_rescale": True, **defaults}
  for key, value in c.values.items():
    harmless = value is None or value is False or _WITHOUT_EFFECT.fullmatch(key)
    if key not in _KNOWN and not harmless:
      raise c.error(key, "changes images in a way that soupjax cannot follow")
  parts = []
  if c.get("do_resize", on["do_resize"]):
    parts.append(_resize_of(c, on))
  if c.get("do_center_crop", on["do_center_crop"]):
    sides = c.sides("crop_size", on.get("crop_size"))
    if sides is None:
      raise c.error("crop_size", "is not a height and a width in pixels")
    parts.append(f'central_crop({_text(sides)}, like="transformers")')
  scale = 1.0
  if not c.get("do_rescale", on["do_rescale"]):
    scale = 255.0
  elif c.values.get("rescale_factor") is not None:
    scale = 255 * c.number("rescale_factor", 1 / 255)
    if math.isclose(scale, 1, rel_tol=1e-5):  # Written with few digits.
      scale = 1.0
  mean, deviation = (0.0,) * 3, (1.0,) * 3
  if c.get("do_normalize", on["do_normalize"]):
    mean = c.channels("image_mean", on.get("image_mean", ()))
    deviation = c.channels("image_std", on.get("image_std", ()))
  return "|".join([*parts, _normalize(mean, deviation, scale)])


def _defaults(c: _Values) -> Mapping[str, Any]:
  """Returns the defaults of the file's image processor; {} if unknown."""
  for key in ("image_processor_type", "feature_extractor_type"):
    kind = c.get(key)
    if kind is None:
      continue
    base = re.sub(
      r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(kind)
    )
    if base not in _PROCESSORS:
      raise c.error(key, f"is not one of {', '.join(_PROCESSORS)}")
    return _PROCESSORS[base]
  beside = c.file.with_name("config.json")
  config = files.read_json(beside) if beside.is_file() else {}
  kind = config.get("model_type") if isinstance(config, dict) else None
  return _PROCESSORS.get(_OF_MODELS.get(kind, ""), {})


def _resize_of(c: _Values, defaults: Mapping[str, Any]) -> str:
  """Returns the operation that resizes."""
  size = c.get("size", defaults.get("size"))
  method = c.method("resample", _METHODS[defaults.get("resample", 2)])
  shortest = None
  if isinstance(size, dict):
    if unknown := set(size) - {"height", "width", "shortest_edge"}:
      raise c.error("size", f"has {', '.join(sorted(map(str, unknown)))}")
    shortest = size.get("shortest_edge")
  elif isinstance(size, int):
    if "size" not in defaults and c.get("do_center_crop"):
      raise c.error(
        "size",
        "is a square or the shorter side, depending on image_processor_type, "
        "which is missing",
      )
    if not c.get("default_to_square", not defaults.get("shortest")):
      shortest = size
  if shortest is not None:
    if not isinstance(shortest, int) or shortest < 1:
      raise c.error("size", "is not a size in pixels")
    return f'resize_small({shortest}, "{method}")'
  sides = c.sides("size", defaults.get("size"))
  if sides is None or (isinstance(size, (list, tuple)) and len(set(sides)) > 1):
    raise c.error("size", "is not a height and a width in pixels")
  return f'resize({_text(sides)}, "{method}")'


# --- timm ---------------------------------------------------------------------


def _of_timm(c: _Values) -> str | None:
  if "architecture" not in c.values:
    return None
  # Before timm 0.9, all keys were in one dict.
  cfg = c.part("pretrained_cfg") if "pretrained_cfg" in c.values else c
  keys = ("input_size", "mean", "std")
  if not set(keys) & set(cfg.values):
    return None
  for key in keys:
    if cfg.get(key) is None:
      raise cfg.error(key, "makes timm use defaults of the architecture")
  size = cfg.get("input_size")
  if not isinstance(size, (list, tuple)) or len(size) != 3 or size[0] != 3:
    raise cfg.error("input_size", "is not (3, height, width)")
  sides = _Values(c.file, {"input_size": list(size[1:])}).sides("input_size")
  mean, deviation = cfg.channels("mean", ()), cfg.channels("std", ())
  method = cfg.method("interpolation", "bicubic")
  crop = cfg.number("crop_pct", 0.875)
  larger = (math.floor(sides[0] / crop), math.floor(sides[1] / crop))
  mode, fill = cfg.get("crop_mode", "center"), ""
  if mode == "squash":
    resize = f'resize({_text(larger)}, "{method}")'
    if larger == sides:
      return f"{resize}|{_normalize(mean, deviation)}"
  elif mode == "border":
    resize = f'resize_ratio({_text(larger)}, "{method}", longest=True)'
    fill = f", fill={tuple(round(255 * value) for value in mean)}"
  elif mode != "center":
    raise cfg.error("crop_mode", "is not one of center, squash, border")
  elif larger[0] == larger[1]:
    resize = f'resize_small({larger[0]}, "{method}")'
  else:
    resize = f'resize_ratio({larger}, "{method}")'
  crop = f"central_crop({_text(sides)}{fill})"
  return f"{resize}|{crop}|{_normalize(mean, deviation)}"


# --- OpenCLIP -----------------------------------------------------------------


def _of_openclip(c: _Values) -> str | None:
  if "model_cfg" not in c.values and "preprocess_cfg" not in c.values:
    return None
  cfg, vision = c.part("preprocess_cfg"), c.part("model_cfg").part("vision_cfg")
  sides = vision.sides("image_size") or cfg.sides("size", 224)
  mean = cfg.channels("mean", _CLIP[0])
  deviation = cfg.channels("std", _CLIP[1])
  if cfg.get("mode", "RGB") != "RGB":
    raise cfg.error("mode", "is not RGB")
  method = cfg.get("interpolation", "bicubic")
  if method not in ("bicubic", "bilinear", "random"):
    raise cfg.error("interpolation", "is neither bicubic nor bilinear")
  method = "bicubic" if method == "random" else method  # As in its evaluation.
  mode, fill = cfg.get("resize_mode", "shortest"), cfg.get("fill_color", 0)
  crop = [f"central_crop({_text(sides)})"]
  if mode == "squash":
    resize, crop = f'resize({_text(sides)}, "{method}")', []
  elif mode == "longest":
    if not isinstance(fill, int) or not 0 <= fill <= 255:
      raise cfg.error("fill_color", "is not in 0..255")
    resize = f'resize_ratio({_text(sides)}, "{method}", longest=True)'
    crop = [f"central_crop({_text(sides)}, fill={fill})"] if fill else crop
  elif mode != "shortest":
    raise cfg.error("resize_mode", "is not one of shortest, longest, squash")
  elif sides[0] == sides[1]:
    resize = f'resize_small({sides[0]}, "{method}")'
  else:
    resize = f'resize_ratio({sides}, "bicubic")'  # OpenCLIP ignores the method.
  return "|".join([resize, *crop, _normalize(mean, deviation)])


_READERS: Mapping[str, Callable[[_Values], str | None]] = {
  "preprocessor_config.json": _of_preprocessor,
  "processor_config.json": _of_processor,
  "open_clip_config.json": _of_openclip,
  "config.json": _of_timm,
}
