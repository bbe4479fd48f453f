"""The two LeNets of the pruning literature (LeCun et al., Gradient-Based Learning, 1998)."""

from collections import OrderedDict

from torch import nn

from regrow.experiments.models.layers import ImageShape, after_window, scaled
from regrow.experiments.models.mlp import mlp

__all__ = ["lenet5", "lenet300_100"]


def lenet300_100(*, image_shape: ImageShape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Build LeNet-300-100, a perceptron: (N, C, H, W) to (N, classes).

    Its hidden layers have 300 and 100 units; `width` multiplies them.
    """
    return mlp(image_shape=image_shape, classes=classes, hidden=(300, 100), width=width)


def lenet5(*, image_shape: ImageShape, classes: int, width: float = 1.0) -> nn.Sequential:
    """Build LeNet-5 in the Caffe version that papers on pruning use: (N, C, H, W) to (N, classes).

    Two 5x5 convolutions of 20 and 50 planes without padding, each with ReLU and a 2x2 max-pool, then a hidden
    layer of 500; `width` multiplies them.
    """
    channels, rows, columns = image_shape
    first, second, hidden = (scaled(planes, width) for planes in (20, 50, 500))
    for _ in range(2):
        convolved = after_window((rows, columns), kernel=5)
        rows, columns = after_window(convolved, kernel=2, stride=2)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, first, 5),
            # pooling first: the same function as ReLU first, with a quarter of the activations to go through
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * rows * columns, hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )
