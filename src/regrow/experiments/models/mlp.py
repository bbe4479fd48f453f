"""The multilayer perceptron."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from regrow.experiments.models.layers import ImageShape, scaled

__all__ = ["mlp"]


def mlp(
    *, image_shape: ImageShape, classes: int, hidden: Sequence[int] = (4096, 4096), width: float = 1.0
) -> nn.Sequential:
    """Build a multilayer perceptron with ReLU on the flattened image: (N, C, H, W) to (N, classes).

    Args:
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        hidden: the width of each hidden layer; none makes a linear classifier.
        width: what these are multiplied by.

    Raises:
        ValueError: if the width leaves a layer empty.

    Example:
        >>> mlp(image_shape=(1, 8, 8), classes=10, hidden=(32,))
        Sequential(
          (flatten): Flatten(start_dim=1, end_dim=-1)
          (fc1): Linear(in_features=64, out_features=32, bias=True)
          (relu1): ReLU()
          (fc2): Linear(in_features=32, out_features=10, bias=True)
        )
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    widths = (prod(image_shape), *(scaled(units, width) for units in hidden))
    for index, (wide_in, wide_out) in enumerate(pairwise(widths), start=1):
        layers[f"fc{index}"] = nn.Linear(wide_in, wide_out)
        layers[f"relu{index}"] = nn.ReLU()
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)
