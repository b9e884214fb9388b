# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled images: sources, preprocessing, augmentation and batches."""

from soupjax.data import batch_ops, image_ops
from soupjax.data.dataset import Dataset as Dataset
from soupjax.data.digits import Digits as Digits
from soupjax.data.digits import load_digits as load_digits
from soupjax.data.open import open_source as open_source
from soupjax.data.pipeline import eval_batches as eval_batches
from soupjax.data.pipeline import train_loader as train_loader
from soupjax.data.prepare import write_tfds as write_tfds
from soupjax.data.preprocess import Preprocess as Preprocess
from soupjax.data.source import Source as Source
from soupjax.data.source import from_dataset as from_dataset
from soupjax.data.source import shared_examples as shared_examples
from soupjax.data.source import split_minival as split_minival
from soupjax.data.source import subset as subset
from soupjax.lazy import submodules

# Decorators that register user-defined operations.
image_op = image_ops.OPS.register
batch_op = batch_ops.OPS.register

__getattr__, __dir__ = submodules(__name__, __path__)
