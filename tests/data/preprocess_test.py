# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import io
import pickle
import sys

import helpers
import numpy as np
from PIL import Image
import pytest

from soupjax import data
from soupjax.data import image_ops, preprocess
from soupjax.data.preprocess import CorruptImage, Preprocess


def rng(seed=0):
  return np.random.default_rng(seed)


# The y coordinate in red, x in green: shows where each pixel came from.
Y, X = np.mgrid[:200, :250].astype(np.uint8)
MAP = np.stack([Y, X, np.zeros_like(X)], axis=-1)


# The text


@pytest.mark.parametrize(
  "text,message",
  [
    ("flip", "'flip'.*'flip_lr'"),
    ("xyz(3)", "'xyz'.*central_crop.*flip_lr"),
    ("resize", "'resize'.*'size'"),
    ("resize(3, size=4)", "'size'"),
    ("flip_lr(rng=3)", "'flip_lr\\(rng=3\\)'"),
    ("resize(size)", r"'resize\(size\)'"),
    ("resize(3).load()", "Cannot read"),
    ("__import__('os')", "'__import__'"),
    ("no_such_module.sharpen(2)", "'no_such_module.sharpen'"),
    ("os.path.join(2)", "'os.path.join' .*'image'"),
    ("resize({size})", "{size} in 'resize"),
    ("resize({3})", "'resize.*3"),
    ("resize(**{})", "Cannot read"),
    ("resize(3", "Cannot read"),
    ("resize('big')", "size.*'big'"),
    ("resize(0)", "positive int"),
    ("resize((8, 0))", "positive int"),
    ("resize(8, 'cubic')", "'cubic'"),
    ("inception_crop(8, area_min=0)", "areas in percent"),
    ("inception_crop(8, 50, 20)", "areas in percent"),
    ("inception_crop(8, aspect=(2, 1))", "aspect"),
    ("flip_lr(1.5)", "a probability"),
    ("flip_lr('a')", "does not work"),
    ("randaug(-1)", "num_layers"),
    ("randaug_linear(2, 31)", "magnitude.*30"),
    ("randaug(2, 31)", "magnitude.*30"),
    ("value_range|flip_lr", "flip_lr.*value_range"),
  ],
)
def test_wrong_texts_are_refused_before_any_image(text, message):
  with pytest.raises(ValueError, match=message):
    Preprocess(text)


def test_text_must_be_a_text():
  with pytest.raises(ValueError, match="text"):
    Preprocess(["resize(3)"])


def test_a_chain():
  chain = Preprocess(" resize((10, 20)) | flip_lr(1.0)|value_range(0, 1) ")
  assert chain.random_ops == ("flip_lr",)
  out = chain(MAP, rng())
  assert out.shape == (10, 20, 3) and out.dtype == np.float32
  expected = Image.fromarray(MAP).resize((20, 10), Image.BILINEAR)
  np.testing.assert_allclose(
    out, np.asarray(expected)[:, ::-1] / 255, atol=1e-6
  )
  again = pickle.loads(pickle.dumps(chain))
  np.testing.assert_array_equal(again(MAP, rng()), out)


