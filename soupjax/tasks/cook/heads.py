# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot heads: of whole CLIPs, and for classes that models lack.

A whole CLIP, such as a soup of both towers, is evaluated with the head that its
own text tower computes from the class names (arXiv 2103.00020, 3.1.2). A model
fine-tuned from a zero-shot head is evaluated on other classes with a head that
the original text tower computes (arXiv 2203.05482, 3.3).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from soupjax import data, models, sharding
from soupjax.checkpoints import companions
from soupjax.data.folders import spelling
from soupjax.models import clip, pretrained, tokens, zeroshot
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import zeroshot as settings
from soupjax.tasks.cook import config as cook_config

PyTree = Any
# Keys of `Detected.ignored` with leaves that whole CLIPs use.
RULES = ("text tower", "temperature")
# A learned soup passes all prompts through the text tower in every step.
_MOST_PROMPTS = 4096
# Log scales are about 2.3 (SigLIP's start) to 4.8; the scales are 10 to 120.
_MOST_LOG_SCALE, _MOST_APART = 7.0, 3.0


@dataclasses.dataclass(frozen=True)
class Classifier:
  """Classifies images with a kernel of class embeddings.

  Attributes:
    tower: an image tower.
    output: index of the embedding among the outputs of the tower: 0 without a
      head, 1 with a head, which is not used.
  """

  tower: nn.Module
  output: int

  def __call__(self, params: PyTree, images: jax.Array) -> jax.Array:
    """Returns logits (batch, classes).

    Args:
      params: "tower", "kernel" (size, classes) and "bias" (1,), from a `Head`.
      images: the input of the tower.
    """
    outputs = self.tower.apply({"params": params["tower"]}, images)
    embeddings = clip.normalized(outputs[self.output])
    return embeddings @ params["kernel"] + params["bias"][0]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Head:
  """The zero-shot head for a set of images.

  Attributes:
    classifier: the model that uses the parameters that a call returns.
    names: class names, in the order of the labels.
    templates: prompts with {} in place of the class name.
    model: the whole CLIP, whose text tower computes the head from `tokens`;
      None with a `kernel`.
    tokens: (classes, templates, tokens) int32 of all prompts, with `model`.
    kernel: (size, classes) from a frozen text tower; None with a `model`.
  """

  classifier: Classifier
  names: Sequence[str]
  templates: Sequence[str]
  model: clip.CLIP | None = None
  tokens: np.ndarray | None = None
  kernel: np.ndarray | None = None

  def __call__(self, params: PyTree) -> dict[str, Any]:
    """Computes the head of a model; compiled once. May be traced.

    Args:
      params: the parameters of an ingredient or soup.

    Returns:
      Parameters for `classifier`.
    """
    if self.model is None:
      bias = np.zeros(1, np.float32)
      return {"tower": params, "kernel": self.kernel, "bias": bias}
    return {
      "tower": params["img"],
      "kernel": zeroshot.kernel_of(self.model, params, self.tokens),
      "bias": params.get("b", np.zeros(1, np.float32)),
    }

  def abstract(self, params: PyTree, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the result of a call as shapes; the head is replicated."""
    made = jax.eval_shape(self, params)
    place = sharding.replicated(mesh)
    made = {
      key: jax.ShapeDtypeStruct(
        made[key].shape, made[key].dtype, sharding=place
      )
      for key in ("kernel", "bias")
    }
    return {**made, "tower": params if self.model is None else params["img"]}

  def record(self) -> str:
    """Returns a hash of the names, the prompts and the kernel, if any."""
    text = repr((list(self.names), list(self.templates)))
    kernel = b"" if self.kernel is None else self.kernel.tobytes()
    return hashlib.sha256(text.encode() + kernel).hexdigest()[:16]


# --- Whole CLIPs --------------------------------------------------------------


def whole_clips(
  config, ingredients: Sequence[Ingredient], detected
) -> pretrained.Detected | None:
  """Detects whole CLIPs: models with a text tower and no head.

  Args:
    config: the config, with `family` and `zeroshot.text`.
    ingredients: the ingredients and the start, with the leaves of their files.
    detected: the detected model of each of them.

  Returns:
    A description with the options of `models.CLIP`; None if the models are not
    whole CLIPs.

  Raises:
    ValueError: naming two ingredients that differ in their towers or
      vocabularies, or one whose text tower cannot be used.
  """

  def is_whole(model):
    # In big_vision, the head of an image tower is its projection.
    headless = "num_classes" not in model.options
    return RULES[0] in model.ignored and (
      headless or model.family == "big_vision"
    )

  kinds = [is_whole(model) for model in detected]
  if not any(kinds):
    return None
  for ingredient, model in zip(ingredients, detected):
    if "num_classes" in model.options and not is_whole(model):
      first = ingredients[kinds.index(True)]
      raise ValueError(
        f"{first.path} is a CLIP with both towers and no head, but "
        f"{ingredient.path} has a head of {model.options['num_classes']} "
        "outputs: use checkpoints of one kind."
      )
  described = [
    pretrained.detect(i, family=config.family or None, text=True)
    for i in ingredients
  ]
  _check_alike(ingredients, described)
  # Files without a config have the settings of the others.
  known = [k for k, model in enumerate(described) if model.config]
  first = described[known[0] if known else 0]
  text = first.options["text"]
  companions.check_vocabularies(ingredients, [(text["vocab_size"],)])
  if not known and config.zeroshot.text:
    c = config.zeroshot
    skip = [c.skip] if c.skip else []
    text = pretrained.detect(c.text, skip=skip, text=True).options["text"]
  if text["num_heads"] is None:
    raise ValueError(
      f"The number of attention heads of the text tower of "
      f"{ingredients[0].path} is unknown: put its config beside the weights, "
      "or give --config.zeroshot.text, a CLIP with a config."
    )
  return dataclasses.replace(first, options={**first.options, "text": text})


def count_names(config) -> int:
  """Returns the number of classes on which whole CLIPs are evaluated."""
  c, split = config.data, config.data.minival or config.data.train
  name = c.name
  if not split:  # Without minival, the first test set gives the classes.
    first = next(iter(cook_config.tests(config).values()))
    name, split = first.dataset, first.split
  return data.open_source(name, split, data_dir=c.data_dir or None).num_classes


def _check_alike(ingredients, described) -> None:
  """Rejects CLIPs that differ in text tower settings or in a logit bias."""
  biased = [model.options["bias"] for model in described]
  if any(biased) and not all(biased):
    sigmoid = ingredients[biased.index(True)].path
    softmax = ingredients[biased.index(False)].path
    raise ValueError(
      f"{sigmoid} has a logit bias (SigLIP, sigmoid loss), but {softmax} has "
      "none (CLIP, softmax loss): they cannot be averaged. Use checkpoints of "
      "one kind."
    )
  known = [
    (ingredient, model.options["text"])
    for ingredient, model in zip(ingredients, described)
    if model.config
  ]
  for ingredient, text in known[1:]:
    first, expected = known[0]
    for key in sorted(expected.keys() | text.keys()):
      if text.get(key) != expected.get(key):
        raise ValueError(
          f"{first.name!r} and {ingredient.name!r} differ in {key} of the text "
          f"tower: {expected.get(key)!r} and {text.get(key)!r}. They cannot be "
          "averaged, unless one of their configs is wrong."
        )


def clip_of(tower: models.ViT, options: Mapping[str, Any]) -> clip.CLIP:
  """Builds a whole CLIP.

  Args:
    tower: the image tower that the config describes.
    options: from `whole_clips`.
  """
  fields = {f.name for f in dataclasses.fields(models.ViT)}
  fields -= {"parent", "name", "num_classes", "normalize"}
  image = {name: getattr(tower, name) for name in sorted(fields)}
  image["num_classes"] = options["image"].get("num_classes")
  return clip.CLIP(image, options["text"], options["bias"])


def check_scales(ingredients: Sequence[Ingredient]) -> None:
  """Checks that the logit scales of whole CLIPs are logarithms.

  Raises:
    ValueError: naming an ingredient whose scale is not a logarithm.
  """
  logs = {i.name: np.ravel(i.read("t"))[0].item() for i in ingredients}
  for name, value in logs.items():
    if not math.isfinite(value) or value > _MOST_LOG_SCALE:
      raise ValueError(
        f"The logit scale of {name!r} is {value:g}, but it should be a "
        f"logarithm, at most {_MOST_LOG_SCALE:g}: store log(scale), as CLIP "
        "and SigLIP do (log(100) is 4.605)."
      )
  low, high = min(logs, key=logs.get), max(logs, key=logs.get)
  if logs[high] - logs[low] > _MOST_APART:
    raise ValueError(
      f"The logit scales of {low!r} and {high!r} are {logs[low]:g} and "
      f"{logs[high]:g}. They should be logarithms of similar scales: one of "
      "the files may contain the scale itself."
    )


def own_head(
  config,
  model: clip.CLIP,
  source: Ingredient,
  minival: data.Source,
  classes: Sequence[str] | None,
  described: Sequence[str] | None,
) -> Head:
  """Makes the head for minival and for test sets with the same classes.

  Args:
    config: the config of the run.
    model: the whole CLIP.
    source: an ingredient; the vocabulary may be beside it.
    minival: the held-out images.
    classes: class names of `minival`; None if unknown.
    described: class names in the config beside the checkpoint; None if unknown.

  Raises:
    ValueError: if names, prompts or vocabulary cannot be used, or there are too
      many prompts for a learned soup.
  """
  names = settings.names_of(
    config.zeroshot, config.data.num_classes, minival.name, classes, described
  )
  head = _own_head(config, model, source, names)
  learned = config.task == "cook" and config.cook.learned.granularities
  prompts = math.prod(head.tokens.shape[:2])
  if learned and prompts > _MOST_PROMPTS:
    raise ValueError(
      f"A learned soup of whole CLIPs passes all {prompts:,} prompts "
      f"({len(names):,} names x {len(head.templates):,} templates) through the "
      f"text tower in every step, but at most {_MOST_PROMPTS:,} are supported. "
      "Use fewer zeroshot.templates, or no learned soups: "
      "--config.cook.learned.granularities='()'."
    )
  return head


def _own_head(config, model, source, names) -> Head:
  templates = settings.parse_templates(config.zeroshot.templates)
  zeroshot.check_templates(templates, "zeroshot.templates")
  path = config.zeroshot.vocabulary or config.zeroshot.text
  path = path or companions.home(source) or ""
  tokenizer = tokens.open_tokenizer(
    path,
    context_length=model.text["context_length"],
    vocab_size=model.text["vocab_size"],
  )
  zeroshot.check_tokenizer(model, tokenizer)
  return Head(
    classifier=Classifier(models.ViT(**model.image), 0),
    names=names,
    templates=templates,
    model=model,
    tokens=zeroshot.prompt_tokens(model, tokenizer, names, templates),
  )


# --- Classes of a test set ----------------------------------------------------


def unseen_head(
  config,
  model: nn.Module,
  source: Ingredient,
  test: data.Source,
  names: str | Sequence[str],
  what: str,
) -> Head:
  """Makes the zero-shot head for a test set with its own classes.

  Args:
    config: the config, with `zeroshot`.
    model: a whole CLIP, or a ViT with a head.
    source: an ingredient.
    test: the test set, with its own labels.
    names: "own" for the names of the dataset, a file with one name per line, or
      the names.
    what: the name of the set in errors.

  Raises:
    ValueError: if the names do not fit, or the text tower is unknown or does
      not belong to the model.
  """
  if names == "own":
    names = test.class_names or ()
    if not names:
      raise ValueError(
        f"{what}: the classes of {test.name} have no names: give names=, a "
        f"file with {test.num_classes} lines."
      )
  elif isinstance(names, str):
    names = settings.parse_names(names, f"{what}, names")
  where = f"{what}, names={names!r:.60}"
  zeroshot.check_names(names, test.num_classes, where, of=test.name)
  settings.check_order(names, test.class_names, where, test.name)
  if isinstance(model, clip.CLIP):
    return _own_head(config, model, source, list(names))
  path, c = config.zeroshot.text, config.zeroshot
  if not path:
    raise ValueError(
      f"{what} has names=, which needs a text tower, but the ingredients have "
      "none: give --config.zeroshot.text, the CLIP whose zero-shot head they "
      "started from."
    )
  if not getattr(model, "normalize", None) or model.num_classes is None:
    raise ValueError(
      f"{what} has names=, which needs features of length 1, as in models that "
      "started from a zero-shot head, but these have "
      f"model.normalize={getattr(model, 'normalize', None)}."
    )
  kernel, _ = settings.head(
    path, names, c.templates, [c.skip] if c.skip else []
  )
  size = source.specs["head/kernel"].shape[0]
  if len(kernel) != size:
    raise ValueError(
      f"{what}: text embeddings of {path} have size {len(kernel)}, but the "
      f"ingredients' features have size {size}: set zeroshot.text to the CLIP "
      "from which they were fine-tuned."
    )
  return Head(
    classifier=Classifier(model, 1),
    names=list(names),
    templates=settings.parse_templates(c.templates),
    kernel=kernel,
  )


def about(
  config, head: Head, minival: data.Source, where: str = "minival"
) -> str:
  """Describes the classes of a test set with its own class names.

  Args:
    config: the config; `zeroshot.names` are other names for minival's classes.
    head: the head of the set.
    minival: the held-out images, or the set that gives the models' classes.
    where: the name of `minival` in the text.
  """
  classes = list(minival.class_names or ())
  if config.zeroshot.names:
    classes += settings.parse_names(config.zeroshot.names)
  known = set(map(spelling, classes))
  shared = [name for name in head.names if spelling(name) in known]
  text = f"zero-shot on {len(head.names):,} classes of its own"
  if not classes:
    return f"{text}; the class names of {where} are unknown"
  if not shared:
    return f"{text}, none of which is in {where}"
  return (
    f"{text}, of which {len(shared):,} are also in {where}: "
    f"{', '.join(shared[:3])}{', ...' * (len(shared) > 3)}"
  )
