# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import flax.linen as nn
import jax
import numpy as np
import pytest

from soupjax import sharding
from soupjax.evaluators import Evaluator, classification_metrics, evaluator

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(21, 2, 2, 1)).astype(np.float32)
LABELS = RNG.integers(0, 3, 21)


class Linear(nn.Module):
  @nn.compact
  def __call__(self, images):
    return nn.Dense(3)(images.reshape(len(images), -1)), None


PARAMS = Linear().init(jax.random.key(0), IMAGES)["params"]
LOGITS = np.asarray(Linear().apply({"params": PARAMS}, IMAGES)[0])
EXPECTED = classification_metrics(LOGITS, LABELS)


class Batches:
  """Masked batches, counting how often they were gone through."""

  def __init__(self, size=8):
    self.size, self.passes = size, 0

  def __len__(self):
    return -(-21 // self.size)

  def __iter__(self):
    self.passes += 1
    for at in range(0, 21, self.size):
      images, labels = IMAGES[at : at + self.size], LABELS[at : at + self.size]
      pad = self.size - len(images)
      yield {
        # Masked images must not count, whatever their pixels.
        "images": np.pad(
          images, [(0, pad)] + [(0, 0)] * 3, constant_values=np.nan
        ),
        "labels": np.pad(labels, (0, pad)),
        "mask": np.arange(self.size) < len(images),
      }


def test_any_function_is_mapped_over_the_images_in_the_order_of_the_set():
  mesh = sharding.make_mesh({"data": -1})
  for evaluate in (
    Evaluator(Linear(), Batches(), mesh=mesh),
    Evaluator.from_arrays(Linear(), IMAGES, LABELS, batch_size=8),
  ):

    def function(forward, params, images, labels, *, factor):
      return {
        "logits": factor * forward(params, images),
        "labels": labels,
      }

    found = evaluate.mapped(function)(PARAMS, factor=2.0)
    np.testing.assert_allclose(found["logits"], 2 * LOGITS, rtol=1e-5)
    np.testing.assert_array_equal(found["labels"], LABELS)


def check(evaluate):
  totals = evaluate.totals(PARAMS)
  assert totals.pop("n") == 21
  assert totals == pytest.approx(EXPECTED, rel=1e-5)
  assert totals["prec@1"] == EXPECTED["prec@1"]
  logits, labels = evaluate.logits(PARAMS)
  np.testing.assert_allclose(logits, LOGITS, atol=1e-5)
  np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("batch_size", [1, 4, 21, 64])
def test_arrays_count_once_whatever_the_batch(batch_size):
  evaluate = Evaluator.from_arrays(
    Linear(), IMAGES, LABELS, batch_size=batch_size
  )
  check(evaluate)
  assert evaluate(PARAMS) == EXPECTED["prec@1"]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_batches_count_once_on_any_mesh(devices, cache_gb):
  mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
  batches = Batches()
  evaluate = Evaluator(Linear(), batches, mesh=mesh, cache_gb=cache_gb)
  check(evaluate)
  metrics = evaluate.metrics(PARAMS)
  assert metrics["minival/prec@1"] == EXPECTED["prec@1"]
  assert batches.passes == (1 if cache_gb else 3)


def test_images_that_do_not_fit_are_decoded_again(caplog):
  batches = Batches()
  with caplog.at_level("WARNING", logger="absl"):
    evaluate = Evaluator(Linear(), batches, cache_gb=1e-9, name="val")
    check(evaluate)
  assert batches.passes == 2 and caplog.text.count("val takes") == 1
  assert evaluate.cached_bytes == 0


@pytest.mark.parametrize("metric", ["prec@1", "loss"])
def test_a_score_has_the_same_bits_in_any_order(metric):
  scores = set()
  for size in (3, 8, 21):
    evaluate = Evaluator.from_arrays(
      lambda params, rows: params[rows], np.arange(21), LABELS,
      batch_size=size, metric=metric,
    )  # fmt: skip
    for _ in range(2):
      scores.add(evaluate(LOGITS))
      evaluate.set_incumbent()
    assert not (np.diff(evaluate._batches.order) == 1).all()
    np.testing.assert_array_equal(evaluate.logits(LOGITS)[0], LOGITS)
  assert len(scores) == 1


def test_scores_by_another_metric_share_the_images():
  evaluate = Evaluator.from_arrays(Linear(), IMAGES, LABELS)
  by_loss = evaluate.for_metric("loss")
  assert by_loss(PARAMS) == -by_loss.totals(PARAMS)["loss"] < 0
  by_loss.set_incumbent()
  assert evaluate._batches.order is None
  assert by_loss._batches.cached is evaluate._batches.cached
  with pytest.raises(ValueError, match="'top5'"):
    evaluate.for_metric("top5")


def test_candidates_and_sets_share_one_compilation():
  model = Linear(name="shared")
  program = evaluator._compiled(model, ("prec@1", "loss"), False, None)
  for n in (11, 7, 3):
    evaluate = Evaluator.from_arrays(
      model, IMAGES[:n], LABELS[:n], batch_size=4
    )
    evaluate(PARAMS)
    evaluate(jax.tree.map(lambda x: 2 * x, PARAMS))
  assert program._cache_size() == 1


def test_weights_that_diverged_are_named():
  broken = jax.tree.map(lambda x: x * np.nan, PARAMS)
  with pytest.raises(ValueError, match="loss on val.*nan"):
    Evaluator(Linear(), Batches(), name="val").metrics(broken)


def test_labels_beyond_the_classes_are_errors():
  labels = np.where(np.arange(21) == 20, 3, LABELS)
  with pytest.raises(ValueError, match="nan.*label"):
    Evaluator.from_arrays(Linear(), IMAGES, labels)(PARAMS)


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"metric": "acc"}, "'acc'"),
    ({"images": IMAGES[:0], "labels": LABELS[:0]}, "0 images"),
    ({"labels": LABELS[:3]}, "21 images.*3 labels"),
    ({"labels": LABELS.astype(np.float32)}, "float32"),
    ({"labels": LABELS - 1}, "-1"),
    *(({"batch_size": size}, "batch_size") for size in (0, -1, 2.5, "4")),
  ],
)
def test_bad_arguments(changes, message):
  arguments = {"images": IMAGES, "labels": LABELS, **changes}
  with pytest.raises(ValueError, match=message):
    Evaluator.from_arrays(Linear(), **arguments)
