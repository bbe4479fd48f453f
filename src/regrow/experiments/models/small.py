"""The width at which a network has as few weights as a sparse one: the dense network to hold it against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regrow.convert.eligible import eligible
from regrow.experiments.errors import UserError
from regrow.experiments.models import build
from regrow.experiments.models.layers import ImageShape

__all__ = ["Small", "small_dense"]

_STEPS = 30


@dataclass(frozen=True)
class Small:
    """A network of another width.

    Attributes:
        width: what `width` is in the options of its builder.
        weights: how many weights it has that might be sparse.
        of: how many the network has whose width it has scaled.
    """

    width: float
    weights: int
    of: int


def small_dense(
    name: str,
    density: float,
    *,
    image_shape: ImageShape,
    classes: int,
    options: Mapping[str, object],
    keep_dense: Sequence[str] = (),
) -> Small:
    """Find the width at which a dense network has as many weights as the sparse one, or as nearly as any width.

    Biases and norms count in neither. Of two widths as near the smaller counts.

    Args:
        name: of the model.
        density: of the sparse network.
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        options: of the model's builder, its own `width` among them.
        keep_dense: weights that the sparse network has dense: all of them count there.

    Raises:
        UserError: if the model cannot be built.

    Example:
        >>> small_dense("lenet300-100", 0.05, image_shape=(1, 28, 28), classes=10, options={})
        Small(width=0.056, weights=13490, of=266200)
    """
    start: Any = options.get("width", 1.0)  # the builder says if it is none

    def weights(width: float, dense: Sequence[str] = ()) -> int:
        """Return how many weights might be sparse; 0 where no network is that narrow."""
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                model = build(name, image_shape=image_shape, classes=classes, **{**options, "width": width})
        except UserError:
            if width == start:
                raise
            return 0
        return sum(slot.weight.numel() for slot in eligible(model, (), dense))

    every = weights(start)
    sparse = weights(start, keep_dense)
    wanted = round(density * sparse) + every - sparse
    low, high = 0.0, start
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if weights(middle) >= wanted else (middle, high)
    found = min((abs(weights(width) - wanted), width) for width in (low, high) if weights(width))[1]
    width = _shortest(found, weights)
    return Small(width, weights(width), every)


def _shortest(width: float, weights: Callable[[float], int]) -> float:
    """Return the width of the fewest digits among those that give the same network."""
    for digits in range(1, 18):
        for near in (0.0, 10**-digits, -(10**-digits)):
            short = round(width + near, digits)
            if short > 0 and weights(short) == weights(width):
                return short
    return width
