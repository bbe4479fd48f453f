"""AlexNet, reduced for small images."""

from collections import OrderedDict

from torch import nn

from regrow.experiments.models.layers import ImageShape, after_window

__all__ = ["alexnet"]

# Planes, kernel and padding of each convolution; all have stride 2 and stand in for the pools too.
_CONVOLUTIONS = ((96, 11, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1))


def alexnet(hidden: int, /, *, image_shape: ImageShape, classes: int) -> nn.Sequential:
    """Build the AlexNet for CIFAR of the pruning literature: (N, C, H, W) to (N, classes).

    Five strided convolutions and two hidden layers, each with a norm and ReLU. Weights keep PyTorch's default
    initialisation. Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, 2012;
    this form: Lee et al., SNIP, 2019.

    Args:
        hidden: the width of the two hidden layers: 1024 in AlexNet-s, 2048 in AlexNet-b.
        image_shape: channels, height and width of one input.
        classes: the number of logits.
    """
    channels, height, width = image_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (planes, kernel, padding) in enumerate(_CONVOLUTIONS, start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, planes, kernel, stride=2, padding=padding)
        layers[f"bn{index}"] = nn.BatchNorm2d(planes)
        layers[f"relu{index}"] = nn.ReLU()
        height, width = after_window((height, width), kernel=kernel, stride=2, padding=padding)
        channels = planes
    layers["flatten"] = nn.Flatten()
    features = channels * height * width
    for index in (6, 7):
        layers[f"fc{index}"] = nn.Linear(features, hidden)
        layers[f"bn{index}"] = nn.BatchNorm1d(hidden)
        layers[f"relu{index}"] = nn.ReLU()
        features = hidden
    layers["fc8"] = nn.Linear(features, classes)
    return nn.Sequential(layers)
