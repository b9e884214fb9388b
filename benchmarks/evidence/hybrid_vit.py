# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A ViT on the output of a few convolutions (arXiv 2106.14881).

An example of a model defined outside soupjax. With this folder on PYTHONPATH,
--config.model.name=hybrid_vit.HybridViT selects it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from soupjax.models import vit


class HybridViT(vit.ViT):
  """A ViT whose patches are taken from the feature maps of a stem.

  Attributes:
    stem: channels of each 3 x 3 convolution in the stem. Each halves height and
      width, so a patch has 2 ** len(stem) * patch_size pixels on a side.
  """

  stem: Sequence[int] = (24, 48)

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Classifies images, as `vit.ViT` does."""
    x = images
    for i, channels in enumerate(self.stem):
      x = nn.Conv(channels, (3, 3), strides=2, name=f"stem_{i}")(x)
      x = nn.gelu(nn.LayerNorm(name=f"stem_norm_{i}")(x))
    return super().__call__(x, train=train)
