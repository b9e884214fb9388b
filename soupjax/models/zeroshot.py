# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot heads: weights from class names (arXiv 2103.00020, 3.1)."""

import collections
from collections.abc import Mapping, Sequence
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from soupjax import files
from soupjax.models import clip as clip_lib
from soupjax.models import text as text_lib
from soupjax.models import tokens as tokens_lib
from soupjax.progress import Progress
from soupjax.soups.core import tree

PyTree = Any
# Lists that come with OpenCLIP: the names of ImageNet's classes and the prompts
# of OpenAI's CLIP.
OPENCLIP_LISTS = {
  "imagenet": "IMAGENET_CLASSNAMES",
  "openai": "OPENAI_IMAGENET_TEMPLATES",
  "simple": "SIMPLE_IMAGENET_TEMPLATES",
}
# Names that OpenAI's list for ImageNet gives to two classes each.
_IMAGENET_TWICE = {"missile", "sunglasses"}
# The number of tokens per prompt is rounded up to a multiple of this.
_TOKENS = 8


def zeroshot_head(
  model: clip_lib.CLIP,
  params: PyTree,
  names: Sequence[str],
  templates: Sequence[str],
  tokenizer: tokens_lib.Tokenizer,
  *,
  batch_size: int = 512,
  cache: str | os.PathLike | None = None,
) -> np.ndarray:
  """Makes the kernel of a linear head from class names.

  The weights of a class are the mean embedding of its prompts, scaled to length
  1 and multiplied by the logit scale, exp(t), as in OpenCLIP. The head has no
  bias and takes features of length 1.

  Args:
    model: the model.
    params: its parameters; only the text tower and the scale are used.
    names: names of the classes, in the order of the outputs.
    templates: prompts with one `{}` for the name.
    tokenizer: from `tokens.open_tokenizer`.
    batch_size: maximum number of prompts at a time, but at least those of one
      class, which stay together.
    cache: directory of stored heads, by `head_hash`; None for no cache.

  Returns:
    (embedding size, classes) float32.

  Raises:
    ValueError: if names or templates are invalid, or the vocabulary is not that
      of the text tower.
  """
  check_names(names)
  check_templates(templates)
  check_tokenizer(model, tokenizer)
  tokens = prompt_tokens(model, tokenizer, names, templates)
  file = None
  if cache is not None:
    key = head_hash(model, params, tokens)
    file = pathlib.Path(cache) / f"zeroshot_{key}.npz"
    if file.exists():
      with np.load(file, allow_pickle=False) as stored:
        return stored["kernel"]
  kernel = np.asarray(
    kernel_of(model, params, tokens, batch_size=batch_size, progress=True)
  )
  if file is not None:
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_arrays(file, {"kernel": kernel})
  return kernel


def check_tokenizer(
  model: clip_lib.CLIP, tokenizer: tokens_lib.Tokenizer
) -> None:
  """Checks that a tokenizer has the vocabulary of a text tower.

  Raises:
    ValueError: if the number of tokens or the end-of-text token differs.
  """
  tower = text_lib.Text(**model.text)
  if tokenizer.vocab_size != tower.vocab_size:
    raise ValueError(
      f"The vocabulary of {tokenizer.source} has {tokenizer.vocab_size} "
      f"tokens, but the token embedding has {tower.vocab_size} rows: use the "
      "vocabulary of the checkpoint."
    )
  last = tokenizer.vocab_size - 1
  end = {"eos": tower.eos_id, "argmax": last}.get(tower.pool_type)
  if end not in (None, tokenizer.end):
    raise ValueError(
      f"Texts end with token {tokenizer.end} in the vocabulary of "
      f"{tokenizer.source}, but the text tower pools token {end} "
      f"(pool_type={tower.pool_type!r}): use the vocabulary of the checkpoint."
    )


