# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of the config files beside the weights of ingredients.

Equal shapes do not mean equal models: the order of the classes, the number of
attention heads and the activation are recorded only in `config.json`.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import re
from typing import Any
import warnings

# Keys, at any depth, that change the result of a forward pass with the same
# weights, as named by transformers, timm and OpenCLIP.
_DECISIVE = re.compile(
  r"architectures?|model_type|(.*_)?num_(attention_)?heads|n_heads?|heads|"
  r"head_(width|dim)|num_key_value_heads|(.*_)?act(ivation)?(_layer|_fn|"
  r"_function)?|.*quick_gelu|(.*_)?eps|.*epsilon|norm_layer|.*rope_.*|.*rope|"
  r"position_embedding_type|(.*_)?pool(ing)?(_type|er_type|_mode)?|"
  r"use_mean_pooling|(.*_)?patch_size|(.*_)?qk_norm|tie_word_embeddings|"
  r"attn_scale|.*sliding_window|.*logit_softcapping|pre_norm|class_token|"
  r"num_prefix_tokens|reg_tokens|interpolate_mode|timm_(model_name|pool|proj)"
)
# Keys for training and bookkeeping, and for labels, which are compared
# separately.
_IRRELEVANT = re.compile(
  r"_.*|transformers_version|(torch_)?dtype|.*drop(out|_path|_rate)?(_.*)?|"
  r"initializer_.*|use_cache|problem_type|finetuning_task|output_.*|"
  r"return_dict|gradient_checkpointing|auto_map|id2label|label2id|num_labels|"
  r"num_classes|label_names|label_descriptions|url|file|hf_hub_.*|tag|license|"
  r"origin_url|source|paper_.*|notes|custom_load|tokenizer_class|"
  r"task_specific_params|image_processor_type|feature_extractor_type|processor_class"
)


class _Absent:
  """The value of a key that a config lacks."""

  def __bool__(self) -> bool:
    return False

  def __repr__(self) -> str:
    return "nothing"


_ABSENT = _Absent()


def labels(configs: Mapping[str, Any]) -> list[str] | None:
  """Returns the names of the outputs in order; None if no config has them.

  Args:
    configs: file name -> content, as `Ingredient.configs`.
  """
  for config in configs.values():
    names = config.get("id2label") or config.get("label_names")
    if not names and isinstance(config.get("label2id"), dict):
      names = {number: name for name, number in config["label2id"].items()}
    if isinstance(names, dict):
      try:
        names = [names[key] for key in sorted(names, key=int)]
      except (TypeError, ValueError):
        continue
    numbered = r"LABEL_\d+"  # What transformers writes for unnamed classes.
    if isinstance(names, list) and not all(
      re.fullmatch(numbered, str(name)) for name in names
    ):
      return list(map(str, names))
  return None


def check_configs(
  ingredients: Sequence[Any],
  leaves: Set[str],
  base: Any = None,
) -> None:
  """Compares the configs of all ingredients with those of the first.

  Warns of other differences, which may not matter.

  Args:
    ingredients: the models to average, each an `Ingredient`.
    leaves: names of the averaged leaves. The order of the classes matters only
      if one of them has an axis as long as the number of classes.
    base: the base model, whose "architectures" may differ.

  Raises:
    ValueError: if two differ in the order of their classes, or in a setting
      that changes the result of a forward pass.
  """
  known = [i for i in ingredients if i.configs]
  if not known:
    return
  first, others = known[0], known[1:]
  doubtful: dict[str, str] = {}
  for other in [*others, *([base] if base is not None else [])]:
    if other.configs == first.configs:
      continue
    _check_labels(first, other, leaves)
    for file, key, a, b in _differences(first.configs, other.configs):
      name = key.rpartition(".")[2]
      if other is base and name in ("architecture", "architectures"):
        continue
      message = (
        f"{first.name!r} and {other.name!r} differ in {key} of the {file} "
        f"beside them: {a!r:.80} and {b!r:.80}."
      )
      is_flag = (a is True or b is True) and _ABSENT in (a, b)
      if _DECISIVE.fullmatch(name) and (is_flag or _ABSENT not in (a, b)):
        raise ValueError(
          f"{message} Despite equal shapes, these are different models, whose "
          "weights cannot be averaged. If one of the files is wrong, correct "
          "or remove it."
        )
      doubtful.setdefault(f"{file} {key}", message)
  for message in doubtful.values():
    warnings.warn(message, stacklevel=4)


def _check_labels(first, other, leaves) -> None:
  """Raises a ValueError if heads with different classes are averaged."""
  a, b = labels(first.configs), labels(other.configs)
  if a is None or b is None or a == b:
    return
  specs = first.specs
  lengths = {n for leaf in leaves & specs.keys() for n in specs[leaf].shape}
  if not lengths & {len(a), len(b)}:
    return
  output = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), None)
  if output is None:
    difference = f"{len(a)} and {len(b)} classes"
  else:
    difference = f"output {output} is {a[output]!r} and {b[output]!r}"
  raise ValueError(
    f"{first.name!r} and {other.name!r} have different classes in the config "
    f"files beside them: {difference}. Averaged heads would mix them up: put "
    "the rows of the heads in one order, leave the heads out (select=), or "
    "correct the file that is wrong."
  )


def _differences(
  a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
  """Yields (file, dotted key, value, value) for every difference.

  A key that one file lacks counts only in files of OpenCLIP, which omit
  defaults. Other files lack keys when other versions of a program wrote them.
  """
  for file in (file for file in a if file in b):
    has_defaults = file == "open_clip_config.json"
    for key, x, y in _pairs(_of_version_4(a[file]), _of_version_4(b[file])):
      both = _ABSENT not in (x, y)
      name = key.rpartition(".")[2]
      if both or (has_defaults and _DECISIVE.fullmatch(name) and (x or y)):
        yield file, key, x, y


def _pairs(a, b, prefix="") -> Iterator[tuple[str, Any, Any]]:
  """Yields dotted key and values of entries that differ in nested dicts."""
  for key in [*a, *(key for key in b if key not in a)]:
    x, y = a.get(key, _ABSENT), b.get(key, _ABSENT)
    if _IRRELEVANT.fullmatch(key) or x == y:
      continue
    parts = [{} if v in (None, _ABSENT) else v for v in (x, y)]
    are_dicts = [isinstance(part, dict) for part in parts]
    if not all(are_dicts):
      # Image sizes are numbers in some versions, and dicts in others.
      if not any(are_dicts) or _DECISIVE.fullmatch(key):
        yield prefix + key, x, y
    elif _DECISIVE.fullmatch(key) and not all(parts):
      if any(parts):
        yield prefix + key, x, y
    else:
      yield from _pairs(*parts, f"{prefix}{key}.")


def _of_version_4(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config with the keys that transformers had before version 5.

  Version 5 keeps "rope_theta" and "rope_scaling" together in "rope_parameters".
  """
  config = {
    key: _of_version_4(value) if isinstance(value, dict) else value
    for key, value in config.items()
  }
  rope = config.get("rope_parameters")
  if isinstance(rope, dict) and "rope_theta" in rope:
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
  scaling = config.get("rope_scaling")
  if isinstance(scaling, dict):
    kind = scaling.pop("type", None)
    scaling.setdefault("rope_type", kind)
    if scaling["rope_type"] in (None, "default"):
      config["rope_scaling"] = None
  return config
