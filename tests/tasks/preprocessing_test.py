# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files beside checkpoints are read as their libraries mean them."""

import io
import json

import numpy as np
from PIL import Image
import pytest
import torch_models

from soupjax import data
from soupjax.tasks import preprocessing

PREPARED = {
  "do_resize": True,
  "size": {"height": 8, "width": 8},
  "resample": 3,
  "do_normalize": True,
  "image_mean": [0.4, 0.4, 0.4],
  "image_std": [0.2, 0.2, 0.2],
}
IMAGENET = {
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
}
CLIP = {
  "image_mean": [0.48145466, 0.4578275, 0.40821073],
  "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SHORTEST = 'resize_small({}, "{}")|central_crop({}, like="transformers")|{}'
# As OpenAI's CLIP had it before sizes were dicts.
OLD_CLIP = {
  "feature_extractor_type": "CLIPFeatureExtractor",
  **{"do_resize": True, "size": 10, "resample": 3},
  **{"do_center_crop": True, "crop_size": 8, "do_normalize": True},
  **CLIP,
}
TIMM = {
  "input_size": [3, 8, 8],
  "mean": [0.485, 0.456, 0.406],
  "std": [0.229, 0.224, 0.225],
  "interpolation": "bicubic",
  "crop_pct": 0.9,
}
OPENCLIP = {
  "mean": CLIP["image_mean"],
  "std": CLIP["image_std"],
  "interpolation": "bicubic",
  "resize_mode": "shortest",
}


def write(path, **contents):
  """Writes files by name without .json; returns the path as text."""
  for name, content in contents.items():
    (path / f"{name}.json").write_text(json.dumps(content))
  return str(path)


def openclip(image_size=8, **changes):
  vision = {"image_size": image_size, "width": 8}
  return {
    "model_cfg": {"vision_cfg": vision},
    "preprocess_cfg": {**OPENCLIP, **changes},
  }


def timm(**changes):
  return {"architecture": "vit", "pretrained_cfg": {**TIMM, **changes}}


@pytest.mark.parametrize(
  "values, expected",
  [
    (PREPARED, 'resize(8, "bicubic")|value_range(-2, 3)'),
    (
      {
        "do_resize": True,
        "size": {"shortest_edge": 9},
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
        "do_normalize": True,
        **IMAGENET,
      },
      SHORTEST.format(9, "bilinear", 8, 'standardize("imagenet")'),
    ),
    ({"do_resize": True, "size": 8}, 'resize(8, "bilinear")|value_range(0, 1)'),
    (
      {**PREPARED, "do_rescale": False},
      'resize(8, "bicubic")|value_range(-2, 1273)',
    ),
    (
      {**PREPARED, "rescale_factor": 1 / 127.5},
      'resize(8, "bicubic")|value_range(-2, 8)',
    ),
    (
      {**PREPARED, "rescale_factor": 0.00392157},
      'resize(8, "bicubic")|value_range(-2, 3)',
    ),
    ({**PREPARED, "resample": 5}, 'resize(8, "hamming")|value_range(-2, 3)'),
    (
      {**PREPARED, "image_mean": [0.1, 0.2, 0.3]},
      'resize(8, "bicubic")|standardize((0.1, 0.2, 0.3), (0.2, 0.2, 0.2))',
    ),
    (OLD_CLIP, SHORTEST.format(10, "bicubic", 8, 'standardize("clip")')),
    (
      {**OLD_CLIP, "feature_extractor_type": "DeiTFeatureExtractor"},
      'resize(10, "bicubic")|central_crop(8, like="transformers")|'
      'standardize("clip")',
    ),
    # What a file leaves out is that of its class.
    (
      {"image_processor_type": "CLIPImageProcessorFast"},
      SHORTEST.format(224, "bicubic", 224, 'standardize("clip")'),
    ),
    (
      {"image_processor_type": "ViTImageProcessor", "do_pad": None},
      'resize(224, "bilinear")|value_range(-1, 1)',
    ),
  ],
)
def test_transformers(tmp_path, values, expected):
  path = write(tmp_path, preprocessor_config=values)
  text = preprocessing.of_files(path)
  assert text == expected
  data.Preprocess(text)
  # transformers 5 keeps the same values in the file of the whole processor.
  (tmp_path / "preprocessor_config.json").unlink()
  nested = {"processor_class": "CLIPProcessor", "image_processor": values}
  write(tmp_path, processor_config=nested)
  assert preprocessing.of_files(path) == expected


def test_a_number_as_size_means_what_the_model_means(tmp_path):
  values = {k: v for k, v in OLD_CLIP.items() if "type" not in k}
  path = write(tmp_path, preprocessor_config=values)
  with pytest.raises(ValueError, match="size=10.*image_processor_type"):
    preprocessing.of_files(path)
  write(tmp_path, config={"model_type": "clip"})
  assert preprocessing.of_files(path).startswith("resize_small(10")
  write(tmp_path, config={"model_type": "deit"})
  assert preprocessing.of_files(path).startswith("resize(10")


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({}, 'resize_small(8, "bicubic")|central_crop(8)|standardize("imagenet")'),
    (
      {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "lanczos"},
      'resize(8, "lanczos")|standardize("imagenet")',
    ),
    (
      {"crop_mode": "squash", "crop_pct": 0.8},
      'resize(10, "bicubic")|central_crop(8)|standardize("imagenet")',
    ),
    (
      {"crop_mode": "border", "mean": [0.5] * 3, "std": [0.5] * 3},
      'resize_ratio(8, "bicubic", longest=True)|'
      "central_crop(8, fill=(128, 128, 128))|value_range(-1, 1)",
    ),
    (
      {"input_size": [3, 8, 12]},
      'resize_ratio((8, 13), "bicubic")|central_crop((8, 12))|'
      'standardize("imagenet")',
    ),
  ],
)
def test_timm(tmp_path, changes, expected):
  path = write(tmp_path, config=timm(**changes))
  assert preprocessing.of_files(path) == expected
  data.Preprocess(expected)
  # Before timm 0.9 all keys were in one dict.
  write(tmp_path, config={"architecture": "vit", **TIMM, **changes})
  assert preprocessing.of_files(path) == expected


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({}, 'resize_small(8, "bicubic")|central_crop(8)|standardize("clip")'),
    (
      {"resize_mode": "squash", "interpolation": "bilinear", "mean": 0.5}
      | {"std": 0.5},
      'resize(8, "bilinear")|value_range(-1, 1)',
    ),
    (
      {"resize_mode": "longest", "fill_color": 7},
      'resize_ratio(8, "bicubic", longest=True)|central_crop(8, fill=7)|'
      'standardize("clip")',
    ),
  ],
)
def test_openclip(tmp_path, changes, expected):
  path = write(tmp_path, open_clip_config=openclip(**changes))
  assert preprocessing.of_files(path) == expected
  data.Preprocess(expected)


