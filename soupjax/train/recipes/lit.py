# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""LiT: locked-image tuning of the text tower (arXiv 2111.07991)."""

from soupjax.train.recipes import base, pairs


@base.RECIPES.register
def lit(mask_same_class: bool = False) -> base.Recipe:
  """Trains the text tower and logit scale of a CLIP (arXiv 2111.07991).

  The image tower is locked. Image embeddings are computed once, so images are
  not augmented (section 5.2 of the paper).

  Args:
    mask_same_class: as for `flyp`.
  """

  def objective(params, batch, key, *, model, loss, hyper, shared):
    del key, hyper, shared
    _, logits = model.apply(
      {"params": params},
      batch["images"],
      batch["tokens"],
      train=True,
      method="compare",
    )
    same = pairs.same_class(batch["labels"]) if mask_same_class else None
    return loss(logits, same)

  return base.Recipe(objective, pairs=True, embedded=True, frozen=("^img/",))
