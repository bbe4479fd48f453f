"""Residual networks for ImageNet (He et al., Deep Residual Learning for Image Recognition, 2016).

Parameters are named as in torchvision, so that its checkpoints load.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from regrow.experiments.models.layers import ImageShape, scaled, with_head

__all__ = ["BasicBlock", "Bottleneck", "resnet18", "resnet50"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in, H, W) to (N, out, H/s, W/s).

    Args:
        channels_in: planes of the input.
        channels_out: planes of the output.
        stride: stride of the first convolution and of the shortcut.
        zero_gamma: start the last norm's scale at 0.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, zero_gamma: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)
        self.relu2 = nn.ReLU()
        if zero_gamma:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to `x`."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        residual += self.downsample(x)
        out: Tensor = self.relu2(residual)
        return out


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut: (N, in, H, W) to (N, out, H/s, W/s).

    Args:
        channels_in: planes of the input.
        channels_out: planes of the output; a quarter of them lie between the convolutions.
        stride: stride of the block and of its shortcut.
        version: `v1` strides in the first convolution, `v1.5` in the second.
        zero_gamma: start the last norm's scale at 0.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        *,
        version: Literal["v1", "v1.5"],
        zero_gamma: bool,
    ) -> None:
        super().__init__()
        planes = max(channels_out // 4, 1)
        first, second = (stride, 1) if version == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(channels_in, planes, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(planes, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)
        self.relu3 = nn.ReLU()
        if zero_gamma:
            nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to `x`."""
        active = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(active)))))
        residual += self.downsample(x)
        out: Tensor = self.relu3(residual)
        return out


Stem = Literal["imagenet", "cifar"]
"""How a network begins: a 7x7 convolution and a pool that halve the image twice, or a 3x3 one that keeps its size."""


def resnet18(
    *,
    image_shape: ImageShape,
    classes: int,
    stem: Stem = "imagenet",
    zero_gamma: bool = False,
    width: float = 1.0,
) -> nn.Sequential:
    """Build ResNet-18: (N, C, H, W) to (N, classes).

    Args:
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        stem: `imagenet`, as in the paper, or `cifar` for images of 32 pixels, which the other takes to single ones.
        zero_gamma: start each block as the identity, its last norm's scale at 0 (Goyal et al., 2017).
        width: what the planes of every convolution are multiplied by.

    Raises:
        ValueError: for an unknown `stem`, or if the width leaves no planes.
    """
    if stem not in get_args(Stem):
        raise ValueError(f"stem must be imagenet or cifar; it is {stem!r}")
    block = partial(BasicBlock, zero_gamma=zero_gamma)
    begin = _cifar_stem if stem == "cifar" else _imagenet_stem
    channels = image_shape[0]
    return _resnet(block, (64, 128, 256, 512), (2, 2, 2, 2), begin, channels=channels, classes=classes, width=width)


def resnet50(
    *,
    image_shape: ImageShape,
    classes: int,
    version: Literal["v1", "v1.5"] = "v1.5",
    zero_gamma: bool = False,
    width: float = 1.0,
) -> nn.Sequential:
    """Build ResNet-50: (N, C, H, W) to (N, classes).

    Args:
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        version: where a bottleneck strides: `v1`, as in the paper, in its first 1x1 convolution, which skips
            three quarters of its input; `v1.5`, as in most published training runs, in its 3x3 convolution.
        zero_gamma: start each block as the identity, its last norm's scale at 0 (Goyal et al., 2017).
        width: what the planes of every convolution are multiplied by.

    Raises:
        ValueError: for an unknown `version`, or if the width leaves no planes.
    """
    if version not in ("v1", "v1.5"):
        raise ValueError(f"version must be v1 or v1.5; it is {version!r}")
    block = partial(Bottleneck, version=version, zero_gamma=zero_gamma)
    widths, channels = (256, 512, 1024, 2048), image_shape[0]
    return _resnet(block, widths, (3, 4, 6, 3), _imagenet_stem, channels=channels, classes=classes, width=width)


def _imagenet_stem(channels: int, planes: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(channels, planes, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(planes),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )


def _cifar_stem(channels: int, planes: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(channels, planes, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(planes), relu=nn.ReLU()
    )


def _resnet(
    block: Callable[[int, int, int], nn.Module],
    widths: Sequence[int],
    depths: Sequence[int],
    begin: Callable[[int, int], OrderedDict[str, nn.Module]],
    *,
    channels: int,
    classes: int,
    width: float,
) -> nn.Sequential:
    """Build a stem, groups of `depths[i]` blocks of `widths[i]` planes, and the classifier."""
    stem = scaled(64, width)
    layers, channels = begin(channels, stem), stem
    for index, (published, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        planes = scaled(published, width)
        # The first group keeps the size that the stem gives.
        stride = 1 if index == 1 else 2
        layers[f"layer{index}"] = nn.Sequential(
            block(channels, planes, stride), *(block(planes, planes, 1) for _ in range(depth - 1))
        )
        channels = planes
    return with_head(layers, channels, classes, pool="avgpool")


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Return the identity where a block keeps its shape, else a 1x1 convolution and a norm."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
    )
