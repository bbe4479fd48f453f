"""Speed-ups estimated as Dettmers & Zettlemoyer 2019 estimated theirs (arXiv:1907.04840), from densities alone.

They timed each dense convolution and scaled its time down by what could be skipped, with no cost for skipping:

- *dense convolution*: empty channels are left out, those that no weight reads and those of the activations that are all
  zero in a sample; a dense convolution does the rest.
- *sparse convolution*: only products of a weight that exists and an activation that is not zero are computed.

The speed-up is that of the sums over all convolutions; the rest of a training step is not in it. A network without
convolutions is estimated by its linear layers in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.storage import sparse_weights

__all__ = ["LARGEST_PUBLISHED", "Estimated", "LayerWork", "estimate", "input_shares", "observe", "weight_shares"]

LARGEST_PUBLISHED = 5.61
"""The largest speed-up that they estimated, of all their networks, each at a density that trains to dense accuracy.

It is in the abstract of arXiv:1907.04840, without the network and the density.
"""


@dataclass(frozen=True)
class Estimated:
    """What is estimated of a network.

    Attributes:
        dense_convolution: speed-up by leaving out empty channels; None if nothing would be left to compute.
        sparse_convolution: speed-up by computing no product with a zero; None likewise.
    """

    dense_convolution: float | None
    sparse_convolution: float | None


@dataclass(frozen=True)
class LayerWork:
    """What the estimate knows of a layer.

    Attributes:
        milliseconds: time of the dense layer, forward.
        weight_density: share of the weights that exist.
        empty_weight_channels: share of the input channels that no weight reads.
        input_density: share of the activations that enter it and are not zero.
        empty_input_channels: share of the channels of all samples that are zero throughout.
    """

    milliseconds: float
    weight_density: float
    empty_weight_channels: float
    input_density: float
    empty_input_channels: float


def estimate(layers: Iterable[LayerWork]) -> Estimated:
    """Return the speed-ups over all layers together.

    Example:
        >>> estimate([LayerWork(4.0, 0.1, empty_weight_channels=0.5, input_density=0.5, empty_input_channels=0.0)])
        Estimated(dense_convolution=2.0, sparse_convolution=20.0)
    """
    rows = list(layers)
    dense = sum(row.milliseconds for row in rows)
    channels = sum(row.milliseconds * (1 - row.empty_weight_channels) * (1 - row.empty_input_channels) for row in rows)
    products = sum(row.milliseconds * row.input_density * row.weight_density for row in rows)
    return Estimated(dense / channels if channels else None, dense / products if products else None)


def weight_shares(mask: Tensor) -> tuple[float, float]:
    """Return the density of a weight and the share of its input channels that no weight reads.

    Args:
        mask: where the weight exists, bool, shape (outputs, inputs, ...).

    Example:
        >>> weight_shares(torch.tensor([[True, False], [True, False]]))
        (0.5, 0.5)
    """
    read = mask.transpose(0, 1).flatten(1).any(dim=1)
    return float(mask.float().mean()), 1 - float(read.float().mean())


def input_shares(x: Tensor) -> tuple[float, float]:
    """Return the density of activations and the share of channels that are zero throughout a sample.

    Args:
        x: activations, shape (N, C, ...).

    Example:
        >>> input_shares(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        (0.25, 0.5)
    """
    present = x != 0
    filled = present.reshape(*x.shape[:2], -1).any(dim=2)
    return float(present.float().mean()), 1 - float(filled.float().mean())


@torch.no_grad()
def observe(dense: nn.Module, sparse: nn.Module, images: Tensor, *, repeats: int = 3) -> list[LayerWork]:
    """Time the dense layers, look at the activations and weights of the sparse ones, and return both, layer by layer.

    The networks stay in the mode they are in.

    Args:
        dense: the dense network.
        sparse: the same one made sparse.
        images: a batch, shape (N, C, H, W).
        repeats: forward passes; medians count.
    """
    masks = regrow.masks(sparse)
    layers = {name: module for name, module in dense.named_modules() if f"{name}.weight" in masks}
    kinds = nn.Conv2d if any(isinstance(layer, nn.Conv2d) for layer in layers.values()) else nn.Linear
    names = [name for name, layer in layers.items() if isinstance(layer, kinds)]
    times = _forward_times({name: layers[name] for name in names}, lambda: dense(images), repeats)
    seen: dict[str, tuple[float, float]] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[name] = input_shares(inputs[0])

        return hook

    weights = sparse_weights(sparse)
    hooks = [weights[f"{name}.weight"].module.register_forward_pre_hook(look(name)) for name in names]
    try:
        sparse(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [LayerWork(times[name], *weight_shares(masks[f"{name}.weight"]), *seen[name]) for name in names]


def _forward_times(layers: Mapping[str, nn.Module], run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each layer's forward pass."""
    began: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in layers}

    def start(name: str) -> Callable[..., None]:
        return lambda *_: began.update({name: time.perf_counter()})

    def stop(name: str) -> Callable[..., None]:
        return lambda *_: times[name].append((time.perf_counter() - began[name]) * 1e3)

    hooks = [layer.register_forward_pre_hook(start(name)) for name, layer in layers.items()]
    hooks += [layer.register_forward_hook(stop(name)) for name, layer in layers.items()]
    try:
        for _ in range(repeats + 1):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: median(each[1:]) for name, each in times.items()}
