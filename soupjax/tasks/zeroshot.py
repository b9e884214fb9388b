# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot heads, computed with the text tower of a checkpoint."""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from soupjax.checkpoints import companions
from soupjax.checkpoints import open as open_lib
from soupjax.data.folders import displaced
from soupjax.models import clip, pretrained, tokens, zeroshot
from soupjax.models import text as text_lib
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient


def default_config() -> ml_collections.ConfigDict:
  """Returns the settings of zero-shot heads."""
  c = ml_collections.ConfigDict()
  # Class names in the order of the outputs: separated by "|", in a file with
  # one per line, or "open_clip:imagenet". If empty, the dataset's names or, if
  # these are missing or numbers, the names in a config beside the weights.
  c.names = ""
  # Prompts with {} in place of the class name: separated by "|", in a file with
  # one per line, or "open_clip:openai" (80 prompts).
  c.templates = "a photo of a {}."
  # Path with a vocabulary beside it, for recipes that train a text tower; empty
  # for the vocabulary beside `init.path`.
  c.vocabulary = ""
  return c


def cooking_config() -> ml_collections.ConfigDict:
  """Returns the settings of zero-shot heads in cooking."""
  c = default_config()
  # A CLIP with the start's text tower, for test sets with their own class
  # names. CLIPs with both towers that have no config or vocabulary beside them
  # use its files.
  c.text = ""
  c.skip = ""  # Regular expression of its leaves to leave out.
  return c


def parse_names(text: str, what: str = "zeroshot.names") -> list[str]:
  """Returns the class names of a setting, without checking them."""
  if "|" in text:
    return text.split("|")
  return zeroshot.read_list(text, what)


def parse_templates(text: str) -> list[str]:
  """Returns the prompts of a setting, without checking them."""
  if "{}" in text:
    return text.split("|")
  return zeroshot.read_list(text, "zeroshot.templates")


def check(config: ml_collections.ConfigDict) -> None:
  """Checks `zeroshot.names`, if given, and `zeroshot.templates`.

  Raises:
    ValueError: if a file is missing, or an entry cannot be used.
  """
  if names := config.names:
    where = "zeroshot.names" + ("" if "|" in names else f"={names!r}")
    zeroshot.check_names(parse_names(names), where=where)
  templates = config.templates
  where = "zeroshot.templates" + (
    "" if "{}" in templates else f"={templates!r}"
  )
  zeroshot.check_templates(parse_templates(templates), where)


def names_of(
  config: ml_collections.ConfigDict,
  num_classes: int,
  dataset: str,
  dataset_names: Sequence[str] | None,
  checkpoint_names: Sequence[str] | None,
) -> list[str]:
  """Returns the names of the classes, in the order of the outputs.

  Args:
    config: with `names`, as in `default_config`.
    num_classes: number of outputs.
    dataset: name of the dataset, for errors.
    dataset_names: names of its classes; None if unknown.
    checkpoint_names: names of the checkpoint's outputs; None if unknown.

  Raises:
    ValueError: if there is not one usable name per class, or the names have
      another order than those of the dataset.
  """
  where = f"zeroshot.names={config.names!r:.60}"
  if config.names:
    names = parse_names(config.names)
  else:
    where, names = f"{dataset} (zeroshot.names is empty)", dataset_names or ()
    words = names and not any(zeroshot.is_number(str(name)) for name in names)
    if not words and checkpoint_names:
      where, names = "the config beside the checkpoint", checkpoint_names
    if not names:
      raise ValueError(
        f"The classes of {dataset} have no names: set zeroshot.names to a "
        f"file with {num_classes} lines."
      )
  zeroshot.check_names(names, num_classes, where, of=dataset)
  check_order(names, dataset_names, where, dataset)
  return list(names)


def check_order(
  names: Sequence[str],
  dataset_names: Sequence[str] | None,
  where: str,
  dataset: str,
) -> None:
  """Checks that names are not a dataset's class names in a different order.

  Args:
    names: class names, in the order of the outputs.
    dataset_names: names of the dataset's classes; None if unknown.
    where: origin of the names, for errors.
    dataset: name of the dataset, for errors.

  Raises:
    ValueError: if they are. The message names a class with the wrong index.
  """
  if places := displaced(names, dataset_names):
    k, at = places
    raise ValueError(
      f"{where}: {names[k]!r} has index {k}, but is class {at} of {dataset}: "
      "give names in the order of its classes, which begins with "
      f"{', '.join(map(repr, dataset_names[:3]))}."
    )


