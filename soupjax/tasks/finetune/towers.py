# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of CLIPs with both towers: prompts, heads, embedded images."""

from collections.abc import Callable
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import data, sharding
from soupjax.data import in_memory, paired
from soupjax.models import clip, pretrained, vit, zeroshot
from soupjax.progress import Progress
from soupjax.tasks import zeroshot as task_zeroshot
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import objective

PyTree = Any
# Number of labels that are read to see whether all are equal.
_LABELS = 256


def inputs(config, model) -> tuple[np.ndarray, ...]:
  """Returns the inputs, of zeros, to initialise a model with.

  These are images (1, height, width, 3) and, for a CLIP, tokens (1, length).
  """
  size = config.data.image_size
  images = np.zeros((1, size, size, 3), np.float32)
  if not isinstance(model, clip.CLIP):
    return (images,)
  length = model.txt_length
  return images, np.zeros((1, length), np.int32)


def initial(config, model: clip.CLIP, init: PyTree) -> PyTree:
  """Reads one or both towers from `init.path`.

  Args:
    config: with `init`; `init.text` says whether the text tower is new.
    model: the CLIP with both towers.
    init: random parameters, used for leaves that are not read.

  Raises:
    ValueError: as for `pretrained.load_pretrained`.
  """
  c = config.init
  options = {
    "image_size": config.data.image_size,
    **settings.part_of_start(config),
  }
  if c.text == "checkpoint":
    return pretrained.load_pretrained(c.path, model, **options, init=init)
  tower = vit.ViT(**model.image)
  image = pretrained.load_pretrained(
    c.path, tower, head="keep", **options, init=init["img"]
  )
  return {**init, "img": image}


def names_of(config, train: data.Source) -> list[str]:
  """Returns the names of the classes; see `tasks.zeroshot.names_of`."""
  classes = settings.detect_start(config).classes if config.init.path else None
  return task_zeroshot.names_of(
    config.zeroshot, train.num_classes, train.name, train.class_names, classes
  )


def open_prompts(
  config, model: clip.CLIP, train: data.Source
) -> tuple[np.ndarray, dict[str, Any]]:
  """Tokenizes the prompts of all classes.

  Returns:
    (classes, templates, tokens) int32, and a record of names, templates and
    vocabulary.

  Raises:
    ValueError: if the names, the prompts or the vocabulary cannot be used.
  """
  return task_zeroshot.prompts(
    config.init.path, model, names_of(config, train), config.zeroshot
  )


def by_text(config, train: data.Source) -> data.Source:
  """Labels images by their captions, if there are any and they are used."""
  if train.captions and objective.recipe_of(config).pairs:
    return paired.by_caption(train)
  return train


def open_captions(config, model: clip.CLIP, train: data.Source) -> np.ndarray:
  """Tokenizes the captions of `by_text`, as `open_prompts` does prompts.

  Returns:
    (captions, 1, tokens) int32.
  """
  return task_zeroshot.captions(
    config.init.path, model, train.captions, config.zeroshot
  )


def check_labels(config, train: data.Source) -> None:
  """Checks that not all images have the same text.

  Warns if a batch must have several images of a class.

  Raises:
    ValueError: if all labels that are read are equal.
  """
  count = min(len(train), _LABELS)
  indices = np.arange(count) * len(train) // count
  labels = {train.label(int(index)) for index in indices}
  if len(labels) == 1:
    raise ValueError(
      f"{count} labels of {train.name} were read, and all are "
      f"{labels.pop()}: recipe={config.recipe!r} tells texts of different "
      "classes apart. Use data of several classes."
    )
  batch = config.data.batch_size
  if batch > train.num_classes and "mask_same_class" not in config.recipe:
    logging.warning(
      "Batches of %d images of %d classes have several images of a class. The "
      "loss treats their texts as different, as in arXiv 2212.00638; "
      "recipe='%s(mask_same_class=True)' leaves these pairs out.",
      *(batch, train.num_classes, config.recipe.partition("(")[0]),
    )