@pytest.mark.parametrize(
  "contents, message",
  [
    ({"resample": 9}, "resample=9.*bicubic"),
    ({"image_mean": [0.5]*2}, "image_mean=.0.5, 0.5.*three channels"),
    ({"image_mean": "0.5"}, "image_mean='0.5'"),
    ({"image_std": [0, 1, 1]}, "image_std"),
    ({"rescale_factor": 0}, "rescale_factor=0"),
    ({"size": {"longest_edge": 8}}, "longest_edge"),
    ({"size": {"shortest_edge": 8, "longest_edge": 9}}, "longest_edge"),
    ({"size": {"height": 8}}, "size=.*height and a width"),
    ({"size": "8"}, "size='8'"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order=True"),
    ({"do_pad": True}, "do_pad=True"),
    ({"crop_pct": 0.9}, "crop_pct=0.9"),
    ({"rescale_offset": True}, "rescale_offset"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNext.*ViT"),
  ],
)  # fmt: skip
def test_values_of_transformers_that_cannot_be_followed(
  tmp_path, contents, message
):
  path = write(tmp_path, preprocessor_config={**PREPARED, **contents})
  with pytest.raises(ValueError, match=f"preprocessor_config.json.*{message}"):
    preprocessing.of_files(path)


@pytest.mark.parametrize(
  "file, content, message",
  [
    ("config", timm(crop_mode="corner"), "crop_mode='corner'.*border"),
    ("config", timm(interpolation="random"), "interpolation='random'"),
    ("config", timm(input_size=[1, 8, 8]), "input_size"),
    ("config", timm(mean=None), "pretrained_cfg.mean=None"),
    ("open_clip_config", openclip(resize_mode="pad"), "resize_mode='pad'"),
    ("open_clip_config", openclip(mode="L"), "preprocess_cfg.mode='L'"),
    ("open_clip_config", openclip(interpolation="box"), "interpolation='box'"),
    ("open_clip_config", {"model_cfg": 3}, "model_cfg=3"),
    ("processor_config", {"image_processor": [1]}, "image_processor=.1."),
  ],
)
def test_values_of_others_that_cannot_be_followed(
  tmp_path, file, content, message
):
  path = write(tmp_path, **{file: content})
  with pytest.raises(ValueError, match=f"{file}.json.*{message}"):
    preprocessing.of_files(path)


def test_files_that_describe_no_images(tmp_path):
  path = write(
    tmp_path, config={"model_type": "vit"},
    processor_config={"processor_class": "CLIPProcessor"},
  )  # fmt: skip
  assert preprocessing.of_files(path) is None
  assert preprocessing.of_files("") is None


def test_files_that_contradict_each_other(tmp_path):
  path = write(
    tmp_path, preprocessor_config={**OLD_CLIP, "size": 8},
    processor_config={"image_processor": {**OLD_CLIP, "size": 8}},
    open_clip_config=openclip(),
  )  # fmt: skip
  assert preprocessing.of_files(path) == SHORTEST.format(
    8, "bicubic", 8, 'standardize("clip")'
  )
  # Odd margins are those of the family's library.
  assert "transformers" not in preprocessing.of_files(path, "openclip")
  write(tmp_path, processor_config={"image_processor": OLD_CLIP})
  with pytest.raises(ValueError, match="preprocessor_config.*processor_config"):
    preprocessing.of_files(path)
  (tmp_path / "processor_config.json").unlink()
  write(tmp_path, open_clip_config=openclip(mean=[0.5] * 3))
  with pytest.raises(ValueError, match="open_clip_config"):
    preprocessing.of_files(path)
  # timm's smaller crop of the same model is no contradiction, its mean is one.
  clip = {"mean": CLIP["image_mean"], "std": CLIP["image_std"]}
  write(tmp_path, config=timm(**clip), open_clip_config=openclip())
  assert preprocessing.of_files(path, "timm") == (
    'resize_small(8, "bicubic")|central_crop(8)|standardize("clip")'
  )
  write(tmp_path, config=timm())
  with pytest.raises(ValueError, match="/config.json"):
    preprocessing.of_files(path, "timm")


def test_our_own_runs_record_it(tmp_path):
  write(
    tmp_path, config={
      "task": "finetune",
      "data": {"eval_ops": "resize({image_size})|value_range", "image_size": 8},
    },
  )  # fmt: skip
  for place in ("initial", "ingredients/last", "member_000/ingredients/last"):
    path = str(tmp_path / place)
    assert preprocessing.recorded(path) == "resize(8)|value_range"
  write(tmp_path, config={"task": "mix"})
  assert preprocessing.recorded(str(tmp_path / "initial")) is None


# --- Against the libraries ----------------------------------------------------


def _picture():
  """Smooth and with noise, so that every rounding shows."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
  pixels = np.asarray(small.resize((120, 120), Image.BICUBIC)).copy()
  pixels[::3, ::2] = rng.integers(0, 256, (40, 60, 3))
  return pixels


PICTURE = _picture()


def photo(height, width, start=0):
  return np.ascontiguousarray(PICTURE[start:, start:][:height, :width])


SIZES = [
  (int(h), int(w))
  for h, w in np.random.default_rng(0).integers(5, 60, (200, 2))
] + [(8, 8), (9, 8), (8, 10), (7, 30), (30, 7), (11, 11)]


def worst(ops, transform):
  """The largest difference over `SIZES`."""
  chain, largest = data.Preprocess(ops), 0.0
  for height, width in SIZES:
    pixels = photo(height, width)
    theirs = np.asarray(transform(Image.fromarray(pixels)))
    ours = chain(pixels).transpose(2, 0, 1)
    assert ours.shape == theirs.shape, (height, width)
    largest = max(largest, np.abs(ours - theirs).max())
  return largest


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"interpolation": "bilinear", "crop_pct": None},
    {"interpolation": "lanczos", "crop_pct": 1.0},
    {"crop_mode": "squash", "crop_pct": 0.8},
    {"crop_mode": "border", "crop_pct": 0.95},
    {"crop_mode": "border", "crop_pct": 1.0, "interpolation": "nearest"},
    {"input_size": (3, 9, 13)},
    {"input_size": (3, 9, 13), "crop_mode": "squash"},
    {"input_size": (3, 15, 15), "crop_pct": 0.5},
  ],
)
def test_pixels_are_those_of_timm(tmp_path, changes):
  library = torch_models.package("timm").data
  config = library.resolve_data_config(pretrained_cfg={**TIMM, **changes})
  transform = library.create_transform(**config)
  path = write(tmp_path, config=timm(**changes))
  assert worst(preprocessing.of_files(path), transform) < 1e-6


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"interpolation": "bilinear", "mean": 0.5, "std": 0.5},
    {"resize_mode": "squash"},
    {"resize_mode": "longest"},
    {"resize_mode": "longest", "fill_color": 120, "size": (9, 13)},
    {"size": (13, 9)},
  ],
)
def test_pixels_are_those_of_openclip(tmp_path, changes):
  library = torch_models.package("open_clip").transform
  size = changes.get("size", 9)
  cfg = library.merge_preprocess_dict(
    library.PreprocessCfg(), {**OPENCLIP, **changes, "size": size}
  )
  transform = library.image_transform_v2(
    library.PreprocessCfg(**cfg), is_train=False
  )
  content = openclip(size, **changes)
  path = write(tmp_path, open_clip_config=content)
  assert worst(preprocessing.of_files(path), transform) < 1e-6


@pytest.mark.parametrize(
  "kind, changes",
  [
    ("vit", {"size": {"height": 9, "width": 9}}),
    ("vit", {"size": {"height": 9, "width": 7}, "resample": 1, **IMAGENET}),
    ("vit", {"size": {"height": 9, "width": 9}, "do_rescale": False}),
    ("vit", {"size": {"height": 9, "width": 9}, "rescale_factor": 1 / 127.5}),
    ("vit", {"size": {"height": 9, "width": 9}, "do_normalize": False}),
    ("vit", {"size": {"height": 9, "width": 9}, "resample": 5}),
    ("clip", {"size": {"shortest_edge": 9}, "crop_size": 9}),
    ("clip", {"size": {"shortest_edge": 12}, "crop_size": 9}),
    ("clip", {"size": {"shortest_edge": 9}, "crop_size": 12, "resample": 2}),
    ("clip", {"do_resize": False, "crop_size": 20}),
    ("deit", {"size": {"height": 14, "width": 14}, "crop_size": 9}),
    ("siglip", {"size": {"height": 9, "width": 9}}),
    ("bit", {"size": {"shortest_edge": 10}, "crop_size": 9, **IMAGENET}),
  ],
)
def test_pixels_are_those_of_transformers(tmp_path, kind, changes):
  torch_models.package("transformers")
  import importlib

  module = f"transformers.models.{kind}.image_processing_pil_{kind}"
  try:
    module = importlib.import_module(module)
  except ImportError:
    pytest.skip("needs transformers 5")
  (name,) = (n for n in module.__all__)
  processor = getattr(module, name)(**changes)
  processor.save_pretrained(tmp_path)

  def transform(image):
    return processor(image, do_convert_rgb=True)["pixel_values"][0]

  ops = preprocessing.of_files(str(tmp_path))
  assert worst(ops, transform) < 1e-6 * (255 if "0, 255" in ops else 1)


@pytest.mark.parametrize(
  "mode, kind",
  [
    *((m, "PNG") for m in ("L", "LA", "RGBA", "P", "1")),
    *(("CMYK", "JPEG"), ("RGB", "JPEG"), ("L", "JPEG"), ("RGBA", "WEBP")),
  ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_other_modes_become_rgb_as_in_torchvision(mode, kind, orientation):
  file, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = orientation
  image = Image.fromarray(photo(20, 30)).convert(mode)
  if mode == "RGBA":
    image.putalpha(Image.fromarray(photo(20, 30, 1)[..., 0]))
  if mode == "P":
    image.info["transparency"] = 0
  image.save(file, kind, exif=exif)
  # torchvision's loader of images, which timm has, too.
  expected = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
  ours = data.Preprocess("")(file.getvalue())
  np.testing.assert_array_equal(ours, np.asarray(expected))
