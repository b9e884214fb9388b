# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Heads for encoders: linear probes, heads of checkpoints, heads in files."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from soupjax import data, models, sharding
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks.finetune import config as settings
from soupjax.train import probe

PyTree = Any
# Top-level names of a head's leaves; the second is DeiT's distillation head.
MODULES = ("head", "head_dist")
# Leaf of a head's file: whether the head takes features scaled to length 1.
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
    params: the model's parameters, in host memory.
    source: labelled images.
    preprocess: operations that prepare images, as for `data.Preprocess`.
    batch_size: rounded up to a multiple of the number of devices.
    num_classes: number of outputs of the head.
    l2: see `probe.linear_probe`.
    steps: see `probe.linear_probe`.
    max_examples: number of images, spread evenly over the source; 0 for all.
    mesh: with an axis "data". If there are several processes, each fits the
      same head on its own devices instead.
    init: the head to start from; None for zeros.

  Returns:
    "kernel" (features, classes) and "bias" (classes,).
  """
  if jax.process_count() > 1:
    mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
  if 0 < max_examples < len(source):
    # Spread evenly, since some sets are sorted by class.
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
  """Returns a jitted function that computes the inputs of a model's head.

  It maps parameters and images (n, height, width, 3) to features (n, width):
  for a CLIP with both towers, the embeddings of the images.
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
    params: the model's parameters.
    batches: with "images" on the devices, "labels", and "mask", which is False
      for padding.
  """
  parts = []
  for batch in batches:
    rows = np.asarray(batch["mask"])
    found = np.asarray(program(params, batch["images"]))
    parts.append((found[rows], np.asarray(batch["labels"])[rows]))
  found, labels = map(np.concatenate, zip(*parts))
  return found, labels


def leaves_of(ingredient: Ingredient) -> dict[str, Any]:
  """Reads the head of a checkpoint with soupjax's leaf names.

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
  """Whether a checkpoint has more leaves than two heads have."""
  return source is not None and len(source.specs) > 2 * len(MODULES)


def of_file(source: Ingredient, where: str) -> dict[str, dict[str, np.ndarray]]:
  """Reads a file that contains only a head.

  Args:
    source: with the leaves "kernel" (width, classes) and "bias", as in our
      models, or "weight" (classes, width) and "bias", as in torch. There may be
      a prefix, such as "fc.". A missing bias is 0. The two heads of DeiT have
      the prefixes "head" and "head_dist".
    where: the config key, for errors.

  Returns:
    Module -> "kernel" (width, classes) and "bias" (classes,).

  Raises:
    ValueError: if there are other leaves, or a matrix is missing.
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
        f"{where}: {path} has no matrix 'kernel' or 'weight' for {module!r}."
      )
    head.setdefault("bias", np.zeros(head["kernel"].shape[1], np.float32))
  return heads


def normalizes(source: Ingredient | None) -> bool:
  """Whether a head from a file of its own takes features scaled to length 1."""
  if source is None or has_encoder(source) or NORMALIZE not in source.specs:
    return False
  return bool(np.asarray(source.read(NORMALIZE)))


def check(
  head: Mapping[str, Mapping[str, Any]],
  features: Mapping[str, int],
  classes: int,
  where: str,
) -> None:
  """Checks that a head fits the encoder and the data.

  Args:
    head: module -> leaves, with a "kernel" (features, classes) in each.
    features: module -> number of features of the encoder.
    classes: number of classes of the data.
    where: the config key, for errors.

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
