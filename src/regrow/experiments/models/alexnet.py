"""AlexNet, reduced for small images."""

from collections import OrderedDict

from torch import nn

from regrow.experiments.models.layers import ImageShape, after_window, scaled

__all__ = ["alexnet"]

# Planes, kernel and padding of each convolution; all have stride 2 and stand in for the pools too.
_CONVOLUTIONS = ((96, 11, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1))


def alexnet(hidden: int, /, *, image_shape: ImageShape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Build the AlexNet for CIFAR of the pruning literature: (N, C, H, W) to (N, classes).

    Five strided convolutions and two hidden layers, each with a norm and ReLU. Weights keep PyTorch's default
    initialisation. Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, 2012;
    this form: Lee et al., SNIP, 2019.

    Args:
        hidden: the width of the two hidden layers: 1024 in AlexNet-s, 2048 in AlexNet-b.
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        width: what the planes of every convolution and the hidden layers are multiplied by.

    Raises:
        ValueError: if the images are too small, or the width leaves no planes.
    """
    channels, rows, columns = image_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (published, kernel, padding) in enumerate(_CONVOLUTIONS, start=1):
        planes = scaled(published, width)
        layers[f"conv{index}"] = nn.Conv2d(channels, planes, kernel, stride=2, padding=padding)
        layers[f"bn{index}"] = nn.BatchNorm2d(planes)
        layers[f"relu{index}"] = nn.ReLU()
        rows, columns = after_window((rows, columns), kernel=kernel, stride=2, padding=padding)
        channels = planes
    layers["flatten"] = nn.Flatten()
    features, hidden = channels * rows * columns, scaled(hidden, width)
    for index in (6, 7):
        layers[f"fc{index}"] = nn.Linear(features, hidden)
        layers[f"bn{index}"] = nn.BatchNorm1d(hidden)
        layers[f"relu{index}"] = nn.ReLU()
        features = hidden
    layers["fc8"] = nn.Linear(features, classes)
    return nn.Sequential(layers)
