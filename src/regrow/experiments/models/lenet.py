"""The two LeNets of the pruning literature (LeCun et al., Gradient-Based Learning, 1998)."""

from collections import OrderedDict

from torch import nn

from regrow.experiments.models.layers import ImageShape, after_window
from regrow.experiments.models.mlp import mlp

__all__ = ["lenet5", "lenet300_100"]


def lenet300_100(*, image_shape: ImageShape, classes: int) -> nn.Sequential:
    """Build LeNet-300-100, a perceptron with hidden layers of 300 and 100: (N, C, H, W) to (N, classes)."""
    return mlp(image_shape=image_shape, classes=classes, hidden=(300, 100))


def lenet5(*, image_shape: ImageShape, classes: int) -> nn.Sequential:
    """Build LeNet-5 in the Caffe version that papers on pruning use: (N, C, H, W) to (N, classes).

    Two 5x5 convolutions of 20 and 50 planes without padding, each with ReLU and a 2x2 max-pool, then a hidden
    layer of 500.
    """
    channels, height, width = image_shape
    for _ in range(2):
        convolved = after_window((height, width), kernel=5)
        height, width = after_window(convolved, kernel=2, stride=2)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 20, 5),
            # pooling first: the same function as ReLU first, with a quarter of the activations to go through
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * height * width, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )
