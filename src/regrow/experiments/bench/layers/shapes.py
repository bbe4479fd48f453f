"""The layers that are measured: the distinct ones of real networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from regrow.experiments.bench.layers.problem import Shape
from regrow.experiments.errors import UserError
from regrow.experiments.models import build

__all__ = ["NETWORKS", "TOKENS", "shapes"]

TOKENS = 2048


def shapes(networks: Iterable[str] = (), containing: str = "") -> list[Shape]:
    """Return the registered layers.

    Args:
        networks: which networks, in the order of the registry; none means all.
        containing: only layers whose network and name hold this text, as `vgg16-d 512-512`.

    Raises:
        UserError: for an unknown network, or when no layer is left.

    Example:
        >>> [str(shape) for shape in shapes(["linear"])]
        ['1024-4096']
    """
    chosen = set(networks)
    if unknown := chosen - set(NETWORKS):
        raise UserError(f"no network is called {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    every = [shape for name in NETWORKS if name in chosen or not chosen for shape in _layers(name)]
    found = [shape for shape in every if containing in f"{shape.network} {shape}"]
    if not found:
        raise UserError(f"no layer's name holds {containing!r}; names are as {every[0].network} {every[0]}")
    return found


def _layers(network: str) -> list[Shape]:
    return list(dict.fromkeys(NETWORKS[network]()))


def _of_model(network: str, image: tuple[int, int, int], batch: int, kind: type[nn.Module]) -> list[Shape]:
    """Return the layers of one type of a model, in the order in which a batch meets them; nothing is computed."""
    found: list[Shape] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], _: object) -> None:
        if isinstance(module, nn.Conv2d):
            found.append(
                Shape(network, module.in_channels, module.out_channels, batch, module.kernel_size[0],
                      inputs[0].shape[-1], module.stride[0], int(module.padding[0]))
            )  # fmt: skip
        elif isinstance(module, nn.Linear):
            found.append(Shape(network, module.in_features, module.out_features, batch))

    with torch.device("meta"):
        model = build(network, image_shape=image, classes=10)
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(note)
        model(torch.empty(batch, *image))
    return found


def _gpt2_small() -> list[Shape]:
    sizes = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
    return [Shape("gpt2-small", inputs, outputs, TOKENS) for inputs, outputs in sizes]


NETWORKS: Mapping[str, Callable[[], list[Shape]]] = {
    "vgg16-d": lambda: _of_model("vgg16-d", (3, 32, 32), 128, nn.Conv2d),
    "wrn-22-8": lambda: _of_model("wrn-22-8", (3, 32, 32), 128, nn.Conv2d),
    "resnet50": lambda: _of_model("resnet50", (3, 224, 224), 16, nn.Conv2d),
    "gpt2-small": _gpt2_small,
    "lenet300-100": lambda: _of_model("lenet300-100", (1, 28, 28), 128, nn.Linear),
    "linear": lambda: [Shape("linear", 1024, 4096, TOKENS)],
}
"""Convolutions of CIFAR-sized networks and of ResNet-50, linear layers of a GPT-2 block and of LeNet-300-100."""
