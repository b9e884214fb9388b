# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import flax.linen as nn
import jax
import numpy as np
import pytest

from soupjax.evaluators import (
  Classification,
  classification_metrics,
  predictor,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(11, 2, 2, 1)).astype(np.float32)
LABELS = RNG.integers(0, 3, 11)


class Linear(nn.Module):
  @nn.compact
  def __call__(self, images):
    x = images.reshape(len(images), -1)
    return nn.Dense(3)(x), x


@pytest.fixture(scope="module")
def params():
  return Linear().init(jax.random.key(0), IMAGES)["params"]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_every_image_counts_once_whatever_the_batch(params, batch_size):
  judge = Classification(
    predictor(Linear()), IMAGES, LABELS, batch_size=batch_size
  )
  expected, _ = Linear().apply({"params": params}, IMAGES)
  np.testing.assert_allclose(judge.logits(params), expected, atol=1e-6)
  correct = (expected.argmax(axis=1) == LABELS).sum()
  assert judge(params) == pytest.approx(correct / 11)


def test_candidates_and_datasets_share_one_compilation(params):
  predict = predictor(Linear())
  for n in (11, 7, 3):
    judge = Classification(predict, IMAGES[:n], LABELS[:n], batch_size=4)
    judge(params)
    judge(jax.tree.map(lambda x: 2 * x, params))
  assert predict._cache_size() == 1


def test_metrics_by_hand():
  logits = np.log([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]])
  found = classification_metrics(logits, np.array([0, 2]))
  assert found["prec@1"] == 0.5
  assert found["loss"] == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)
  huge = classification_metrics(np.array([[1e4, 0.0]]), np.array([1]))
  assert huge["loss"] == pytest.approx(1e4)


def test_loss_comes_back_negated(params):
  judge = Classification(predictor(Linear()), IMAGES, LABELS, metric="loss")
  assert judge(params) == -judge.metrics(params)["loss"] < 0


@pytest.mark.parametrize(
  "logits,labels,message",
  [
    (np.zeros((2, 3)), np.zeros(3, int), r"\(2, 3\) and labels \(3,\)"),
    (np.zeros((2, 3)), np.array([0, 3]), "run from 0 to 3.*3 classes"),
    (np.zeros((2, 3)), np.array([-1, 0]), "run from -1 to 0"),
    (np.full((2, 3), np.nan), np.array([0, 0]), "logits are NaN"),
  ],
)
def test_bad_input(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    classification_metrics(logits, labels)


def test_bad_arguments():
  with pytest.raises(ValueError, match="got 'acc'"):
    Classification(predictor(Linear()), IMAGES, LABELS, metric="acc")
  with pytest.raises(ValueError, match="Got 0 images"):
    Classification(predictor(Linear()), IMAGES[:0], LABELS[:0])


@pytest.mark.parametrize("size", [0, -1, 2.5, "4"])
def test_batch_size_must_be_a_positive_number(size):
  with pytest.raises(ValueError, match="batch_size must be"):
    Classification(predictor(Linear()), IMAGES, LABELS, batch_size=size)


def test_labels_must_be_class_indices():
  labels = LABELS.astype(np.float32)
  with pytest.raises(ValueError, match="class indices, got dtype float32"):
    Classification(predictor(Linear()), IMAGES, labels)
  with pytest.raises(ValueError, match="class indices, got dtype float32"):
    classification_metrics(np.zeros((11, 3)), labels)
