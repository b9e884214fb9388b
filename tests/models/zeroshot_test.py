"""Zero-shot heads against OpenCLIP's."""

import json

import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.models import CLIP, pretrained, zeroshot

TEXT = {"vocab_size": 40, "context_length": 32, "width": 8, "depth": 1}
TEXT |= {"num_heads": 2, "proj_size": 6, "causal": True, "pool_type": "argmax"}
IMAGE = {"width": 8, "depth": 1, "num_heads": 2, "patch_size": 4}
NAMES = ["cat", "ox", "hedgehog", "polar bear", "ant"]
TEMPLATES = ["a photo of a {}.", "{}", "the {} in the snow"]


class Letters:
  """A tokenizer of letters, as OpenCLIP calls one, and as we do."""

  vocab_size, end, source = 40, 39, "letters"

  def __call__(self, texts):
    tokens = np.zeros((len(texts), 32), np.int32)
    for row, text in zip(tokens, texts):
      ids = [38, *(ord(c) % 37 for c in text), 39]
      row[: len(ids)] = ids
    return tokens


def clip(**text):
  return CLIP({**IMAGE, "proj_size": 6}, {**TEXT, **text})


def params_of(model, seed=0):
  rng = np.random.default_rng(seed)
  images = np.zeros((1, 8, 8, 3), np.float32)
  tokens = np.zeros((1, 32), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype) / 4, shapes["params"]
  )


def test_the_head_equals_that_of_openclip():
  model_of = torch_models.package("open_clip.model")
  torch = torch_models.torch()
  torch_model = model_of.CLIP(
    embed_dim=6,
    vision_cfg={
      "layers": 1,
      "width": 8,
      "head_width": 4,
      "patch_size": 4,
      "image_size": 8,
    },
    text_cfg={
      "context_length": 32,
      "vocab_size": 40,
      "width": 8,
      "heads": 2,
      "layers": 1,
    },
  )
  torch_models.randomize(torch_model)
  leaves = {k: v.numpy() for k, v in torch_model.state_dict().items()}
  source = sj.Ingredient.from_params("x", leaves)
  options = pretrained.detect(source, text=True).options
  text = {**options["text"], "num_heads": 2, "act": "gelu_exact"}
  image = {**options["image"], "num_heads": 2, "act": "gelu_exact"}
  model = CLIP(image, text)
  params = pretrained.load_pretrained(source, model)
  build = torch_models.package(
    "open_clip.zero_shot_classifier"
  ).build_zero_shot_classifier
  expected = build(
    torch_model,
    lambda texts: torch.from_numpy(Letters()(texts)).long(),
    NAMES,
    TEMPLATES,
  )
  scale = torch_model.logit_scale.exp().item()
  for batch_size in (1, 6, 100):
    kernel = zeroshot.zeroshot_head(
      model, params, NAMES, TEMPLATES, Letters(), batch_size=batch_size
    )
    np.testing.assert_allclose(kernel / scale, expected.numpy(), atol=1e-5)


def test_tokens_after_the_end_are_not_computed():
  short = zeroshot.prompt_tokens(clip(), Letters(), ["ox"], ["{}"])
  assert short.shape == (1, 1, 8)
  last = clip(pool_type="last", causal=False)
  assert zeroshot.prompt_tokens(last, Letters(), ["ox"], ["{}"]).shape[2] == 32


def test_a_head_is_made_once(tmp_path, monkeypatch):
  model, params = clip(), params_of(clip())

  def head(params=params, names=NAMES, templates=TEMPLATES):
    return zeroshot.zeroshot_head(
      model, params, names, templates, Letters(), cache=tmp_path
    )

  kernel = head()
  other = jax.tree.map(lambda x: x + 1, params)
  for changed in (
    {"params": {**params, "txt": other["txt"]}},
    {"params": {**params, "t": other["t"]}},
    {"names": NAMES[::-1]},
    {"templates": TEMPLATES[:1]},
  ):
    assert not np.array_equal(head(**changed), kernel)
  assert len(list(tmp_path.iterdir())) == 5
  monkeypatch.setattr(zeroshot, "kernel_of", None)
  np.testing.assert_array_equal(head(), kernel)
  # The image tower does not matter.
  head(params={**params, "img": other["img"]})


@pytest.mark.parametrize(
  "names, message",
  [
    (["cat"], "has 1 names.*2 classes"),
    (["cat", "cat"], r"'cat' is the name of classes \[0, 1\]"),
    (["cat", " "], "class 1 is ' '"),
    (["cat", "17"], "class 1 is the number '17'"),
    (["cat", "n01440764"], "class 1 is the number 'n01440764'"),
    (["cat", 17], "class 1 is 17"),
  ],
)
def test_names_that_cannot_be_used(names, message):
  with pytest.raises(ValueError, match=f"file.*{message}"):
    zeroshot.check_names(names, 2, "file")


@pytest.mark.parametrize(
  "templates", [[], "a {}", ["a {}", "a cat"], ["{} {}"], [3]]
)
def test_templates_that_cannot_be_used(templates):
  with pytest.raises(ValueError, match="templates"):
    zeroshot.check_templates(templates)


def test_another_vocabulary():
  model, params = clip(vocab_size=41), params_of(clip(vocab_size=41))
  with pytest.raises(ValueError, match="letters has 40.*41 rows"):
    zeroshot.zeroshot_head(model, params, NAMES, TEMPLATES, Letters())
  model = clip(pool_type="eos", eos_id=2)
  with pytest.raises(ValueError, match="token 39.*pools token 2"):
    zeroshot.zeroshot_head(model, params, NAMES, TEMPLATES, Letters())


def test_lists_of_openclip(monkeypatch):
  torch_models.package("open_clip")
  names = zeroshot.read_list("open_clip:imagenet", "x")
  zeroshot.check_names(names, 1000)
  templates = zeroshot.read_list("open_clip:openai", "x")
  zeroshot.check_templates(templates)
  assert (len(names), len(templates)) == (1000, 80)
  monkeypatch.setattr(zeroshot.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(ValueError, match="open_clip:openai.*open_clip_torch"):
    zeroshot.read_list("open_clip:openai", "zeroshot.templates")


def test_lists(tmp_path):
  (tmp_path / "a.txt").write_text("cat\nox\n\n")
  (tmp_path / "a.json").write_text('{"0": "cat", "1": "ox"}')
  for name in ("a.txt", "a.json"):
    assert zeroshot.read_list(str(tmp_path / name), "x") == ["cat", "ox"]
  assert zeroshot.read_list(("a", "b"), "x") == ["a", "b"]
  many = {str(k): f"class {k}" for k in range(12)}
  file = tmp_path / "b.json"
  file.write_text(json.dumps(many, sort_keys=True))
  assert zeroshot.read_list(str(file), "x") == list(many.values())
  file.write_text('{"cat": "a cat", "1": "ox"}')
  with pytest.raises(ValueError, match="b.json.*keys.*'cat'.*give a list"):
    zeroshot.read_list(str(file), "x")
  for source in ("missing", "open_clip:missing"):
    with pytest.raises(ValueError, match=f"zeroshot.names='{source}'"):
      zeroshot.read_list(source, "zeroshot.names")
