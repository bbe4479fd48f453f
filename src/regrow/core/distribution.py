"""Distributions: how many nonzeros each layer starts with.

Each returns whole numbers that sum to exactly `round(density * weights)`, none above the size of its layer:
what a full layer cannot take is spread over the rest. Where layers have units of several weights, each gets whole
units, and if no choice of them makes that sum, it is the largest below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from regrow.core.apportion import apportion

__all__ = ["DISTRIBUTIONS", "Distribution", "erdos_renyi", "erdos_renyi_kernel", "uniform"]

Shapes = Mapping[str, Sequence[int]]
Sizes = Mapping[str, int]
Distribution = Callable[..., dict[str, int]]
"""From the shapes by name and the density to the number of nonzeros of each layer. Where units have several weights,
a third argument gives the weights in a unit of each layer, and each number is a multiple of it."""


def uniform(shapes: Shapes, density: float, unit_sizes: Sizes | None = None) -> dict[str, int]:
    """Give every layer the same density.

    Args:
        shapes: the shape of each layer's dense weight.
        density: nonzeros over all weights, in (0, 1].
        unit_sizes: weights in a unit of each layer; None means that each weight is a unit.

    Raises:
        ValueError: if `density` is outside (0, 1] or leaves a layer without a weight.

    Example:
        >>> uniform({"fc1": (300, 784), "fc2": (10, 300)}, density=0.05)
        {'fc1': 11760, 'fc2': 150}
    """
    return _distribute({name: math.prod(shape) for name, shape in shapes.items()}, shapes, density, unit_sizes)


def erdos_renyi(shapes: Shapes, density: float, unit_sizes: Sizes | None = None) -> dict[str, int]:
    """Give a layer the density in proportion to `(fan_in + fan_out) / (fan_in * fan_out)`.

    Fans count channels; the kernel of a convolution does not matter (SET, arXiv:1707.04780).

    Args:
        shapes: the shape of each layer's dense weight.
        density: nonzeros over all weights, in (0, 1].
        unit_sizes: weights in a unit of each layer; None means that each weight is a unit.

    Raises:
        ValueError: if `density` is outside (0, 1] or leaves a layer without a weight.

    Example:
        >>> erdos_renyi({"fc1": (300, 784), "fc2": (10, 300)}, density=0.05)
        {'fc1': 9261, 'fc2': 2649}
    """
    share = {name: sum(_fans(shape)) * math.prod(shape[2:]) for name, shape in shapes.items()}
    return _distribute(share, shapes, density, unit_sizes)


def erdos_renyi_kernel(shapes: Shapes, density: float, unit_sizes: Sizes | None = None) -> dict[str, int]:
    """Give a layer the density in proportion to the sum over the product of its fans and kernel sizes.

    The ERK distribution of RigL (arXiv:1911.11134): `(fan_in + fan_out + height + width) / weights` for a
    convolution; for a linear layer the same as `erdos_renyi`.

    Args:
        shapes: the shape of each layer's dense weight.
        density: nonzeros over all weights, in (0, 1].
        unit_sizes: weights in a unit of each layer; None means that each weight is a unit.

    Raises:
        ValueError: if `density` is outside (0, 1] or leaves a layer without a weight.

    Example:
        >>> erdos_renyi_kernel({"conv": (64, 32, 3, 3), "fc": (10, 64)}, density=0.2)
        {'conv': 3174, 'fc': 640}
    """
    share = {name: sum(_fans(shape)) + sum(shape[2:]) for name, shape in shapes.items()}
    return _distribute(share, shapes, density, unit_sizes)


DISTRIBUTIONS: Mapping[str, Distribution] = {
    "uniform": uniform,
    "erdos-renyi": erdos_renyi,
    "erdos-renyi-kernel": erdos_renyi_kernel,
}


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    # A vector (a bias or norm that was asked for) is a layer with a fan-in of one.
    return shape[0], shape[1] if len(shape) > 1 else 1


def _distribute(share: Mapping[str, float], shapes: Shapes, density: float, unit_sizes: Sizes | None) -> dict[str, int]:
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is outside (0, 1]: it is the share of weights to keep")
    sizes = dict.fromkeys(shapes, 1) if unit_sizes is None else unit_sizes
    room = {name: math.prod(shape) for name, shape in shapes.items()}
    weights = sum(room.values())
    counts = apportion(round(density * weights), share, room, sizes)
    empty = next((name for name, count in counts.items() if count == 0), None)
    if empty is not None:
        enough = math.ceil(sum(share.values()) * max(sizes[name] / share[name] for name in share)) / weights
        enough = _round_up(enough)
        # to make the sum, units of several sizes may have been exchanged for a layer's only one
        while enough < 1 and not all(apportion(round(enough * weights), share, room, sizes).values()):
            enough = _round_up(1.1 * enough)
        kind = "weights" if sizes[empty] == 1 else "units"
        raise ValueError(
            f"density {density:g} is too small to leave layer {empty!r} one of its {room[empty] // sizes[empty]} "
            f"{kind}: take {enough:g} or more, or keep that layer dense"
        )
    return counts


def _round_up(value: float) -> float:
    """Round up to two significant digits, for a message."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return min(math.ceil(value / digit) * digit, 1.0)