def head(
  source: str | Ingredient,
  names: Sequence[str],
  templates: str,
  skip: Sequence[str] = (),
  prefix: str = "",
) -> tuple[np.ndarray, dict[str, Any]]:
  """Computes a head with a checkpoint's text tower; reads no image tower.

  Args:
    source: a checkpoint of a CLIP with both towers, or its path.
    names: names of the classes.
    templates: as in `default_config`.
    skip: regular expressions of leaves of the file to leave out.
    prefix: prefix of the model's leaf names, if the file has several models.

  Returns:
    The kernel (embedding size, classes), and a record: the names, templates,
    vocabulary, and a hash of the text tower, logit scale and prompt tokens.

  Raises:
    ValueError: if there is no text tower, or its vocabulary is missing.
  """
  model, params, tokenizer, templates = _opened(source, templates, skip, prefix)
  kernel = zeroshot.zeroshot_head(model, params, names, templates, tokenizer)
  prompts = zeroshot.prompt_tokens(model, tokenizer, names, templates)
  record = _record(names, templates, tokenizer)
  return kernel, record | {"hash": zeroshot.head_hash(model, params, prompts)}


def context(
  source: str,
  names: Sequence[str],
  templates: str,
  skip: Sequence[str] = (),
  prefix: str = "",
) -> np.ndarray:
  """Computes the weights of contexts; see `models.zeroshot.context_kernel`.

  Args:
    source: as for `head`.
    names: names of the classes.
    templates: as for `head`.
    skip: as for `head`.
    prefix: as for `head`.

  Returns:
    (embedding size, templates) float32.

  Raises:
    ValueError: as for `head`.
  """
  model, params, tokenizer, templates = _opened(source, templates, skip, prefix)
  tokens = zeroshot.prompt_tokens(model, tokenizer, names, templates)
  return zeroshot.context_kernel(model, params, tokens)


def prompts(
  path: str,
  model: clip.CLIP,
  names: Sequence[str],
  config: ml_collections.ConfigDict,
) -> tuple[np.ndarray, dict[str, Any]]:
  """Tokenizes the prompts of classes, to train a text tower on them.

  Args:
    path: checkpoint of the start, whose vocabulary is used by default.
    model: the CLIP whose text tower is trained.
    names: names of the classes.
    config: as in `default_config`.

  Returns:
    (classes, templates, tokens) int32, and a record of the names, templates and
    vocabulary.

  Raises:
    ValueError: if the vocabulary is missing or does not fit the text tower.
  """
  tokenizer = _tokenizer(path, model, config)
  templates = parse_templates(config.templates)
  values = zeroshot.prompt_tokens(model, tokenizer, names, templates)
  return values, _record(names, templates, tokenizer)


def captions(
  path: str,
  model: clip.CLIP,
  texts: Sequence[str],
  config: ml_collections.ConfigDict,
) -> np.ndarray:
  """Tokenizes captions in the same way as `prompts`.

  Args:
    path: as for `prompts`.
    model: as for `prompts`.
    texts: distinct captions.
    config: as in `default_config`.

  Returns:
    (captions, 1, tokens) int32.

  Raises:
    ValueError: as for `prompts`.
  """
  tokenizer = _tokenizer(path, model, config)
  return zeroshot.prompt_tokens(model, tokenizer, texts, ["{}"])


def _tokenizer(path: str, model: clip.CLIP, config) -> tokens.Tokenizer:
  beside = config.vocabulary
  if not beside and path:
    beside = companions.home(open_lib.open_ingredient(path)) or ""
  tower = text_lib.Text(**model.text)
  tokenizer = tokens.open_tokenizer(
    beside, context_length=tower.context_length, vocab_size=tower.vocab_size
  )
  zeroshot.check_tokenizer(model, tokenizer)
  return tokenizer


def _record(names, templates, tokenizer) -> dict[str, Any]:
  return {
    "names": list(names),
    "templates": list(templates),
    "vocabulary": tokenizer.source.name,
  }


def _opened(source, templates: str, skip, prefix: str):
  """Returns a model, parameters of its text tower, tokenizer and templates."""
  if not isinstance(source, Ingredient):
    source = open_lib.open_ingredient(source)
  part = {"skip": skip, "prefix": prefix}
  detected = pretrained.detect(source, **part, text=True)
  model = clip.CLIP(**detected.options)
  if model.text["num_heads"] is None:
    raise ValueError(
      f"The number of attention heads of the text tower of {source.path} is "
      "unknown: put its config beside the weights."
    )
  adapted = pretrained.as_ingredient(source, model, **part)
  specs = {k: v for k, v in adapted.specs.items() if not k.startswith("img/")}
  leaves, treedef = tree.nest({leaf: adapted.read(leaf) for leaf in specs})
  params = jax.tree.unflatten(treedef, list(leaves.values()))
  tokenizer = tokens.open_tokenizer(
    companions.home(source) or "",
    context_length=model.text["context_length"],
    vocab_size=model.text["vocab_size"],
  )
  return model, params, tokenizer, parse_templates(templates)
