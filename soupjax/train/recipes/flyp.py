# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""FLYP: fine-tuning like pretraining (arXiv 2212.00638)."""

from soupjax.train.recipes import base, pairs


@base.RECIPES.register
def flyp(mask_same_class: bool = False) -> base.Recipe:
  """Trains both towers with CLIP's contrastive loss (arXiv 2212.00638).

  The text of an image is its caption, or a prompt for its class, drawn at
  random for every image and step. Images are compared with all texts of the
  batch, across all devices. The loss "sigmoid" is SigLIP's (arXiv 2303.15343).

  Args:
    mask_same_class: whether to leave out pairs of an image with the text of
      another image of the same class. The paper's code keeps these pairs.
  """

  def objective(params, batch, key, *, model, loss, hyper, shared):
    del hyper, shared
    _, _, logits = model.apply(
      {"params": params},
      batch["images"],
      batch["tokens"],
      train=True,
      rngs={"dropout": key},
    )
    return loss(
      logits, pairs.same_class(batch["labels"]) if mask_same_class else None
    )

  return base.Recipe(objective, pairs=True)
