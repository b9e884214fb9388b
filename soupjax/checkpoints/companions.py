# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files beside the weights: configs that describe the model, and tokenizers."""

from collections.abc import Iterable, Sequence
import functools
import json
import os
import pathlib
from typing import Any

from soupjax import buckets, files
from soupjax.soups.core.ingredient import Ingredient

# Configs of transformers, timm and OpenCLIP.
_MODEL = ("config.json", "open_clip_config.json")
CONFIGS = (
  *_MODEL,
  "preprocessor_config.json",
  "processor_config.json",
  "generation_config.json",
)
# Files of tokenizers, which a soup needs unchanged.
_OTHERS = (
  *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
  *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
  *("tokenizer.model", "spiece.model", "chat_template.jinja"),
)
NAMES = (*CONFIGS, *_OTHERS)


def file_beside(path: str | None, name: str) -> pathlib.Path | None:
  """Returns a file in the directory of a checkpoint, None if it is absent.

  Raises:
    ValueError: if it is not a regular file.
  """
  if not path:
    return None
  directory = _as_path(path)
  file = (directory if directory.is_dir() else directory.parent) / name
  if not file.exists():
    return None
  if not buckets.is_remote(file):
    files.check_regular(file)
  return file


def _as_path(path: str):
  return files.path_of(path) if buckets.is_remote(path) else pathlib.Path(path)


def home(ingredient: Ingredient) -> str | None:
  """Returns the path of the checkpoint that a model's config files are beside.

  An adapter has the files of its base, unless its own folder has the config of
  a model.
  """
  while ingredient.base is not None and not any(
    file_beside(ingredient.path, name) for name in _MODEL
  ):
    ingredient = ingredient.base
  return ingredient.path


def read(path: str) -> dict[str, dict[str, Any]]:
  """Reads the config files beside a checkpoint.

  Args:
    path: of the checkpoint.

  Returns:
    File name -> content. Files of the same name that other programs wrote, such
    as the `config.json` of a fine-tuning run, are left out.

  Raises:
    ValueError: if a file is not valid JSON.
  """
  contents = {}
  for name in CONFIGS:
    file = file_beside(path, name)
    content = files.read_json(file) if file else None
    if isinstance(content, dict) and (name not in _MODEL or _is_model(content)):
      contents[name] = content
  return contents


def sidecar(path: str, name: str) -> dict[str, Any]:
  """Returns the JSON object in a file of a checkpoint directory, {} if absent.

  For a directory called `params`, the file may also be in its parent.

  Raises:
    ValueError: if the file is not valid JSON or not an object.
  """
  file = _as_path(path) / name
  if file.parent.name == "params" and not file.exists():
    file = file.parent.with_name(name)
  value = files.read_json(file) if file.exists() else {}
  if not isinstance(value, dict):
    raise ValueError(f"{file} must hold a JSON object, got {value!r:.80}.")
  return value


def _is_model(config) -> bool:
  keys = {"model_type", "architectures", "architecture", "model_cfg"}
  # diffusers writes `_class_name`.
  return bool({*keys, "_class_name"} & set(config))


def recorded_config(path: str | None) -> dict[str, Any]:
  """Returns the config of the soupjax run that wrote a checkpoint, or {}."""
  if not path:
    return {}
  for directory in list(files.path_of(path).parents)[:3]:
    if os.fspath(directory).endswith("://"):  # Above the bucket.
      break
    record = directory / "config.json"
    config = files.read_json(record) if record.is_file() else None
    if isinstance(config, dict) and config.get("task") in ("finetune", "cook"):
      return config
  return {}


def beside(path: str | None) -> list[pathlib.Path]:
  """Returns the files beside a checkpoint to copy beside its soup."""
  candidates = (file_beside(path, name) for name in NAMES)
  return [file for file in candidates if file]


def check_vocabularies(
  ingredients: Sequence[Ingredient], shapes: Iterable[tuple[int, ...]]
) -> None:
  """Checks that a row of embeddings means the same token in all models.

  Args:
    ingredients: the models to average.
    shapes: shapes of the leaves that are averaged. If none has an axis as long
      as the vocabulary, the order of the tokens does not matter.

  Raises:
    ValueError: naming a token that has different indices in two models.
  """
  longest = max((n for shape in shapes for n in shape), default=0)
  first, *others = ingredients
  for name in ("tokenizer.json", "vocab.json", "vocab.txt"):
    file = file_beside(home(first), name)
    if file is None:
      continue
    numbers = functools.cache(functools.partial(_vocabulary, file))
    for other in others:
      second = file_beside(home(other), name)
      if second is None or second.read_bytes() == file.read_bytes():
        continue
      a, b = numbers(), _vocabulary(second)
      token = next((t for t in a if t in b and a[t] != b[t]), None)
      if token is None or max(a.values()) >= longest:
        continue
      raise ValueError(
        f"{first.name!r} and {other.name!r} have different vocabularies: token "
        f"{token!r} is {a[token]} in {file}, and {b[token]} in {second}. "
        "Averaged embeddings would mix up tokens: put the rows of the "
        "embeddings in one order, take them from one model (select=), or "
        "correct the file that is wrong."
      )


def _vocabulary(file: pathlib.Path) -> dict[str, int]:
  """Returns token -> index; {} if the file has another structure."""
  if file.suffix == ".txt":
    text = file.read_text(encoding="utf-8", errors="replace")
    return {token: k for k, token in enumerate(text.split("\n"))}
  tokens = files.read_json(file)
  if isinstance(tokens, dict) and isinstance(tokens.get("model"), dict):
    tokens = tokens["model"].get("vocab")
  if isinstance(tokens, list):  # Pairs of token and score.
    pairs = [pair for pair in tokens if isinstance(pair, list) and pair]
    tokens = {str(pair[0]): k for k, pair in enumerate(pairs)}
  if not isinstance(tokens, dict):
    return {}
  return {t: number for t, number in tokens.items() if type(number) is int}


def has_own_directory(path: str) -> bool:
  """Whether a file's directory has, or will have, no other checkpoints.

  Configs are only written into such a directory: elsewhere they would describe
  the other checkpoints, too.
  """
  folder, name = os.path.split(path)
  try:
    entries = os.listdir(folder)
  except FileNotFoundError:
    return True
  except OSError:
    return False
  return all(
    entry == name or entry in NAMES or entry.startswith(".")
    for entry in entries
  )


def different(
  sources: Sequence[pathlib.Path], folder: str, model: Ingredient
) -> list[str]:
  """Returns paths in a directory whose content differs from what `copy` writes.

  Args:
    sources: as for `copy`.
    folder: as for `copy`.
    model: as for `copy`.
  """
  pairs = [(source, pathlib.Path(folder, source.name)) for source in sources]
  return [
    str(target)
    for source, target in pairs
    if target.exists() and target.read_bytes() != _content(source, model)
  ]


def copy(
  sources: Sequence[pathlib.Path],
  folder: str | os.PathLike,
  model: Ingredient,
) -> None:
  """Copies files into a directory, each whole or not at all.

  Args:
    sources: the files, which replace those of the same names.
    folder: the directory.
    model: the ingredient that they are beside. If its configs differ from the
      files, as for adapters with a new head, its configs are written instead.
  """
  for source in sources:
    with files.replacing(files.path_of(folder) / source.name) as f:
      f.write(_content(source, model))


def _content(source: pathlib.Path, model: Ingredient) -> bytes:
  config = model.configs.get(source.name)
  if config is None or model.base is None or config == files.read_json(source):
    return source.read_bytes()
  return (json.dumps(config, indent=2) + "\n").encode()