def prompt_tokens(
  model: clip_lib.CLIP,
  tokenizer: tokens_lib.Tokenizer,
  names: Sequence[str],
  templates: Sequence[str],
) -> np.ndarray:
  """Tokenizes the prompts of all classes.

  Returns:
    (classes, templates, tokens) int32. If tokens after the end of a text change
    nothing, there are only as many as the longest prompt needs, rounded up to a
    multiple of 8.
  """
  texts = [
    template.replace("{}", name) for name in names for template in templates
  ]
  tokens = tokenizer(texts)
  pool = model.text.get("pool_type")
  if model.text.get("causal") and pool in text_lib.END_POOLS:
    used = int((tokens == tokenizer.end).argmax(axis=1).max()) + 1
    tokens = tokens[:, : -(-used // _TOKENS) * _TOKENS]
  return tokens.reshape(len(names), len(templates), -1)


def kernel_of(
  model: clip_lib.CLIP,
  params: PyTree,
  tokens: np.ndarray,
  *,
  batch_size: int = 512,
  progress: bool = False,
) -> jax.Array:
  """Makes the kernel from tokens; compiles once per text tower.

  Args:
    model: as for `zeroshot_head`.
    params: as for `zeroshot_head`; may be traced.
    tokens: (classes, templates, tokens), from `prompt_tokens`.
    batch_size: as for `zeroshot_head`.
    progress: whether to print progress.

  Returns:
    (embedding size, classes) float32.
  """
  step = max(1, batch_size // tokens.shape[1])
  step = min(step, len(tokens))
  tower = text_lib.Text(**model.text)
  text = {"txt": params["txt"], "t": params["t"]}
  lines = Progress("zero-shot head", len(tokens), unit="classes")
  columns = []
  for start in range(0, len(tokens), step):
    part = tokens[start : start + step]
    count = len(part)
    # The last batch is padded to reuse the compiled program.
    part = np.pad(part, ((0, step - count), (0, 0), (0, 0)), mode="edge")
    columns.append(_class_embeddings(tower, text, part)[:count])
    if progress:
      lines.step(count)
  return jnp.concatenate(columns).T


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.checkpoint, static_argnums=0)
def _class_embeddings(tower, params, tokens):
  """Embeds (classes, templates, tokens) as (classes, size).

  Gradients recompute it, so only one batch of activations is in memory.
  """
  classes, templates, length = tokens.shape
  flat = tower.apply(
    {"params": params["txt"]}, tokens.reshape(classes * templates, length)
  )
  flat = clip_lib.normalized(flat).reshape(classes, templates, -1)
  mean = clip_lib.normalized(flat.mean(axis=1))
  return jnp.exp(params["t"][0]) * mean


def context_kernel(
  model: clip_lib.CLIP,
  params: PyTree,
  tokens: np.ndarray,
  *,
  batch_size: int = 512,
) -> np.ndarray:
  """Makes one weight vector per template, or context (arXiv 2211.16175).

  The weights of a template are the mean embedding of its prompts over all
  classes, scaled to length 1 and multiplied by the logit scale.

  Args:
    model: as for `zeroshot_head`.
    params: as for `zeroshot_head`.
    tokens: as for `kernel_of`.
    batch_size: as for `zeroshot_head`.

  Returns:
    (embedding size, templates) float32.
  """
  # With the first two axes swapped, templates take the place of classes.
  return np.asarray(
    kernel_of(model, params, tokens.swapaxes(0, 1), batch_size=batch_size)
  )


def head_hash(model: clip_lib.CLIP, params: PyTree, tokens: np.ndarray) -> str:
  """Hashes the text tower, the scale and all prompts, as 16 hex digits."""
  digest = hashlib.sha256(json.dumps(dict(model.text), sort_keys=True).encode())
  leaves, _ = tree.flatten({"txt": params["txt"], "t": params["t"]})
  for leaf, value in [*leaves.items(), ("tokens", tokens)]:
    value = np.ascontiguousarray(value)
    digest.update(f"{leaf}{value.shape}{value.dtype}".encode())
    digest.update(value.data)
  return digest.hexdigest()[:16]


# --- Names and templates ------------------------------------------------------


def read_list(source: str | Sequence[str], what: str) -> list[str]:
  """Reads a list of names or templates.

  Args:
    source: the list itself; a file with one entry per line, a JSON list, or a
      JSON object with the keys "0", "1", ...; or "open_clip:NAME" for a list
      of `OPENCLIP_LISTS`.
    what: name of the setting, for errors.

  Raises:
    ValueError: if there is no such file or list, or if a JSON file holds
      neither a list nor an object with these keys.
  """
  if not isinstance(source, str):
    return list(source)
  if source.startswith("open_clip:"):
    return _openclip_list(source, what)
  if not os.path.isfile(source):
    raise ValueError(
      f"{what}={source!r} is not a file. Give a file with one entry per line "
      "(prompts have {} for the name), or one of "
      f"{', '.join(f'open_clip:{name}' for name in OPENCLIP_LISTS)}."
    )
  if source.endswith(".json"):
    entries = files.read_json(source)
    if isinstance(entries, Mapping):
      # Keys may be sorted as strings: 0, 1, 10, 2.
      numbers = [str(k) for k in range(len(entries))]
      if set(entries) != set(numbers):
        raise ValueError(
          f"{source} ({what}) has the keys {list(entries)[:3]}, which are not "
          "the indices of outputs from 0: give a list."
        )
      entries = [entries[number] for number in numbers]
    if not isinstance(entries, list):
      raise ValueError(f"{source} ({what}) must be a JSON list of strings.")
    return entries
  lines = pathlib.Path(source).read_text(encoding="utf-8").splitlines()
  while lines and not lines[-1].strip():
    lines.pop()
  return lines


def _openclip_list(source: str, what: str) -> list[str]:
  name = source.removeprefix("open_clip:")
  if name not in OPENCLIP_LISTS:
    raise ValueError(
      f"{what}={source!r} is not one of "
      f"{', '.join(f'open_clip:{name}' for name in OPENCLIP_LISTS)}."
    )
  package = importlib.util.find_spec("open_clip")
  if package is None:
    raise ValueError(
      f"{what}={source!r} needs OpenCLIP: pip install open_clip_torch, or give "
      "a file with one entry per line."
    )
  # Loads this module alone, since the package imports torch.
  [folder, *_] = package.submodule_search_locations
  spec = importlib.util.spec_from_file_location(
    "zero_shot_metadata", pathlib.Path(folder) / "zero_shot_metadata.py"
  )
  lists = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(lists)
  entries = getattr(lists, OPENCLIP_LISTS[name])
  # Templates are functions of the name.
  return [entry("{}") if callable(entry) else entry for entry in entries]


def check_names(
  names: Sequence[str],
  num_classes: int | None = None,
  where: str = "names",
  of: str = "the model",
) -> None:
  """Checks class names.

  Args:
    names: in the order of the outputs.
    num_classes: number of outputs; None allows any.
    where: file or setting of the names, for errors.
    of: the model or dataset with `num_classes`, for errors.

  Raises:
    ValueError: if there are no names or not `num_classes`, or if a name is
      empty, a number, or used twice; only the two names that OpenAI's list for
      ImageNet uses twice get a warning instead.
  """
  if num_classes is not None and len(names) != num_classes:
    raise ValueError(
      f"{where} has {len(names)} names, but {of} has {num_classes} classes: "
      "give one name per class, in the order of the outputs."
    )
  if not len(names):
    raise ValueError(f"{where} has no class names.")
  for k, name in enumerate(names):
    if not isinstance(name, str) or not name.strip():
      raise ValueError(
        f"{where}: the name of class {k} is {name!r}: give every class a name."
      )
    if is_number(name):
      raise ValueError(
        f"{where}: the name of class {k} is the number {name!r}, which says "
        "nothing about the class: give names in words (zeroshot.names)."
      )
  twice = sorted(k for k, n in collections.Counter(names).items() if n > 1)
  if twice:
    at = [k for k, name in enumerate(names) if name == twice[0]]
    message = f"{where}: {twice[0]!r} is the name of classes {at}"
    if len(names) != 1000 or not _IMAGENET_TWICE.issuperset(twice):
      raise ValueError(
        f"{message}, whose logits would be equal: give every class a different "
        "name."
      )
    logging.warning("%s, as in OpenAI's list: their logits are equal.", message)


def is_number(name: str) -> bool:
  """Whether a name is a number or a WordNet id, such as n01440764."""
  return re.fullmatch(r"\d+|n\d{8}", name.strip()) is not None


def check_templates(templates: Sequence[str], where: str = "templates") -> None:
  """Checks the prompts.

  Raises:
    ValueError: if there are none, or if one does not have exactly one `{}`.
  """
  if isinstance(templates, str) or not len(templates):
    raise ValueError(f"{where}={templates!r} must be a list of prompts.")
  for template in templates:
    if not isinstance(template, str) or template.count("{}") != 1:
      raise ValueError(
        f"{where} has {template!r}, which must have exactly one {{}} for the "
        "name of the class, such as 'a photo of a {}.'."
      )
