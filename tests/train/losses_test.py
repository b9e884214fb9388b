# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import importlib.util
import pathlib

import jax
import numpy as np
import optax
import pytest
import torch_models

from soupjax.train import losses

RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_losses_agree_with_optax():
  logits = RNG.normal(size=(6, 3)).astype(np.float32)
  targets = losses.smooth_labels(LABELS, 3, 0.3)
  np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(
    targets, optax.smooth_labels(jax.nn.one_hot(LABELS, 3), 0.3), rtol=1e-6
  )
  expected = optax.softmax_cross_entropy(logits, targets).mean()
  assert float(losses.softmax_loss(logits, targets)) == pytest.approx(
    float(expected), rel=1e-6
  )


def pairs():
  """Embeddings of five images and texts, a scale and a bias."""
  z = RNG.normal(size=(2, 5, 4)).astype(np.float32)
  z /= np.linalg.norm(z, axis=-1, keepdims=True)
  return z[0], z[1], np.float32(7.0), np.float32(-2.0)


def openclip_losses():
  """Imports one file of OpenCLIP, since the package takes seconds."""
  package = importlib.util.find_spec("open_clip")
  if package is None:
    pytest.skip("needs pip install soupjax[torch-tests]")
  file = pathlib.Path(package.submodule_search_locations[0]) / "loss.py"
  spec = importlib.util.spec_from_file_location("openclip_losses", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "name, peer, biased",
  [
    ("softmax", "ClipLoss", False),
    ("softmax", "ClipLoss", True),
    ("sigmoid", "SigLipLoss", True),
  ],
)
def test_losses_of_pairs_equal_those_of_openclip(name, peer, biased):
  torch = torch_models.torch()
  peer = getattr(openclip_losses(), peer)()
  arrays = pairs() if biased else pairs()[:3]

  def loss(zimg, ztxt, scale, bias=0.0):
    logits = scale * zimg @ ztxt.T + bias
    return losses.PAIR_LOSSES.get(name)(logits)

  positions = tuple(range(len(arrays)))
  value, grads = jax.value_and_grad(loss, positions)(*arrays)
  tensors = [torch.from_numpy(np.array(x)).requires_grad_() for x in arrays]
  expected = peer(*tensors)
  expected.backward()
  assert float(value) == pytest.approx(expected.item(), abs=1e-5)
  for grad, tensor in zip(grads, tensors):
    np.testing.assert_allclose(grad, tensor.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", sorted(losses.PAIR_LOSSES))
def test_pairs_that_are_ignored_do_not_count(name):
  """Image 0 and text 1 of five, and the other way round."""
  zimg, ztxt, scale, _ = pairs()
  logits = scale * zimg @ ztxt.T
  ignored = np.zeros((5, 5), bool)
  ignored[0, 1] = ignored[1, 0] = True
  loss = losses.PAIR_LOSSES.get(name)
  grad = jax.grad(loss)(logits, ignored)
  assert np.all((np.asarray(grad) == 0) == ignored)
  far = np.where(ignored, -1e4, logits)
  assert float(loss(logits, ignored)) == pytest.approx(float(loss(far)), 1e-5)
