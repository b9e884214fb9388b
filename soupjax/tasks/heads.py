# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Heads for an encoder: fitted probes, heads of checkpoints, heads in files."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from soupjax import data, models, sharding
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks.finetune import config as settings
from soupjax.train import probe

PyTree = Any
# Top-level names of the leaves of a head; the second is that of DeiT.
MODULES = ("head", "head_dist")
# Leaf of a file with a head: whether it takes features of length 1.
NORMALIZE = "normalize"


def fit(
  model,
  params: PyTree,
  source: data.Source,
  *,
  preprocess: str,
  batch_size: int,
  num_classes: int,
  l2: float,
  steps: int,
  max_examples: int = 0,
  mesh: jax.sharding.Mesh,
  init: PyTree | None = None,
) -> dict[str, jax.Array]:
  """Fits a head on frozen features, each computed once (arXiv 2202.10054).

  Args:
    model: returns logits and features.
    params: of the model, in host memory.
    source: labelled images.
    preprocess: operations of images.
    batch_size: rounded up to a multiple of the devices.
    num_classes: of the head.
    l2: see `probe.linear_probe`.
    steps: see `probe.linear_probe`.
    max_examples: images, evenly spread over the source; 0 is all.
    mesh: with an axis "data". Of several processes, each fits the same head
      by itself, on its own devices.
    init: the head to start from, None for zeros.
  """
  if jax.process_count() > 1:
    mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
  if 0 < max_examples < len(source):
    # Evenly spread, since some sets are sorted by class.
    indices = np.arange(max_examples) * len(source) // max_examples
    source = data.subset(source, indices, source.name)
  batches = data.eval_batches(
    source,
    batch_size=settings.rounded_up(batch_size, mesh.shape["data"]),
    preprocess=preprocess,
  )

  place = sharding.along(mesh, "data")
  placed = (
    {**batch, "images": jax.device_put(batch["images"], place)}
    for batch in batches
  )
  params = jax.device_put(params, sharding.replicated(mesh))
  return probe.linear_probe(
    *features(features_program(model), params, placed),
    num_classes=num_classes,
    l2=l2,
    steps=steps,
    init=init,
  )


def features_program(model) -> Callable[[PyTree, jax.Array], jax.Array]:
  """Returns the jitted features of a model: the input of its head.

  Of a whole CLIP they are the embeddings of images.
  """
  tower, output = model, 1
  if isinstance(model, models.CLIP):
    tower, output = models.ViT(**model.image), 0

  @jax.jit
  def program(params, images):
    params = params["img"] if isinstance(model, models.CLIP) else params
    return tower.apply({"params": params}, images)[output]

  return program


def features(
  program: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  batches: Iterable[Mapping[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (n, width) features and (n,) labels of all images, in order.

  Args:
    program: from `features_program`.
    params: of the model.
    batches: "images" on the devices, "labels" and "mask".
  """
  parts = []
  for batch in batches:
    rows = np.asarray(batch["mask"])
    found = np.asarray(program(params, batch["images"]))
    parts.append((found[rows], np.asarray(batch["labels"])[rows]))
  found, labels = map(np.concatenate, zip(*parts))
  return found, labels


def leaves_of(ingredient: Ingredient) -> dict[str, Any]:
  """Reads the head of a checkpoint that has the leaves of our models.

  Returns:
    Module -> name -> array; {} if there is none.
  """
  head: dict[str, dict[str, np.ndarray]] = {}
  for leaf in ingredient.specs:
    module, _, name = leaf.partition("/")
    if module in MODULES and name:
      head.setdefault(module, {})[name] = np.asarray(ingredient.read(leaf))
  return head


def has_encoder(source: Ingredient | None) -> bool:
  """Whether a checkpoint has more leaves than those of one or two heads."""
  return source is not None and len(source.specs) > 2 * len(MODULES)


def of_file(source: Ingredient, where: str) -> dict[str, dict[str, np.ndarray]]:
  """Reads a file that holds nothing but a head.

  Args:
    source: with the leaves "kernel" (width, classes) and "bias", as our models
      have them, or "weight" (classes, width) and "bias", as torch has them;
      they may have a prefix, such as "fc.". A missing bias is 0. The two heads
      of DeiT have the prefixes "head" and "head_dist".
    where: the key of the config, for errors.

  Raises:
    ValueError: if it has other leaves.
  """
  path = source.path or source.name
  heads: dict[str, dict[str, np.ndarray]] = {}
  for leaf in source.specs:
    if leaf == NORMALIZE:
      continue
    prefix, _, name = leaf.replace(".", "/").rpartition("/")
    module = prefix if prefix in MODULES else MODULES[0]
    value = np.asarray(source.read(leaf))
    if name == "weight" and value.ndim == 2:
      name, value = "kernel", value.T
    head = heads.setdefault(module, {})
    if name in head or name not in ("kernel", "bias"):
      raise ValueError(
        f"{where}: {path} has the leaf {leaf!r}, but a head has only 'kernel' "
        "(width, classes) or 'weight' (classes, width), and 'bias'."
      )
    head[name] = value
  for module, head in heads.items():
    if getattr(head.get("kernel"), "ndim", 0) != 2:
      raise ValueError(
        f"{where}: {path} has no matrix 'kernel' or 'weight' of {module!r}."
      )
    head.setdefault("bias", np.zeros(head["kernel"].shape[1], np.float32))
  return heads


def normalizes(source: Ingredient | None) -> bool:
  """Whether a file that holds nothing but a head takes features of length 1."""
  if source is None or has_encoder(source) or NORMALIZE not in source.specs:
    return False
  return bool(np.asarray(source.read(NORMALIZE)))


def check(
  head: Mapping[str, Mapping[str, Any]],
  features: Mapping[str, int],
  classes: int,
  where: str,
) -> None:
  """Compares a head with the encoder and the data.

  Args:
    head: module -> leaves; for each module a "kernel" (features, classes).
    features: module -> number of features of the encoder.
    classes: of the data.
    where: the key of the config, for errors.

  Raises:
    ValueError: if a module is missing, or a shape does not fit.
  """
  if set(head) != set(features):
    raise ValueError(
      f"{where}: the head has {', '.join(head) or 'no leaves'}, but the model "
      f"needs {', '.join(features)}."
    )
  for module, leaves in head.items():
    width = features[module]
    shapes = {name: np.shape(value) for name, value in leaves.items()}
    expected = {"kernel": (width, classes), "bias": (classes,)}
    for name, shape in shapes.items():
      if shape != expected.get(name, shape):
        raise ValueError(
          f"{where}: {module}/{name} has the shape {shape}, but the encoder "
          f"has {width} features and the data {classes} classes: expected "
          f"{expected[name]}."
        )
