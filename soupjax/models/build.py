# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Builds models from the names and options in configs."""

from collections.abc import Mapping
import inspect
from typing import Any

import flax.linen as nn

from soupjax.models import clip as clip_lib
from soupjax.models import mixer as mixer_lib
from soupjax.models import resnet as resnet_lib
from soupjax.models import vit as vit_lib
from soupjax.registry import Registry, suggestion

# Module classes, or functions that return a Flax module, with the arguments
# `num_classes` and options.
MODELS = Registry("model")


@MODELS.register
def vit(num_classes: int | None, variant: str = "", **options) -> vit_lib.ViT:
  """Makes a ViT from a variant such as "B/16"; options override its sizes."""
  size = vit_lib.variant(variant) if variant else {}
  return vit_lib.ViT(num_classes=num_classes, **size | options)


@MODELS.register
def mixer(
  num_classes: int | None, variant: str = "", **options
) -> mixer_lib.Mixer:
  """Makes an MLP-Mixer from a variant such as "B/16", as for `vit`."""
  size = mixer_lib.mixer_variant(variant) if variant else {}
  return mixer_lib.Mixer(num_classes=num_classes, **size | options)


@MODELS.register
def clip(
  num_classes: int | None,
  variant: str = "",
  image: Mapping[str, Any] | None = None,
  text: Mapping[str, Any] | None = None,
  bias: bool = False,
  dropout: float = 0.0,
  stochastic_depth: float = 0.0,
  dtype_mm: str = "float32",
  scan: bool = False,
  remat_policy: str | None = None,
) -> clip_lib.CLIP:
  """Makes a CLIP model, whose outputs do not depend on `num_classes`.

  Args:
    num_classes: ignored.
    variant: variant of the image tower, such as "B/32", or "".
    image: options of the image tower, which override its variant and the
      arguments below.
    text: options of the text tower, which override the arguments below.
    bias: whether logits have a bias.
    dropout: rate in the image tower.
    stochastic_depth: rate in the image tower, as in `ViT`.
    dtype_mm: dtype of the matrix products of both towers, as in `ViT`.
    scan: whether both towers scan their blocks.
    remat_policy: policy of both towers, as in `ViT`.
  """
  del num_classes
  both = {"dtype_mm": dtype_mm, "scan": scan, "remat_policy": remat_policy}
  noise = {"dropout": dropout, "stochastic_depth": stochastic_depth}
  size = vit_lib.variant(variant) if variant else {}
  return clip_lib.CLIP(
    {**size, **both, **noise, **(image or {})}, {**both, **(text or {})}, bias
  )


@MODELS.register
def resnet(
  num_classes: int | None, variant: str = "", **options
) -> resnet_lib.ResNet:
  """Makes BiT's ResNet-v2 from a variant such as "50x1", as for `vit`."""
  size = resnet_lib.resnet_variant(variant) if variant else {}
  options = size | options
  if "depths" in options:  # Configs have lists.
    options["depths"] = tuple(options["depths"])
  return resnet_lib.ResNet(num_classes=num_classes, **options)


# Module classes of the functions above that take **options.
_CLASSES = {
  "vit": vit_lib.ViT,
  "mixer": mixer_lib.Mixer,
  "resnet": resnet_lib.ResNet,
}


def build(name: str, num_classes: int | None, **options: Any) -> nn.Module:
  """Builds the model that a config names.

  Args:
    name: a registered model, or the import path of a function or module class.
    num_classes: outputs of the head; None for no head.
    **options: further arguments. Unknown ones are ignored if they are off (0,
      "", False or None).

  Raises:
    ValueError: if the model or an option does not exist, or if the result is
      not a Flax module.

  Examples:
    >>> build("vit", 10, variant="mu/16", dropout=0.1).depth
    1
  """
  make = MODELS.get(name)
  known = _options(name)
  if known is not None:
    for key, value in options.items():
      if value and key not in known:
        raise ValueError(
          f"The model {name!r} does not have the option {key!r}, which is set "
          f"to {value!r}{suggestion(key, known)}"
        )
    options = {k: v for k, v in options.items() if k in known}
  try:
    model = make(num_classes=num_classes, **options)
  except TypeError as e:
    raise ValueError(f"The model {name!r}: {e}") from e
  if not isinstance(model, nn.Module):
    raise ValueError(
      f"The model {name!r} must be a flax.linen.Module, got {model!r:.80}."
    )
  return model


def _options(name: str) -> set[str] | None:
  """Returns the names of all options, or None if the model accepts any."""
  parameters = dict(MODELS.signature(name).parameters)
  if name in _CLASSES:
    parameters |= inspect.signature(_CLASSES[name]).parameters
  elif any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    return None
  return set(parameters) - {"num_classes", "options", "parent", "name"}
