"""Augmentation: on a whole batch of tensors at once, or the choice of a box to crop out of one image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Border", "Box", "centre_box", "crop_flip", "random_box"]

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels."""

Border = Literal["zeros", "reflect"]
"""What lies beyond the edge of an image."""

_PADDING: Mapping[Border, str] = {"zeros": "constant", "reflect": "reflect"}


def crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4, border: Border = "zeros") -> Tensor:
    """Shift each image by up to `padding` pixels each way, and mirror half of them.

    Args:
        images: (N, C, H, W), float.
        generator: on the CPU; draws an offset down and across, and a coin, for each image.
        padding: pixels; where the border reflects, fewer than the images have a side.
        border: what comes in there: zeros, which are the mean if the images are normalised, or the image mirrored.

    Returns:
        (N, C, H, W).

    >>> x = torch.ones(2, 1, 8, 8)
    >>> crop_flip(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    count, channels, height, width = images.shape
    offset = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirror = torch.rand(count, 1, generator=generator) < 0.5
    across = torch.arange(width)
    rows = offset[0] + torch.arange(height)  # (N, H)
    columns = offset[1] + torch.where(mirror, across.flip(0), across)  # (N, W)
    source = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(count, 1, -1)
    padded = F.pad(images, (padding,) * 4, mode=_PADDING[border]).flatten(2)
    picked = padded.gather(2, source.to(images.device).expand(-1, channels, -1))
    return picked.view(count, channels, height, width)


def random_box(width: int, height: int, generator: np.random.Generator) -> Box:
    """A box of 8 to 100 % of the area, 3/4 to 4/3 as wide as high, anywhere in the image.

    Ten tries; then the largest box in the middle whose sides are within that ratio.
    """
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, upper = generator.integers(width - wide + 1), generator.integers(height - high + 1)
            return float(left), float(upper), float(left + wide), float(upper + high)
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return _middle(width, height, wide, high)


def centre_box(width: int, height: int, size: int) -> Box:
    """The square in the middle that is `size` pixels a side once the image's short side is `size` * 256 / 224.

    >>> centre_box(256, 512, 224)
    (16.0, 144.0, 240.0, 368.0)
    """
    side = min(width, height) * size / round(size * 256 / 224)
    return _middle(width, height, side, side)


def _middle(width: int, height: int, wide: float, high: float) -> Box:
    left, upper = (width - wide) / 2, (height - high) / 2
    return left, upper, left + wide, upper + high
