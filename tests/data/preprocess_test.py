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
from soupjax.data import image_ops, preprocess, randaug
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
    ("flip", "'flip': did you mean 'flip_lr'"),
    ("xyz(3)", "'xyz': there are central_crop, flip_lr"),
    ("resize", "'resize': missing .*'size'.* Its arguments: size"),
    ("resize(3, size=4)", "multiple values for argument 'size'"),
    ("flip_lr(rng=3)", "'flip_lr\\(rng=3\\)'.* unexpected keyword"),
    ("resize(size)", r"Cannot read 'resize\(size\)'"),
    ("resize(3).load()", "Cannot read"),
    ("__import__('os')", "'__import__'"),
    ("no_such_module.sharpen(2)", "'no_such_module.sharpen'"),
    ("os.path.join(2)", "'os.path.join' .*'image'"),
    ("resize({size})", "{size} in 'resize"),
    ("resize({3})", "'resize.*3"),
    ("resize(**{})", "Cannot read"),
    ("resize(3", "Cannot read"),
    ("resize('big')", "size is a positive int .* not 'big'"),
    ("resize(0)", "positive int"),
    ("resize((8, 0))", "positive int"),
    ("resize(8, 'cubic')", "Unknown method 'cubic': one of nearest"),
    ("inception_crop(8, area_min=0)", "areas in percent"),
    ("inception_crop(8, 50, 20)", "areas in percent"),
    ("inception_crop(8, aspect=(2, 1))", "aspect"),
    ("flip_lr(1.5)", "a probability"),
    ("flip_lr('a')", "does not work"),
    ("randaug(-1)", "num_layers"),
    ("randaug(2, 31)", r"magnitude in 0\.\.30"),
    ("value_range|flip_lr", "flip_lr comes after value_range"),
  ],
)
def test_wrong_texts_are_refused_before_any_image(text, message):
  with pytest.raises(ValueError, match=message):
    Preprocess(text)


def test_text_must_be_a_text():
  with pytest.raises(ValueError, match="Operations are a text"):
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
    with pytest.raises(CorruptImage, match="mode [FI].* save it with 8 or 16"):
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


# Operations


def test_inception_crop_takes_boxes_within_its_ranges():
  areas, ratios = [], []
  for seed in range(300):
    out = np.asarray(
      image_ops.inception_crop(
        Image.fromarray(MAP), rng(seed), 64, 20, 80, (0.5, 2.0)
      )
    ).astype(float)
    assert out.shape == (64, 64, 3)
    # From the first to the last pixel centre are 63 / 64 of the box.
    height = (out[-1, :, 0].mean() - out[0, :, 0].mean()) * 64 / 63
    width = (out[:, -1, 1].mean() - out[:, 0, 1].mean()) * 64 / 63
    areas.append(height * width / (200 * 250))
    ratios.append(width / height)
  assert 0.18 < min(areas) < 0.25 and 0.7 < max(areas) < 0.85
  assert 0.45 < min(ratios) < 0.6 and 1.6 < max(ratios) < 2.1


def test_inception_crop_of_all_is_a_resize():
  image = Image.fromarray(MAP)
  out = image_ops.inception_crop(image, rng(), (20, 30), 100, 100, (1.25, 1.25))
  np.testing.assert_array_equal(out, image_ops.resize(image, (20, 30)))
  # A box that never fits: the whole image.
  thin = Image.fromarray(MAP[:2])
  out = image_ops.inception_crop(thin, rng(), 8, 100, 100)
  np.testing.assert_array_equal(out, image_ops.resize(thin, 8))


def test_linear_takes_its_box_and_does_not_smooth():
  pytest.importorskip("cv2", reason="OpenCV is an extra")
  image = Image.fromarray(MAP)
  out = np.asarray(
    image_ops._resized(image, (10, 20), "linear", (50, 100, 70, 110))
  )
  np.testing.assert_array_equal(out, MAP[100:110, 50:70])
  # Every second column: a smoothing method would give grey.
  stripes = Image.fromarray(
    np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (8, 6, 1))
  )
  third = np.asarray(image_ops.resize(stripes, (8, 4), "linear"))
  np.testing.assert_array_equal(third[0, :, 0], [255, 0, 255, 0])


def test_linear_without_opencv_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "cv2", None)
  image_ops.opencv.cache_clear()
  with pytest.raises(ValueError, match=r"soupjax\[opencv\]"):
    Preprocess("resize(8, 'linear')")


def test_resize_small_keeps_the_aspect():
  image = Image.fromarray(MAP)
  assert image_ops.resize_small(image, 100).size == (125, 100)
  assert image_ops.resize_small(image.transpose(2), 100).size == (100, 125)
  wide = Image.fromarray(MAP[:3])
  assert image_ops.resize_small(wide, 1).size == (83, 1)


def test_central_crop_is_central_and_pads_with_black():
  out = np.asarray(image_ops.central_crop(Image.fromarray(MAP), (100, 50)))
  np.testing.assert_array_equal(out, MAP[50:150, 100:150])
  out = np.asarray(image_ops.central_crop(Image.fromarray(MAP), (220, 250)))
  np.testing.assert_array_equal(out[10:210], MAP)
  assert not out[:10].any() and not out[210:].any()


