"""Decoded images, compared with bicubic interpolation in NumPy."""

import io

import numpy as np
import PIL.Image
import pytest

from experiments.pictures import decoding
from tests.experiments.pictures.examples import assert_resized, encoded, noise


@pytest.mark.parametrize(
  ("height", "width", "crop", "box"),
  [
    (218, 178, 108 / 178, (55, 163, 35, 143)),  # CelebA's
    (109, 89, 108 / 178, (27, 81, 17, 71)),  # at half size: 54 of 89
    (6, 9, 1.0, (0, 6, 1, 7)),  # an odd margin: the larger half is at the right
    (9, 6, 1.0, (1, 7, 0, 6)),
    (7, 7, 1.0, (0, 7, 0, 7)),
    (5, 8, 0.01, (2, 3, 3, 4)),  # at least one pixel
  ],
)
@pytest.mark.parametrize("size", [None, 4, 16])
def test_decode_crops_the_central_square_and_resizes_it(height, width, crop, box, size):
  image = noise(height, width, 3)
  top, bottom, left, right = box
  square = image[top:bottom, left:right]
  size = size or len(square)  # None: only the crop
  got = decoding.decode(encoded(image), size=size, crop=crop)
  assert got.shape == (size, size, 3)
  if size == len(square):
    np.testing.assert_array_equal(got, square)
  assert_resized(got, square)


def test_a_fine_pattern_does_not_alias():
  """Stripes of one pixel become grey; a filter of fixed width would keep stripes."""
  stripes = np.zeros((60, 60, 3), np.uint8)
  stripes[:, ::2] = 255
  got = decoding.decode(encoded(stripes), size=17)
  inside = got[:, 1:-1].astype(float)
  assert np.abs(inside - 127.5).max() < 16


def test_grey_palette_and_alpha_images_become_rgb():
  grey = noise(8, 8)
  want = np.stack([grey] * 3, axis=-1)
  np.testing.assert_array_equal(decoding.decode(encoded(grey), size=8), want)
  file = io.BytesIO()
  PIL.Image.fromarray(grey).convert("P").save(file, "png")
  np.testing.assert_array_equal(decoding.decode(file.getvalue(), size=8), want)
  opaque = np.dstack([want, np.full((8, 8), 255, np.uint8)])
  np.testing.assert_array_equal(decoding.decode(encoded(opaque), size=8), want)