def test_operations_of_ones_own(tmp_path, monkeypatch):
  (tmp_path / "image_ops_for_test.py").write_text(
    "import numpy as np\n"
    "def shift(amount, image, rng):\n"
    "  return np.asarray(image) + np.uint8(amount)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  chain = Preprocess("image_ops_for_test.shift(2)")
  np.testing.assert_array_equal(chain(MAP, rng()), MAP + 2)
  assert chain.random_ops == ("image_ops_for_test.shift",)

  monkeypatch.setattr(image_ops.OPS, "_members", dict(image_ops.OPS._members))

  @data.image_op
  def invert(image):
    return 255 - np.asarray(image)

  np.testing.assert_array_equal(Preprocess("invert")(MAP), 255 - MAP)
  with pytest.raises(ValueError, match="'invert'"):
    data.image_op(lambda image: image, name="invert")


def test_without_operations_only_decodes():
  chain = Preprocess("")
  assert not chain.random_ops
  np.testing.assert_array_equal(chain(MAP), MAP)
  png = helpers.encoded_image(3, "PNG")
  np.testing.assert_array_equal(chain(png), helpers.fake_image(3))


# Decoding


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_everything_becomes_rgb(mode):
  file = io.BytesIO()
  image = Image.fromarray(helpers.fake_image(0)).convert(mode)
  image.save(file, "TIFF")
  out = Preprocess("")(file.getvalue())
  np.testing.assert_array_equal(out, np.asarray(image.convert("RGB")))
  assert out.shape == (20, 24, 3) and out.dtype == np.uint8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("opencv", [False, True])
def test_sixteen_bits_keep_their_upper_eight(kind, opencv):
  pixels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  out = np.asarray(preprocess.decode(file.getvalue(), opencv=opencv))
  assert out.shape == (8, 8, 3) and out.dtype == np.uint8
  np.testing.assert_array_equal(out, np.stack([pixels >> 8] * 3, axis=-1))


@pytest.mark.parametrize("high", [254.0, 300.0])
def test_floats_and_wide_integers_have_no_range_and_are_refused(high):
  for dtype in (np.float32, np.int32):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), high, dtype)).save(file, "TIFF")
    with pytest.raises(CorruptImage, match="mode [FI]"):
      Preprocess("")(file.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_damage_is_a_corrupt_image_whatever_the_format(kind):
  whole = helpers.encoded_image(1, kind)
  preprocess.decode(whole)
  for damaged in (whole[: len(whole) // 2], whole[:9], b"", b"<html>"):
    with pytest.raises(CorruptImage):
      preprocess.decode(damaged)


# Decoding with OpenCV, where an array will do


@pytest.fixture
def opencv():
  return pytest.importorskip("cv2", reason="OpenCV is an extra")


def jpeg(size=(47, 33), mode="RGB", **options):
  """A picture with noise in it, so that all frequencies are there."""
  pixels = rng().integers(0, 256, (33, 47, 3), dtype=np.uint8)
  image = Image.fromarray(pixels).resize(size, Image.BICUBIC)
  file = io.BytesIO()
  image.convert(mode).save(file, "JPEG", **options)
  return file.getvalue()


def turned():
  exif = Image.Exif()
  exif[0x0112] = 6
  return jpeg(exif=exif)


PLAIN = [
  *(
    jpeg(size, quality=quality, subsampling=subsampling)
    for size in ((1, 1), (7, 5), (16, 16), (47, 33))
    for quality in (1, 75, 100)
    for subsampling in (0, 1, 2)
  ),
  jpeg(keep_rgb=True),
  jpeg(restart_marker_blocks=2),
  turned(),
]


@pytest.mark.parametrize("encoded", PLAIN, ids=range(len(PLAIN)))
def test_opencv_gives_the_pixels_that_pillow_gives(opencv, encoded):
  pixels = preprocess.decode(encoded, opencv=True)
  assert isinstance(pixels, np.ndarray)
  np.testing.assert_array_equal(pixels, preprocess.decode(encoded))


def test_what_is_no_plain_jpeg_is_left_to_pillow(opencv):
  for encoded in (
    helpers.encoded_image(1, "PNG"),
    jpeg(mode="L"),
    jpeg(mode="CMYK"),
    jpeg(progressive=True),
    jpeg() + b"more",
    jpeg() + jpeg(),
    b"P6 2 1 255\n" + bytes(4) + b"\xff\xd9",  # Ends as a JPEG does.
  ):
    image = preprocess.decode(encoded, opencv=True)
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    np.testing.assert_array_equal(image, preprocess.decode(encoded))


@pytest.mark.parametrize("progressive", [False, True])
def test_linear_notices_a_jpeg_cut_off_anywhere(opencv, progressive):
  # The end of the thumbnail and of the comment look like the end of the file.
  whole = jpeg(
    exif=b"Exif\0\0" + jpeg((8, 6)),
    comment=b"\xff\xd9",
    progressive=progressive,
  )
  chain = Preprocess("resize(8, 'linear')")
  chain(whole)
  for size in range(len(whole)):
    with pytest.raises(CorruptImage):
      chain(whole[:size])


def test_opencv_refuses_the_broken_jpegs_that_pillow_refuses(opencv):
  def outcome(encoded, **options):
    try:
      return np.asarray(preprocess.decode(encoded, **options)).tobytes()
    except CorruptImage:
      return None

  whole = jpeg((200, 150), quality=95)
  refused = 0
  for seed in range(100):
    start = int(rng(seed).integers(700, len(whole) - 300))
    broken = whole[:start] + rng(seed).bytes(256) + whole[start + 256 :]
    expected = outcome(broken)
    assert outcome(broken, opencv=True) == expected
    refused += expected is None
  assert 20 < refused < 80


@pytest.mark.parametrize(
  "text",
  [
    "inception_crop(24, method='linear')|flip_lr|value_range",
    "resize_small(30, 'linear')|central_crop(28)",
    "resize(12, 'linear')|central_crop((16, 8))|flip_lr(1.0)",
    "random_crop(28, 4)|resize(16, 'linear')|random_crop(12)",
    "flip_lr(1.0)|resize(16, 'linear')|resize_small(9)",
    "resize(24, 'linear')|randaug(2, 9)|inception_crop(8, method='linear')",
    "inception_crop(16)|resize(8, 'linear')",
  ],
)
def test_arrays_and_pillow_images_come_out_the_same(opencv, text):
  chain, by_pillow = Preprocess(text), Preprocess(text)
  by_pillow._opencv = False
  grey = np.broadcast_to(MAP[..., :1], MAP.shape)  # As sources give it.
  for image in (jpeg(), turned(), MAP, grey, helpers.encoded_image(2, "PNG")):
    for seed in range(4):
      out = chain(image, rng(seed))
      expected = by_pillow(image, rng(seed))
      assert out.dtype == expected.dtype
      np.testing.assert_array_equal(out, expected)


def test_other_methods_do_without_opencv(monkeypatch):
  monkeypatch.setitem(sys.modules, "cv2", None)
  image_ops.opencv.cache_clear()
  chain = Preprocess("inception_crop(16)|flip_lr(1.0)|resize(8)")
  for image in (jpeg(), MAP):
    assert chain(image, rng()).shape == (8, 8, 3)
