# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the options of the text tower from the config of another library."""

from typing import Any

from soupjax.models.pretrained import architectures, configs

_count, _flag, _epsilon = configs._count, configs._flag, configs._epsilon
_act, _choice, _only_key = configs._act, configs._choice, configs._only_key


def _token(reader, key, value) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise reader.refuse(key, value, ", which should be a token id.")
  return value


_TRANSFORMERS = configs.Keys(
  obeyed={
    "hidden_size": ("width", _count),
    "num_hidden_layers": ("depth", _count),
    "intermediate_size": ("mlp_dim", _count),
    "num_attention_heads": ("num_heads", _count),
    "layer_norm_eps": ("norm_eps", _epsilon),
    "hidden_act": ("act", _act),
    "vocab_size": ("vocab_size", _count),
    "max_position_embeddings": ("context_length", _count),
    "eos_token_id": ("eos_id", _token),
  },
  only={"model_type": ("clip_text_model", "siglip_text_model")},
  free=architectures.TRANSFORMERS_FREE,
)
_TEXT = configs.Keys(
  obeyed={
    "width": ("width", _count),
    "layers": ("depth", _count),
    "heads": ("num_heads", _count),
    "context_length": ("context_length", _count),
    "vocab_size": ("vocab_size", _count),
    "no_causal_mask": ("bidirectional", _flag),
    "eos_id": ("eos_id", _token),
    "pool_type": (
      "pool_type",
      _choice({k: k for k in ("argmax", "last", "first", "eos")}, "pool_type"),
    ),
    "norm_kwargs": ("norm_eps", _only_key("eps", _epsilon)),
    "act_kwargs": (
      "approximate",
      _only_key(
        "approximate",
        _choice({"none": "gelu_exact", "tanh": "gelu"}, "approximation"),
      ),
    ),
  },
  only={"block_type": ("default",)},
  free="mlp_ratio|pad_id|proj_(type|bias)|output_tokens|hf_tokenizer_name|"
  "tokenizer_(mode|kwargs)|final_ln_after_pool|hf_(proj|pooler)_type|"
  "hf_model_pretrained",
)
_TEXT_DEFAULTS = {
  "num_heads": 8,
  "pool_type": "argmax",
  "norm_eps": 1e-5,
  "bidirectional": False,
}


def read(said: configs.Said) -> dict[str, Any]:
  """Returns the options of `models.Text` that a config gives.

  Args:
    said: the config, as `configs.read` returns it.

  Raises:
    ValueError: if `models.Text` does not support a key or value.
  """
  if said.path is None:
    return {}
  reader = configs._Reader(said.path)
  if "model_cfg" in said.config:
    return _of_openclip(said, reader.at("model_cfg"))
  if "text_config" in said.config or "text_config_dict" in said.config:
    return _of_transformers(said, reader)
  return {}


def _of_transformers(said, reader) -> dict[str, Any]:
  model = architectures.transformers_model(said.config)
  text = {
    **reader.mapping(said.config, "text_config"),
    # The second overrides the first, as in transformers.
    **reader.mapping(said.config, "text_config_dict"),
  }
  given = reader.at("text_config").options(text, _TRANSFORMERS)
  siglip = model.family == "hf_siglip"
  defaults = {k: model.defaults[k] for k in ("act", "norm_eps")}
  options = {**defaults, "num_heads": 12 if siglip else 8, **given}
  eos = options.pop("eos_id", 49407)
  if siglip:
    return {**options, "pool_type": "last", "causal": False}
  options["causal"] = True
  # Old configs have this id by mistake; transformers then pools as OpenAI does.
  if eos == 2:
    return {**options, "pool_type": "argmax"}
  return {**options, "pool_type": "eos", "eos_id": eos}


def _of_openclip(said, reader) -> dict[str, Any]:
  model = reader.mapping(said.config, "model_cfg")
  text = reader.mapping(model, "text_cfg")
  reader = reader.at("model_cfg.text_cfg")
  if text.get("hf_model_name"):
    raise reader.refuse(
      "hf_model_name",
      text["hf_model_name"],
      ", a text tower of transformers that soupjax does not support: it "
      "supports those of OpenAI's CLIP, OpenCLIP, SigLIP and big_vision.",
    )
  if "multimodal_cfg" in model:
    raise reader.refuse(
      "multimodal_cfg", "...", ": soupjax does not support CoCa."
    )
  options = {**_TEXT_DEFAULTS, **reader.options(text, _TEXT)}
  options["causal"] = not options.pop("bidirectional")
  approximate = options.pop("approximate", None)
  quick = bool(model.get("quick_gelu"))
  if quick and approximate:
    raise reader.refuse(
      "act_kwargs", text["act_kwargs"], ", which quick_gelu does not accept."
    )
  options["act"] = "quick_gelu" if quick else approximate or "gelu_exact"
  if options["pool_type"] == "eos":
    options.setdefault("eos_id", 2)
  else:
    options.pop("eos_id", None)
  return {k: v for k, v in options.items() if v is not None}
