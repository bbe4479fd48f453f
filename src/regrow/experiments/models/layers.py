"""What several families of models share."""

from collections import OrderedDict
from typing import TypeAlias

from torch import nn

__all__ = ["ImageShape", "after_window", "kaiming_convolutions", "scaled", "with_head"]

ImageShape: TypeAlias = tuple[int, int, int]
"""Channels, height and width."""


def after_window(size: tuple[int, int], *, kernel: int, stride: int = 1, padding: int = 0) -> tuple[int, int]:
    """Return the height and width that a convolution or a pool leaves of a map of this `size`.

    Raises:
        ValueError: if the window does not fit into the padded map.

    Example:
        >>> after_window((32, 32), kernel=11, stride=2, padding=2)
        (13, 13)
    """
    height, width = ((extent + 2 * padding - kernel) // stride + 1 for extent in size)
    if min(height, width) < 1:
        raise ValueError(f"the images are too small; a {kernel}x{kernel} window meets a map of {size[0]}x{size[1]}")
    return height, width


def kaiming_convolutions(model: nn.Module) -> None:
    """Draw every convolution's weight of `model` from Kaiming's normal with fan-out, and zero its bias.

    Fan-out keeps the gradient's scale through a stack of ReLUs. Norms already start at scale 1 and shift 0,
    and linear layers keep PyTorch's default. He et al., Delving Deep into Rectifiers, 2015.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def scaled(planes: int, width: float) -> int:
    """Return how many planes are left of some in a network of another width.

    Args:
        planes: those of the network as published.
        width: what they are multiplied by; halves go to the even number.

    Raises:
        ValueError: if none is left.

    Example:
        >>> scaled(64, 0.5)
        32
    """
    if width == 1:
        return planes  # whatever it is: layers say themselves what they cannot be
    found = round(planes * width)
    if found < 1:
        raise ValueError(f"width {width:g} leaves none of {planes} planes: take a larger one; 1 is the network itself")
    return found


def with_head(layers: OrderedDict[str, nn.Module], channels: int, classes: int, *, pool: str = "pool") -> nn.Sequential:
    """Return a network of these layers, a mean over the image and a linear layer, its convolutions drawn anew.

    Args:
        layers: the layers by name; the last ones are added to them.
        channels: those that the layers end with.
        classes: the number of logits.
        pool: name of the mean over the image.
    """
    layers[pool] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    model = nn.Sequential(layers)
    kaiming_convolutions(model)
    return model
