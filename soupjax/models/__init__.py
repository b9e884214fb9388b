# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models in Flax Linen; `pretrained` converts weights of other libraries.

A config names a module class, or a function that returns a Flax module, either
as it was registered with `register` or by its import path.
"""

from soupjax.lazy import submodules
from soupjax.models.build import MODELS as MODELS
from soupjax.models.build import build as build
from soupjax.models.clip import CLIP as CLIP
from soupjax.models.mixer import MIXER_VARIANTS as MIXER_VARIANTS
from soupjax.models.mixer import Mixer as Mixer
from soupjax.models.mixer import mixer_variant as mixer_variant
from soupjax.models.pretrained import load_pretrained as load_pretrained
from soupjax.models.resnet import ResNet as ResNet
from soupjax.models.resnet import resnet_variant as resnet_variant
from soupjax.models.text import Text as Text
from soupjax.models.vit import VARIANTS as VARIANTS
from soupjax.models.vit import ViT as ViT
from soupjax.models.vit import variant as variant

register = MODELS.register

__getattr__, __dir__ = submodules(__name__, __path__)
