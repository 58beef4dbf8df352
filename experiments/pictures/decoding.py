"""From an encoded image to pixels: decoded, cropped to a square, resized."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from experiments.pictures.sources import Source

CROPS = {
  "celeb_a": 108 / 178,  # 108 of 178 x 218 pixels: the usual crop, around the face
  "lsun": 1.0,
}
"""The side of the central square that is kept, relative to the image's shorter side."""


def decode(encoded: bytes, *, size: int, crop: float = 1.0) -> np.ndarray:
  """Decodes an image, crops it to its central square and resizes that.

  The side of the square is round(crop * shorter side), and at least 1. If a margin is
  odd, the larger half is cut off at the right or at the bottom. Pillow's bicubic
  filter resizes; it widens when it shrinks an image, which avoids aliasing.

  Args:
    encoded: the bytes of a file that Pillow reads; grey and palette images become RGB.
    size: the side of the result, in pixels.
    crop: in (0, 1]. 108/178 for CelebA: 108 x 108 of 178 x 218 pixels, as in Radford
      et al. (2016), or the same fraction of images of other sizes.

  Returns: uint8 [size, size, 3].
  """
  with Image.open(io.BytesIO(encoded)) as image:
    width, height = image.size
    side = max(1, round(crop * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
  return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def crop_of(name: str) -> float | None:
  """The entry of `CROPS` for a tfds name; None: its images are not cropped."""
  return CROPS.get(name.split(":")[0].split("/")[0])


class DecodedImages:
  """The decoded images of a `Source` by index, as a data source of grain.

  Args:
    source: the encoded images.
    size: as in `decode`.
    crop: as in `decode`.
  """

  def __init__(self, source: Source, size: int, crop: float):
    self._source, self._size, self._crop = source, size, crop
    self.shape = (size, size, 3)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> np.ndarray:
    encoded = self._source[index]
    try:
      return decode(encoded, size=self._size, crop=self._crop)
    except Exception as error:  # Pillow's decoders raise many kinds
      raise ValueError(
        f"image {index} of {self._source.where} cannot be decoded: {error}"
      ) from error
