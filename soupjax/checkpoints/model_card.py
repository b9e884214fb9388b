# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Folders for the Hugging Face hub: file names, model card, dtype in configs.

A folder has the weights and configs under the names that a library looks for,
and a model card: `README.md`, whose first lines are YAML.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any
import zlib

import jax

from soupjax import files
from soupjax.soups.core import tree
from soupjax.version import __version__

NAME = "README.md"
# Key of a config -> library, name of the weights file, code that loads it.
_LIBRARIES = {
  "model_cfg": (
    "open_clip",
    "open_clip_model.safetensors",
    'open_clip.create_model_from_pretrained("hf-hub:USER/NAME")',
  ),
  "architecture": (
    "timm",
    "model.safetensors",
    'timm.create_model("hf-hub:USER/NAME", pretrained=True)',
  ),
  "_class_name": ("diffusers", "diffusion_pytorch_model.safetensors", ""),
  "model_type": (
    "transformers",
    "model.safetensors",
    'transformers.{0}.from_pretrained("USER/NAME")',
  ),
  "architectures": ("transformers", "model.safetensors", ""),
}
_DTYPE_KEYS = ("dtype", "torch_dtype")
_SEAL = "<!-- soupjax {:08x} -->\n"


def _library(configs: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, str]:
  """Returns library, weights file and loading code, or three empty strings."""
  for key, (library, weights, code) in _LIBRARIES.items():
    for config in configs.values():
      if key in config:
        classes = config.get("architectures")
        known = isinstance(classes, list) and len(classes) == 1
        return (
          library,
          weights,
          code.format(classes[0] if known else "AutoModel"),
        )
  return "", "", ""


def is_known(configs: Mapping[str, Mapping[str, Any]]) -> bool:
  """Whether a config belongs to a library that loads folders of the hub."""
  return bool(_library(configs)[0])


def weights_name(
  configs: Mapping[str, Mapping[str, Any]], where: str, sharded: bool = False
) -> str:
  """Returns the name under which a library looks for the weights.

  Args:
    configs: file name -> content, as `Ingredient.configs`.
    where: name of the ingredient that has these configs, for errors.
    sharded: whether the weights are in several files.

  Raises:
    ValueError: if no config names a library, or the library does not read
      shards.
  """
  library, weights, _ = _library(configs)
  if not library:
    raise ValueError(
      f"There is no config.json or open_clip_config.json of a model beside "
      f"{where!r}, and no library loads a folder of the hub without one. Put "
      "one there, or choose format='safetensors'."
    )
  if sharded and library != "transformers":
    raise ValueError(
      f"{library} does not read shards from the hub: leave shard_bytes= out."
    )
  return weights


def text(
  title: str,
  configs: Mapping[str, Mapping[str, Any]],
  recipe: Mapping[str, Any],
  ingredients: Sequence[Mapping[str, Any]],
  scores: Sequence[Mapping[str, Any]] = (),
) -> str:
  """Returns a model card as text.

  Args:
    title: name of the model.
    configs: file name -> content, as `Ingredient.configs`.
    recipe: setting -> value; empty values are left out.
    ingredients: one row each, column -> value. A column may be missing.
    scores: rows of the same form, for the soup and models to compare it with.
  """
  library, _, code = _library(configs)
  parts = [
    f"---\nlibrary_name: {library}\ntags:\n- model-soup\n- merge\n- soupjax\n"
    f"---\n\n# {_cell(title)}\n\nA model soup: weights of {len(ingredients)} "
    f"fine-tuned models, merged by soupjax {__version__}.\n"
  ]
  if code:
    parts.append(f"```python\n{code}\n```\n")
  rows = [
    {"setting": key, "value": value}
    for key, value in recipe.items()
    if value not in (None, "", {}, [])
  ]
  for heading, table in (
    ("Recipe", rows),
    ("Ingredients", ingredients),
    ("Scores", scores),
  ):
    if table:
      parts.append(f"## {heading}\n\n{_table(table)}")
  card = "\n".join(parts) + "\n"
  return card + _SEAL.format(zlib.crc32(card.encode()))


def of_mix(title: str, provenance: Mapping[str, Any], sources) -> str:
  """Returns the model card of a mix.

  Args:
    title: name of the model.
    provenance: the complete record.
    sources: the ingredients, in the order of the record.
  """
  rows = [
    {"name": entry["name"], "content hash": entry["content_hash"]}
    | {k: v for k, v in source.metrics.items() if type(v) in (int, float)}
    for entry, source in zip(provenance["ingredients"], sources)
  ]
  recipe = {key: provenance[key] for key in ("rule", "settings", "select")}
  base = provenance["base"]
  if base is not None:
    recipe["base"] = f"{base['name']} (content hash {base['content_hash']})"
  recipe |= provenance["dtype_policy"]
  return text(title, sources[0].configs, recipe, rows)


def is_unchanged(path: pathlib.Path) -> bool:
  """Whether a file is a model card that nobody has edited."""
  try:
    card = path.read_text("utf-8")
  except (OSError, ValueError):
    return False
  body = card[: -len(_SEAL.format(0))]
  return card == body + _SEAL.format(zlib.crc32(body.encode()))


def write(
  folder: str | pathlib.Path,
  card: str,
  specs: Mapping[str, jax.ShapeDtypeStruct] | None = None,
) -> None:
  """Writes a model card, and the dtype of the weights into `config.json`.

  transformers converts weights to the dtype in the config, so a config copied
  from the ingredients would round a soup of another dtype.

  Args:
    folder: the directory with the weights and configs.
    card: the result of `text`.
    specs: leaf -> shape and dtype of the weights; None changes no config.
  """
  place = files.path_of(folder)
  files.write_text(place / NAME, card)
  dtypes = {str(s.dtype) for s in (specs or {}).values() if tree.is_float(s)}
  file = place / "config.json"
  config = files.read_json(file) if len(dtypes) == 1 and file.exists() else {}
  wrong = [k for k in _DTYPE_KEYS if config.get(k) not in (None, *dtypes)]
  if wrong:
    files.write_json(file, config | dict.fromkeys(wrong, *dtypes))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
  columns = list(dict.fromkeys(key for row in rows for key in row))
  lines = [columns, ["---"] * len(columns)]
  lines += [[row.get(key, "") for key in columns] for row in rows]
  return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: Any) -> str:
  """Returns a value as the text of a Markdown table cell."""
  if type(value) is float:
    value = f"{value:.6g}"
  elif not isinstance(value, str):
    value = json.dumps(value, default=str)
  value = value.encode("utf-8", "replace").decode()
  for character in "\\|<`":
    value = value.replace(character, f"\\{character}")
  return " ".join(value.split())
