"""A small VGG for studies with many runs on the CPU."""

from collections import OrderedDict

from torch import nn

from regrow.experiments.models.layers import ImageShape, after_window, scaled, with_head

__all__ = ["vgg_small"]

# Planes and number of convolutions of each group; a 2x2 max-pool stands between groups.
_GROUPS = ((16, 1), (32, 1), (64, 2), (128, 2))


def vgg_small(*, image_shape: ImageShape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Build a network of six 3x3 convolutions with norm and ReLU, and mean pooling: (N, C, H, W) to (N, classes).

    Args:
        image_shape: channels, height and width of one input, at least 8x8.
        classes: the number of logits.
        width: what the planes of every convolution are multiplied by.

    Raises:
        ValueError: if the images are too small, or the width leaves no planes.
    """
    channels, size = image_shape[0], image_shape[1:]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for group, (published, count) in enumerate(_GROUPS, start=1):
        planes = scaled(published, width)
        if group > 1:
            layers[f"pool{group - 1}"] = nn.MaxPool2d(2)
            size = after_window(size, kernel=2, stride=2)
        for index in range(1, count + 1):
            layers[f"conv{group}_{index}"] = nn.Conv2d(channels, planes, 3, padding=1, bias=False)
            layers[f"bn{group}_{index}"] = nn.BatchNorm2d(planes)
            layers[f"relu{group}_{index}"] = nn.ReLU()
            channels = planes
    return with_head(layers, channels, classes)
