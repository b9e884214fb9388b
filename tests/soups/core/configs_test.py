# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import warnings

import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import configs

VIT = {
  "model_type": "vit",
  "num_attention_heads": 2,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "id2label": {"0": "cat", "1": "dog"},
}


def _models(*changes, file="config.json"):
  """Models of a head with two outputs, and the changes of their configs."""
  return [
    dataclasses.replace(
      sj.Ingredient.from_params(
        f"m{k}",
        {"body": np.eye(3, dtype="f"), "head": np.ones((3, 2), "f") * k},
      ),
      configs={file: {**VIT, **change}},
    )
    for k, change in enumerate(changes)
  ]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"num_attention_heads": 4}, "differ in num_attention_heads of the"),
    ({"hidden_act": "quick_gelu"}, "hidden_act .* 'gelu' and 'quick_gelu'"),
    ({"model_type": "deit"}, "model_type .* 'vit' and 'deit'"),
    ({"id2label": {"1": "cat", "0": "dog"}}, "output 0 is 'cat' and 'dog'"),
    ({"id2label": {"0": "cat"}}, "2 and 1 classes"),
  ],
)
def test_models_that_compute_differently_are_not_averaged(change, message):
  models = _models({}, {}, change)
  for average in (
    sj.uniform_soup,
    lambda models: sj.mix(sj.rules.linear(), models),
    lambda models: sj.greedy_soup(models, lambda params: 1.0),
    lambda models: sj.wise_ft(models[0], models[2], alpha=0.5),
    lambda models: sj.diagnose(models, lambda params: 1.0),
  ):
    with pytest.raises(ValueError, match=message):
      average(models)


@pytest.mark.parametrize(
  "changes",
  [
    [{}, {"hidden_dropout_prob": 0.5, "transformers_version": "5.0"}],
    [{}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}],
    [{}, {"id2label": None, "label2id": {"dog": 1, "cat": 0}}],
  ],
)
def test_what_does_not_change_outputs_may_differ(changes):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sj.uniform_soup(_models(*changes))


def test_unknown_differences_are_a_warning_of_one_line_each():
  models = _models({}, {"depth_token": 1}, {"depth_token": 2, "image_size": 8})
  models[0].configs["config.json"].update(depth_token=0, image_size=4)
  with pytest.warns(UserWarning) as seen:
    sj.mix(sj.rules.linear(), models)
  about = [str(w.message) for w in seen if "differ in" in str(w.message)]
  assert len(about) == 2
  assert "'m0' and 'm1' differ in depth_token" in about[0]
  assert "'m0' and 'm2' differ in image_size" in about[1]


def test_classes_may_differ_where_no_head_is_averaged():
  models = _models({}, {"id2label": {"0": "dog", "1": "cat"}})
  for action in ("skip", (1, 0)):
    sj.mix(sj.rules.linear(), models, select={"head": action})
  base = models[1]
  sj.mix(sj.rules.linear(), models[:1], base=base, select={"head": "keep"})
  with pytest.raises(ValueError, match="output 0"):
    sj.mix(sj.rules.linear(), models, select={"head": (1, 2)})


def test_a_base_may_be_of_another_class_but_not_of_another_kind():
  models = _models({"architectures": ["A"]}, {"architectures": ["B"]})
  rule = sj.rules.task_arithmetic(0.5)
  sj.mix(rule, models[:1], base=models[1])
  with pytest.raises(ValueError, match="'m0' and 'm1' differ in architectures"):
    sj.mix(sj.rules.linear(), models)
  models[1].configs["config.json"]["hidden_act"] = "relu"
  with pytest.raises(ValueError, match="hidden_act"):
    sj.mix(rule, models[:1], base=models[1])


def test_nested_configs_are_compared():
  vision = [{"model_cfg": {"vision_cfg": {"head_width": w}}} for w in (64, 32)]
  models = _models(*vision, file="open_clip_config.json")
  with pytest.raises(ValueError, match=r"vision_cfg.head_width of the open_c"):
    sj.uniform_soup(models)


ROPE = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
  "a, b",
  [
    ({"rope_scaling": None}, {"rope_scaling": ROPE}),
    ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e6}}),
    (
      {"rope_theta": 1e4, "rope_scaling": None},
      {"rope_parameters": {"rope_theta": 1e4, **ROPE}},
    ),
  ],
)
def test_rotary_positions_are_compared_over_versions(a, b):
  with pytest.raises(ValueError, match="m0.*m1.*rope_(scaling|theta)"):
    sj.uniform_soup(_models(a, b))


@pytest.mark.parametrize(
  "a, b",
  [
    (
      {"rope_theta": 1e4, "rope_scaling": None},
      {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    ),
    (
      {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
      {"rope_parameters": {"rope_theta": 1e4, **ROPE}},
    ),
    ({}, {"pooler_act": "tanh", "rope_scaling": None}),
    ({"size": 8}, {"size": {"height": 8, "width": 8}}),
  ],
)
def test_versions_of_one_config_are_averaged_silently(a, b):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sj.uniform_soup(_models(a, b))


def test_defaults_that_openclip_leaves_out_are_compared():
  file = "open_clip_config.json"
  quick = {"model_cfg": {"quick_gelu": True}}
  with pytest.raises(ValueError, match="model_cfg.quick_gelu .* nothing.*True"):
    sj.uniform_soup(_models({"model_cfg": {}}, quick, file=file))
  pooled = {"model_cfg": {"pool_type": "avg"}}
  with pytest.warns(UserWarning, match="pool_type .* nothing and 'avg'"):
    sj.uniform_soup(_models({"model_cfg": {}}, pooled, file=file))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    quick["model_cfg"]["quick_gelu"] = False
    sj.uniform_soup(_models({"model_cfg": {}}, quick, file=file))


def test_labels_are_sorted_by_number_and_not_by_text():
  names = {str(k): f"class {k}" for k in range(11)}
  config = {"id2label": dict(sorted(names.items()))}
  assert configs.labels({"config.json": config}) == list(names.values())
  assert configs.labels({"config.json": {"id2label": {"x": "a"}}}) is None
