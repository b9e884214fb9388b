# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch models with random weights, and their logits."""

import importlib
import os
import sys

import numpy as np
import pytest

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
IMAGES = IMAGES.astype(np.float32)
_REASON = "needs pip install soupjax[torch-tests]"
_LIBRARIES = []  # Keeps libraries alive, and with them their declarations.


def torch():
  """Imports torch, or skips the test."""
  os.environ.setdefault("HF_HUB_OFFLINE", "1")
  module = pytest.importorskip("torch", reason=_REASON)
  module.set_num_threads(1)
  return module


def _import_torchvision(torch):
  """Imports torchvision, even if torch was built for the CPU only.

  Wheels from package registries expect a torch built for CUDA, but only for
  operators that no test calls, so declaring these is enough.
  """
  try:
    importlib.import_module("torchvision")
  except ImportError:
    return  # Only timm and OpenCLIP need it.
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor boxes, Tensor scores, float t) -> Tensor")
    _LIBRARIES.append(library)
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
      del sys.modules[name]
    importlib.import_module("torchvision")


def package(name):
  """Imports a package that builds on torch, or skips the test."""
  _import_torchvision(torch())
  return pytest.importorskip(name, reason=_REASON)


def randomize(model, seed=0):
  """Gives all parameters random values, which reveal mixed-up layouts."""
  module = torch()
  generator = module.Generator().manual_seed(seed)
  with module.no_grad():
    for name, p in model.named_parameters():
      noise = module.randn(p.shape, generator=generator)
      fan = p.shape[-1] if p.ndim > 1 else 4
      p.copy_(noise / fan**0.5)
      if p.ndim == 1 and "norm" in name.lower() and "weight" in name:
        p.add_(1.0)
  return model.eval()


def outputs(model, call=None):
  """Returns the outputs of a model for `IMAGES`, as a NumPy array."""
  module = torch()
  with module.no_grad():
    x = module.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    return (call or model)(x).numpy()
