"""VGG-16 for small images, in three variants."""

from collections import OrderedDict
from typing import Literal

from torch import nn

from regrow.experiments.models.layers import ImageShape, after_window, scaled

__all__ = ["vgg16"]

# Planes and number of convolutions of each group; a 2x2 max-pool ends the group.
_GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_HIDDEN = 512


def vgg16(
    variant: Literal["c", "d", "like"], /, *, image_shape: ImageShape, classes: int, width: float = 1.0
) -> nn.Sequential:
    """Build a VGG-16 with norms and a small classifier: (N, C, H, W) to (N, classes).

    Thirteen convolutions with bias, each followed by a norm and ReLU, then hidden layers of 512, each
    followed by ReLU and a norm. Weights and biases keep PyTorch's default initialisation. Simonyan & Zisserman,
    Very Deep Convolutional Networks, 2015; the variants: Lee et al., SNIP, 2019.

    Args:
        variant: `d` has 3x3 convolutions only and two hidden layers; `c` ends its last three groups with
            a 1x1 convolution; `like` is `d` with one hidden layer.
        image_shape: channels, height and width of one input; `d` and `like` need at least 32x32.
        classes: the number of logits.
        width: what the planes of every convolution and the hidden layers are multiplied by.

    Raises:
        ValueError: if the images are too small, or the width leaves no planes.
    """
    channels, size = image_shape[0], image_shape[1:]
    hidden = scaled(_HIDDEN, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for group, (published, count) in enumerate(_GROUPS, start=1):
        planes = scaled(published, width)
        for index in range(1, count + 1):
            # C pads its 1x1 convolutions too, as published: they widen the map by 2, so a 32x32 image ends as
            # 2x2 (8, 10, pool 5, 7, pool 3, 5, pool 2) where the other variants end as 1x1.
            kernel = 1 if variant == "c" and index == 3 else 3
            layers[f"conv{group}_{index}"] = nn.Conv2d(channels, planes, kernel, padding=1)
            layers[f"bn{group}_{index}"] = nn.BatchNorm2d(planes)
            layers[f"relu{group}_{index}"] = nn.ReLU()
            size = after_window(size, kernel=kernel, padding=1)
            channels = planes
        layers[f"pool{group}"] = nn.MaxPool2d(2)
        size = after_window(size, kernel=2, stride=2)
    layers["flatten"] = nn.Flatten()
    features = channels * size[0] * size[1]
    last = 7 if variant == "like" else 8
    for index in range(6, last):
        layers[f"fc{index}"] = nn.Linear(features, hidden)
        layers[f"relu{index}"] = nn.ReLU()
        layers[f"bn{index}"] = nn.BatchNorm1d(hidden)
        features = hidden
    layers[f"fc{last}"] = nn.Linear(features, classes)
    return nn.Sequential(layers)
