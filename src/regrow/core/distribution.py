"""Distributions: how many nonzeros each layer starts with.

Each returns whole numbers that sum to exactly `round(density * weights)`, none above the size of its layer:
what a full layer cannot take is spread over the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from regrow.core.redistribute import apportion

Shapes = Mapping[str, Sequence[int]]
Distribution = Callable[[Shapes, float], dict[str, int]]


def uniform(shapes: Shapes, density: float) -> dict[str, int]:
    """Give every layer the same density.

    Args:
        shapes: the shape of each layer's dense weight.
        density: nonzeros over all weights, in (0, 1].

    Raises:
        ValueError: if `density` is outside (0, 1] or leaves a layer without a weight.

    Example:
        >>> uniform({"fc1": (300, 784), "fc2": (10, 300)}, density=0.05)
        {'fc1': 11760, 'fc2': 150}
    """
    return _distribute({name: math.prod(shape) for name, shape in shapes.items()}, shapes, density)


def erdos_renyi(shapes: Shapes, density: float) -> dict[str, int]:
    """Give a layer the density in proportion to `(fan_in + fan_out) / (fan_in * fan_out)`.

    Fans count channels; the kernel of a convolution does not matter (SET, arXiv:1707.04780).

    Args:
        shapes: the shape of each layer's dense weight.
        density: nonzeros over all weights, in (0, 1].

    Raises:
        ValueError: if `density` is outside (0, 1] or leaves a layer without a weight.

    Example:
        >>> erdos_renyi({"fc1": (300, 784), "fc2": (10, 300)}, density=0.05)
        {'fc1': 9261, 'fc2': 2649}
    """
    share = {name: sum(_fans(shape)) * math.prod(shape[2:]) for name, shape in shapes.items()}
    return _distribute(share, shapes, density)


def erdos_renyi_kernel(shapes: Shapes, density: float) -> dict[str, int]:
    """Give a layer the density in proportion to the sum over the product of its fans and kernel sizes.

    The ERK distribution of RigL (arXiv:1911.11134): `(fan_in + fan_out + height + width) / weights` for a
    convolution; for a linear layer the same as `erdos_renyi`.

    Args:
        shapes: the shape of each layer's dense weight.
        density: nonzeros over all weights, in (0, 1].

    Raises:
        ValueError: if `density` is outside (0, 1] or leaves a layer without a weight.

    Example:
        >>> erdos_renyi_kernel({"conv": (64, 32, 3, 3), "fc": (10, 64)}, density=0.2)
        {'conv': 3174, 'fc': 640}
    """
    share = {name: sum(_fans(shape)) + sum(shape[2:]) for name, shape in shapes.items()}
    return _distribute(share, shapes, density)


DISTRIBUTIONS: Mapping[str, Distribution] = {
    "uniform": uniform,
    "erdos-renyi": erdos_renyi,
    "erdos-renyi-kernel": erdos_renyi_kernel,
}


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    # A vector (a bias or norm that was asked for) is a layer with a fan-in of one.
    return shape[0], shape[1] if len(shape) > 1 else 1


def _distribute(share: Mapping[str, float], shapes: Shapes, density: float) -> dict[str, int]:
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is outside (0, 1]: it is the share of weights to keep")
    room = {name: math.prod(shape) for name, shape in shapes.items()}
    weights = sum(room.values())
    counts = apportion(round(density * weights), share, room)
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        enough = math.ceil(sum(share.values()) / min(share.values())) / weights
        raise ValueError(
            f"density {density:g} is too small to leave layer {empty[0]!r} one of its {room[empty[0]]} weights: "
            f"take {_round_up(enough):g} or more, or keep that layer dense"
        )
    return counts


def _round_up(value: float) -> float:
    """Round up to two significant digits, for a message."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return min(math.ceil(value / digit) * digit, 1.0)
