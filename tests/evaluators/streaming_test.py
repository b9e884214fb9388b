# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from soupjax import sharding
from soupjax.evaluators import Streaming, classification_metrics


class Linear(nn.Module):
  @nn.compact
  def __call__(self, images):
    return nn.Dense(3)(images.reshape(len(images), -1)), None


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(21, 2, 2, 1)).astype(np.float32)
LABELS = RNG.integers(0, 3, 21)
PARAMS = Linear().init(jax.random.key(0), IMAGES)["params"]


def batches(size=8):
  found = []
  for at in range(0, 21, size):
    images, labels = IMAGES[at : at + size], LABELS[at : at + size]
    pad = size - len(images)
    found.append(
      {
        # What is masked must not count, whatever it is.
        "images": np.pad(
          images, [(0, pad)] + [(0, 0)] * 3, constant_values=np.nan
        ),
        "labels": np.pad(labels, (0, pad)),
        "mask": np.arange(size) < len(images),
      }
    )
  return found


def expected():
  logits, _ = Linear().apply({"params": PARAMS}, IMAGES)
  return classification_metrics(logits, LABELS)


def put_on(mesh, batch):
  return jax.device_put(batch, sharding.along(mesh, "data"))


@pytest.mark.parametrize("devices", [1, 8])
def test_every_image_counts_once_on_any_mesh(devices):
  mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
  put = functools.partial(put_on, mesh)
  judge = Streaming(Linear(), batches(), put, name="val")
  for _ in range(2):  # Batches can be gone through again.
    found = judge.metrics(PARAMS)
    assert found["val/prec@1"] == expected()["prec@1"]
    assert found["val/loss"] == pytest.approx(expected()["loss"], rel=1e-5)
  assert judge(PARAMS) == expected()["prec@1"]


def test_weights_that_diverged_are_named():
  broken = jax.tree.map(lambda x: x * np.nan, PARAMS)
  with pytest.raises(ValueError, match="loss on minival is nan"):
    Streaming(Linear(), batches()).metrics(broken)
