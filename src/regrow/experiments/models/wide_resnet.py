"""Wide residual networks (Zagoruyko & Komodakis, Wide Residual Networks, 2016)."""

from collections import OrderedDict

from torch import Tensor, nn

from regrow.experiments.models.layers import ImageShape, scaled, with_head

__all__ = ["WideBlock", "wide_resnet"]


class WideBlock(nn.Module):
    """Two 3x3 convolutions behind their norm and ReLU, and a shortcut: (N, in, H, W) to (N, out, H/s, W/s).

    Args:
        channels_in: planes of the input.
        channels_out: planes of the output.
        stride: stride of the first convolution and of the shortcut.
        dropout: the share of activations dropped between the convolutions.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            if stride != 1 or channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to `x`."""
        active = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))
        # Where the shape changes, the shortcut starts behind the first norm and ReLU.
        residual += x if self.shortcut is None else self.shortcut(active)
        return residual


def wide_resnet(
    depth: int, widen: int, /, *, image_shape: ImageShape, classes: int, dropout: float = 0.3, width: float = 1.0
) -> nn.Sequential:
    """Build the wide residual network WRN-`depth`-`widen`: (N, C, H, W) to (N, classes).

    Convolutions start from Kaiming's normal with fan-out, the classifier's bias at zero.

    Args:
        depth: the number of convolutions, shortcuts aside, and the classifier: 4 more than a multiple of 6.
        widen: the factor on the planes (16, 32, 64) of the three groups.
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        dropout: the share of activations dropped between the two convolutions of a block.
        width: what the planes of every convolution are multiplied by, those of the first one too.

    Raises:
        ValueError: if no network has this `depth`, or the width leaves no planes.
    """
    blocks, remainder = divmod(depth - 4, 6)
    if blocks < 1 or remainder:
        raise ValueError(f"depth must be 4 more than a multiple of 6, such as 16 or 28; it is {depth}")
    channels = scaled(16, width)
    layers = OrderedDict[str, nn.Module](conv1=nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False))
    for group, (planes, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        channels_in, channels = channels, scaled(planes * widen, width)
        layers[f"group{group}"] = nn.Sequential(
            WideBlock(channels_in, channels, stride=stride, dropout=dropout),
            *(WideBlock(channels, channels, stride=1, dropout=dropout) for _ in range(blocks - 1)),
        )
    layers["bn"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    model = with_head(layers, channels, classes)
    nn.init.zeros_(model.get_submodule("fc").get_parameter("bias"))
    return model