def test_random_crop_reaches_every_place():
  image = Image.fromarray(MAP[:6, :6])
  places = set()
  for seed in range(400):
    out = np.asarray(image_ops.random_crop(image, rng(seed), 4, padding=1))
    padded = np.pad(MAP[:6, :6], ((1, 1), (1, 1), (0, 0)))
    found = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(padded[y : y + 4, x : x + 4], out)
    ]
    assert len(found) == 1
    places.update(found)
  assert len(places) == 25


def test_flip():
  image = Image.fromarray(MAP)
  flipped = [
    np.array_equal(image_ops.flip_lr(image, rng(s)), MAP[:, ::-1])
    for s in range(200)
  ]
  assert 70 < sum(flipped) < 130
  np.testing.assert_array_equal(image_ops.flip_lr(image, rng(), 0.0), MAP)


def test_value_range():
  out = image_ops.value_range(Image.fromarray(MAP), -1, 1)
  np.testing.assert_allclose(out, MAP / 127.5 - 1, atol=1e-6)
  assert out.dtype == np.float32


# RandAugment


def test_no_layers_change_nothing():
  image = Image.fromarray(helpers.fake_image(0))
  assert randaug.randaug(image, rng(), 0, 30) is image


def test_every_operation_is_drawn_and_keeps_the_size(monkeypatch):
  drawn = []

  def spy(k):
    return lambda image, level, sign: drawn.append((k, level, sign)) or image

  monkeypatch.setattr(randaug, "_OPS", tuple(map(spy, range(14))))
  image = Image.fromarray(helpers.fake_image(0))
  for seed in range(200):
    randaug.randaug(image, rng(seed), 3, 15)
  assert len(drawn) == 600
  assert {k for k, _, _ in drawn} == set(range(14))
  assert {level for _, level, _ in drawn} == {1.5}
  assert {sign for _, _, sign in drawn} == {-1, 1}


def test_there_are_the_fourteen_of_the_paper():
  assert len(randaug._OPS) == 14


@pytest.mark.parametrize("k", range(14))
def test_operations_work_at_every_magnitude(k):
  pixels = helpers.fake_image(5)
  image = Image.fromarray(pixels)
  for level in (0.0, 0.5, 1.0, 3.0):
    for sign in (-1, 1):
      out = randaug._OPS[k](image, level, sign)
      assert out.size == image.size and out.mode == "RGB"
      # Only what has no strength may change an image at magnitude 0.
      if level == 0 and k not in (1, 2):
        np.testing.assert_array_equal(np.asarray(out), pixels)
      # Stretching the contrast need not change an image that has all of it.
      if level == 1 and k not in (0, 1):
        assert not np.array_equal(np.asarray(out), pixels)


def test_strengths_at_magnitude_10():
  image = Image.fromarray(MAP)
  # Posterize keeps 4 bits; all of it is solarized.
  np.testing.assert_array_equal(randaug._posterize(image, 1, 1), MAP & 0xF0)
  np.testing.assert_array_equal(randaug._solarize(image, 1, 1), 255 - MAP)
  moved = np.asarray(randaug._translate_x(image, 1, 1))
  np.testing.assert_allclose(moved[:, :130, 1], MAP[:, 112:242, 1] + 1, atol=1)
  assert (moved[:, 140:] == 128).all()
  rotated = np.asarray(randaug._rotate(image, 1, 1))
  expected = np.asarray(image.rotate(30, Image.BILINEAR, fillcolor=(128,) * 3))
  np.testing.assert_array_equal(rotated, expected)
  sheared = np.asarray(randaug._shear_x(image, 1, 1))
  row = 100
  np.testing.assert_allclose(
    sheared[row, :200, 1].astype(float), np.arange(200) + 0.3 * row, atol=1.5
  )


def test_standardize_takes_mean_and_deviation():
  image = np.full((2, 2, 3), 255, np.uint8)
  image[0, 0] = 0
  found = Preprocess('standardize("clip")')(image)
  assert found.dtype == np.float32
  mean, deviation = map(np.array, image_ops.STATISTICS["clip"])
  np.testing.assert_allclose(found[0, 0], -mean / deviation, rtol=1e-6)
  np.testing.assert_allclose(found[1, 1], (1 - mean) / deviation, rtol=1e-6)
  with pytest.raises(ValueError, match="'jft'.* clip, imagenet"):
    Preprocess('standardize("jft")')
  with pytest.raises(ValueError, match="must be last"):
    Preprocess("standardize|flip_lr")


def test_standardize_takes_statistics_of_ones_own():
  image = np.full((4, 4, 3), (51, 102, 255), np.uint8)
  found = Preprocess("standardize((0.1, 0.2, 0.5), (0.1, 0.2, 0.25))")(image)
  np.testing.assert_allclose(found[0, 0], [1, 1, 2], rtol=1e-5)
  for text in ("(0.1, 0.2), (1, 1)", "(1, 1, 1), (0, 1, 1)", "(1, 1, 1)"):
    with pytest.raises(ValueError, match="mean and a (positive )?deviation"):
      Preprocess(f"standardize({text})")