def forward(model: clip.CLIP) -> Callable[[PyTree, jax.Array], jax.Array]:
  """Returns a function from `with_head`'s result and images to logits."""

  def logits(params, images):
    features = model.apply(
      {"params": params["model"]}, images, method="embed_images"
    )
    return features @ params["head"]

  return logits


def with_head(model: clip.CLIP, params: PyTree, prompts: np.ndarray) -> PyTree:
  """Returns the parameters as "model", and the "head" of their text tower.

  Args:
    model: the CLIP with both towers.
    params: parameters of the model.
    prompts: tokens (classes, templates, tokens).
  """
  return {
    "model": params,
    "head": zeroshot.kernel_of(model, params, prompts),
  }


def embedded(job, ops: str) -> in_memory.Held:
  """Embeds every image of the train set once, with the start's image tower.

  Args:
    job: the sweep's job.
    ops: preprocessing without random numbers.

  Returns:
    The set, with embeddings (n, size) of length 1 in place of images. An image
    that cannot be decoded gets the embedding and label of the next good one.
  """
  mesh, processes = job.mesh, jax.process_count()
  size = settings.eval_batch_size(job.config, mesh.shape["data"])
  batches = data.eval_batches(
    job.train,
    batch_size=size,
    preprocess=ops,
    process_index=jax.process_index(),
    process_count=processes,
  )

  def embed(params, batch):
    images = batch.pop("images")
    z = job.model.apply({"params": params}, images, method="embed_images")
    return {**batch, "embeddings": z}

  embed = jax.jit(embed, out_shardings=sharding.replicated(mesh))
  count, own = len(job.train), size // processes
  embeddings, lines = None, Progress("embeddings", count, unit="images")
  labels, good = np.zeros(count, np.int32), np.zeros(count, bool)
  for k, batch in enumerate(batches):
    first = k * size + jax.process_index() * own
    batch["position"] = np.arange(first, first + own)
    batch = jax.device_get(embed(job.params, sharding.put_batch(mesh, batch)))
    z, mask = batch["embeddings"], batch["mask"]
    if embeddings is None:
      embeddings = np.zeros((count, z.shape[1]), np.float32)
    at = batch["position"][mask]
    embeddings[at], labels[at], good[at] = z[mask], batch["labels"][mask], True
    lines.step(int((batch["position"] < count).sum()))
  rows = np.flatnonzero(good)
  for index in np.flatnonzero(~good):
    other = rows[np.searchsorted(rows, index) % len(rows)]
    embeddings[index], labels[index] = embeddings[other], labels[other]
  return in_memory.Held(job.train.name, embeddings, labels)


def prompt_shape(config, model: clip.CLIP) -> tuple[int, int, int]:
  """Returns the largest possible shape of the prompts, without reading them.

  Assumes that every image has a caption of its own, if it may have any.
  """
  c = config.data
  templates = len(task_zeroshot.parse_templates(config.zeroshot.templates))
  captions = c.num_train if may_have_captions(config) else 0
  if captions > c.num_classes * templates:
    return captions, 1, model.txt_length
  return c.num_classes, templates, model.txt_length


def may_have_captions(config) -> bool:
  """Whether the images may have captions and the recipe uses them."""
  paired_data = config.data.name.startswith(("csv:", "wds:"))
  return paired_data and objective.recipe_of(config).pairs


def context_shape(config, params: PyTree) -> tuple[int, int]:
  """Returns the shape of the weights of contexts: (features, templates)."""
  templates = len(task_zeroshot.parse_templates(config.zeroshot.templates))
  return params["head"]["kernel"].shape[0], templates


def embedding_shape(config, model: clip.CLIP) -> tuple[int]:
  """Returns the shape of an image's embedding: (size,)."""
  shapes = jax.eval_shape(
    model.init_with_output, jax.random.key(0), *inputs(config, model)
  )
  return shapes[0][0].shape[1:]


def abstract_head(config, model: clip.CLIP, params: PyTree, place) -> PyTree:
  """Returns the result of `with_head`, with shapes in place of arrays."""
  shape = (*embedding_shape(config, model), config.data.num_classes)
  head = jax.ShapeDtypeStruct(shape, np.float32, sharding=place)
  return {"model": params, "head": head}
