# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Texts for images, for contrastive recipes."""

import jax
import jax.numpy as jnp


def draw_prompts(
  key: jax.Array, labels: jax.Array, prompts: jax.Array
) -> jax.Array:
  """Draws a prompt for each label.

  Args:
    key: random key.
    labels: (batch,) class indices.
    prompts: (classes, templates, tokens), from `zeroshot.prompt_tokens`.

  Returns:
    (batch, tokens).
  """
  template = jax.random.randint(key, labels.shape, 0, prompts.shape[1])
  return prompts[labels, template]


def same_class(labels: jax.Array) -> jax.Array:
  """Marks pairs of distinct examples with the same class, (batch, batch)."""
  same = labels[:, None] == labels[None]
  return same & ~jnp.eye(len(labels), dtype=bool)
