# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PEFT's `adapter_config.json`: scales, ranks and unsupported settings."""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import os
import pathlib
import re
from typing import Any

from soupjax import files
from soupjax.checkpoints.formats import byte_ranges

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Initialisations that leave the base unchanged. The others (PiSSA, OLoRA,
# CorDA, LoftQ, LoRA-GA) change it, so their adapters do not fit the original
# base.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
# Options that change how an adapter computes -> reason to refuse them.
_REFUSED = {
  "alora_invocation_tokens": "it acts on some tokens only",
  "arrow_config": "it mixes several adapters depending on the input",
  "kasa_config": "it changes the base weights",
  "layer_replication": "it repeats layers of the base",
  "megatron_config": "its layers are split over machines",
  "monteclora_config": "it samples its weights",
  "target_parameters": "it adapts parameters that are not weights of layers",
  "trainable_token_indices": "it adapts single rows of an embedding",
  "use_bdlora": "its factors are block-diagonal",
  "use_qalora": "it pools the inputs of its layers",
}
_KNOWN_USES = {"use_dora", "use_rslora"}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """The settings of an adapter.

  Attributes:
    path: path of `adapter_config.json`.
    content: its JSON object.
  """

  path: str
  content: Mapping[str, Any]

  @property
  def kind(self) -> str:
    """Returns "LORA" or "IA3"."""
    return str(self.content["peft_type"])

  @property
  def base_name(self) -> str:
    """Returns the recorded path or name of the base, "" if there is none."""
    return str(self.content.get("base_model_name_or_path") or "")

  @property
  def fan_in_fan_out(self) -> bool:
    """Whether weights have the inputs as their first axis."""
    return bool(self.content.get("fan_in_fan_out"))

  @property
  def is_dora(self) -> bool:
    """Whether the norms of rows are trained as well (arXiv 2402.09353)."""
    return bool(self.content.get("use_dora"))

  def rank(self, module: str) -> int:
    """Returns the rank of the factors of a module."""
    return int(self._number("rank_pattern", "r", module))

  def scale(self, module: str) -> float:
    """Returns the number that multiplies the product of the factors."""
    rank = self.rank(module)
    alpha = self._number("alpha_pattern", "lora_alpha", module)
    # rsLoRA (arXiv 2312.03732) divides by the square root of the rank.
    return alpha / (math.sqrt(rank) if self.content.get("use_rslora") else rank)

  def _number(self, patterns: str, default: str, module: str) -> float:
    value = self.content.get(default)
    for pattern, number in (self.content.get(patterns) or {}).items():
      if re.match(rf"(.*\.)?({pattern})$", module):
        value = number
        break
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(
        f"{self.path}: {default} must be a number, got {value!r:.80}."
      )
    if not math.isfinite(value) or (default == "r" and value < 1):
      raise ValueError(f"{self.path}: {default} is {value}.")
    return value

  def scales_inputs(self, module: str) -> bool:
    """Whether the vector of IA3 scales the inputs of a module."""
    names = self.content.get("feedforward_modules") or ()
    if isinstance(names, str):
      return re.fullmatch(names, module) is not None
    return _is_listed(module, names)

  def saves(self, module: str) -> bool:
    """Whether a module is trained and saved whole."""
    parts = module.split(".")
    parents = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    names = self.content.get("modules_to_save") or ()
    return any(_is_listed(parent, names) for parent in parents)


def _is_listed(module: str, names: Iterable[str]) -> bool:
  return any(module == name or module.endswith(f".{name}") for name in names)


def is_adapter(path: str | os.PathLike) -> bool:
  """Whether a local path is the folder or the weights of a PEFT adapter."""
  path = os.fspath(path)
  if byte_ranges.is_remote(path):
    return False
  place = pathlib.Path(path)
  if place.name in WEIGHTS:
    return place.with_name(CONFIG).exists()
  return place.is_dir() and (place / CONFIG).exists()


def refuse_without_base(path: str) -> None:
  """Rejects the folder of an adapter where a model is expected.

  Raises:
    ValueError: if it is one, naming the ways to give a base.
  """
  if is_adapter(path):
    raise ValueError(
      f"{path} is an adapter saved by PEFT, which is a model only with its "
      "base: sj.open_adapter(path, base), sj.find_ingredients(pattern, "
      "base=...), or --config.base."
    )


def read(folder: pathlib.Path) -> AdapterConfig:
  """Reads and checks the config in the folder of an adapter.

  Raises:
    ValueError: if it is missing, or its method is not supported.
  """
  path = folder / CONFIG
  if not path.exists():
    raise ValueError(
      f"{folder} has no {CONFIG}, which holds the scale of the adapter "
      "(lora_alpha): copy it from where the adapter was saved."
    )
  content = files.read_json(path)
  if not isinstance(content, dict) or "peft_type" not in content:
    raise ValueError(f"{path} has no peft_type: it is not a config of PEFT.")
  _check(str(path), content)
  return AdapterConfig(str(path), content)


def _check(path: str, content: Mapping[str, Any]) -> None:
  merge = "merge it in PEFT (merge_and_unload) and open the merged model"
  kind = content["peft_type"]
  if kind not in ("LORA", "IA3"):
    raise ValueError(
      f"{path} has peft_type={kind!r}, but only LORA (with DoRA and rsLoRA) "
      f"and IA3 are supported: {merge}."
    )
  init = content.get("init_lora_weights")
  if init not in _INITS:
    raise ValueError(
      f"{path} has init_lora_weights={init!r}, which also changes the base "
      "weights: save the adapter with path_initial_model_for_weight_conversion "
      f"in PEFT, or {merge}."
    )
  for key, value in content.items():
    unknown = key.startswith("use_") and key not in _KNOWN_USES
    if value and (key in _REFUSED or unknown):
      reason = _REFUSED.get(key, "soupjax does not know it")
      raise ValueError(f"{path} has {key}={value!r:.80} ({reason}): {merge}.")
