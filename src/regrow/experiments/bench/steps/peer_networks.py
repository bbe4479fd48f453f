"""Whole networks of other libraries' sparse layers, in static training.

The ordinary modules stay; linear and convolution layers are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import regrow
from regrow.experiments.bench.common.correctness import differs
from regrow.experiments.bench.layers.peers import INSTALL
from regrow.experiments.bench.steps.training import Batches, Training, dense_training
from regrow.experiments.train.config import TrainConfig

__all__ = ["PEERS"]

_LOSS_TOLERANCE = 1e-3  # of a step's loss


def _sparseprop(config: TrainConfig, dense: nn.Module, masks: Mapping[str, Tensor], batches: Batches) -> Training:
    """Return a network whose layers are those of sparseprop, each the faster of its two ways, as it chooses itself.

    Raises:
        ImportError: if it is not installed.
        ValueError: if it has no such layers, or computes another loss.
    """
    try:
        modules = import_module("sparseprop.modules")
    except ImportError as error:
        raise ImportError(f"{error}: {INSTALL['sparseprop']}") from error
    model = _masked(dense, masks)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # not in PyTorch's stubs
    shapes = _input_shapes(model, batches.images[0])
    for name, shape in shapes.items():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and (layer.stride[0] > 2 or layer.groups > 1):
            raise ValueError("it has convolutions of one group and strides of 1 and 2 only")
        if isinstance(layer, nn.Conv2d):
            exchanged = modules.sparsify_conv2d_auto(layer, shape)
        elif isinstance(layer, nn.Linear):
            bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
            exchanged = modules.SparseLinear(dense_weight=layer.weight.detach(), bias=bias)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, exchanged)
    # Its layers take and give contiguous activations.
    plain = Batches(tuple(images.contiguous() for images in batches.images), batches.labels)
    _check(_masked(dense, masks), model, plain)
    return dense_training(config, _AddsApart(model), plain)


class _AddsApart(nn.Module):
    """A network whose residual sums are new tensors: PyTorch lets nobody add in place to what sparseprop's layers give.

    Args:
        network: the network, which may add in place.

    Example:
        >>> class Residual(nn.Module):
        ...     def forward(self, x):
        ...         halves = x.unflatten(0, (2, -1)).unbind()  # views that must not be changed
        ...         first = halves[0]
        ...         first += halves[1]
        ...         return first
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> _AddsApart(Residual())(x)
        tensor([3.], grad_fn=<AddBackward0>)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """Apply the network to `x`."""
        with _NotInPlace():
            return self.network(x)


class _NotInPlace(TorchFunctionMode):
    """While it is entered, `a += b` makes a new tensor where it is differentiated; the operator arrives as `add_`."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        apart = function is Tensor.add_ and args[0].requires_grad
        return (torch.add if apart else function)(*args, **(kwargs or {}))


def _masked(dense: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return an ordinary network with zeros where weights are absent."""
    return regrow.densify(regrow.sparsify(deepcopy(dense), masks=masks, backend="masked"))


def _input_shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape that enters each linear layer and 2-d convolution."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: shapes.update({name: tuple(inputs[0].shape)})

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            deepcopy(model)(images)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@torch.no_grad()
def _check(expected: nn.Module, model: nn.Module, batches: Batches) -> None:
    """Compare the loss in evaluation mode on copies, with the right network's."""
    loss = nn.CrossEntropyLoss()
    right, found = (
        float(loss(deepcopy(each).eval()(batches.images[0]), batches.labels[0])) for each in (expected, model)
    )
    if differs(found, right, _LOSS_TOLERANCE):
        raise ValueError(f"its loss is {found:.5g}, and {right:.5g} in masked storage")


PEERS: Mapping[str, Callable[[TrainConfig, nn.Module, Mapping[str, Tensor], Batches], Training]] = {
    "sparseprop": _sparseprop
}
"""What makes a network's training of each library; raises ImportError, RuntimeError or ValueError where it cannot."""
