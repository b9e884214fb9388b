# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of the config files that lie beside the weights of ingredients.

Equal shapes do not mean equal models: the order of the classes, the number of
attention heads and the activation are in `config.json`.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import re
from typing import Any
import warnings

# Keys, at any depth, that change the result of a forward pass with the same
# weights. They are those of transformers, timm and OpenCLIP.
_DECISIVE = re.compile(
  r"architectures?|model_type|(.*_)?num_(attention_)?heads|n_heads?|heads|"
  r"head_(width|dim)|num_key_value_heads|(.*_)?act(ivation)?(_layer|_fn|"
  r"_function)?|.*quick_gelu|(.*_)?eps|.*epsilon|norm_layer|.*rope_.*|.*rope|"
  r"position_embedding_type|(.*_)?pool(ing)?(_type|er_type|_mode)?|"
  r"use_mean_pooling|(.*_)?patch_size|(.*_)?qk_norm|tie_word_embeddings|"
  r"attn_scale|.*sliding_window|.*logit_softcapping|pre_norm|class_token|"
  r"num_prefix_tokens|reg_tokens|interpolate_mode|timm_(model_name|pool|proj)"
)
# Keys of training, of bookkeeping, and those of labels, which are compared
# separately.
_IRRELEVANT = re.compile(
  r"_.*|transformers_version|(torch_)?dtype|.*drop(out|_path|_rate)?(_.*)?|"
  r"initializer_.*|use_cache|problem_type|finetuning_task|output_.*|"
  r"return_dict|gradient_checkpointing|auto_map|id2label|label2id|num_labels|"
  r"num_classes|label_names|label_descriptions|url|file|hf_hub_.*|tag|license|"
  r"origin_url|source|paper_.*|notes|custom_load|tokenizer_class|"
  r"image_processor_type|feature_extractor_type|processor_class"
)


def labels(configs: Mapping[str, Any]) -> list[str] | None:
  """Returns the names of the outputs in order, None if no config has them.

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

  Warns of differences whose meaning is unknown.

  Args:
    ingredients: each an `Ingredient`, to average.
    leaves: those that are averaged. The order of the classes does not matter if
      none of them has an axis of that length.
    base: may be another class of the same architecture.

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
      if _DECISIVE.fullmatch(name):
        raise ValueError(
          f"{message} With equal shapes these are different models, whose "
          "weights cannot be averaged. If one of the files is wrong, correct "
          "or remove it."
        )
      doubtful.setdefault(f"{file} {key}", message)
  for message in doubtful.values():
    warnings.warn(message, stacklevel=4)


def _check_labels(first, other, leaves) -> None:
  """Raises a ValueError if a head is averaged whose classes differ."""
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
  """Yields (file, dotted key, a's value, b's value) where both differ."""
  for file in a:
    left, right = _flat(a[file]), _flat(b.get(file, {}))
    for key in left:
      ignored = any(map(_IRRELEVANT.fullmatch, key.split(".")))
      if key in right and not ignored and left[key] != right[key]:
        yield file, key, left[key], right[key]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns the values of nested dicts by their dotted keys."""
  flat: dict[str, Any] = {}
  for key, item in value.items():
    if isinstance(item, dict):
      flat |= _flat(item, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = item
  return flat
