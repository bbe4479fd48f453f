"""Whether a sparse network computes what masked storage does: asked before its steps are timed."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments.bench.common.correctness import differs
from regrow.experiments.bench.steps.training import Batches, sparse_training
from regrow.experiments.errors import WrongResultError
from regrow.experiments.train.config import TrainConfig
from regrow.storage import sparse_weights

__all__ = ["check"]

_LOSS_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 0.03
_TIMES_ROUNDING = 2


def check(dense: nn.Module, sparse: nn.Module, batches: Batches, config: TrainConfig) -> None:
    """Compare the sparse network's loss, and the gradient of every parameter, with those of masked storage.

    What rounding does to a gradient is seen from masked storage in double precision. That of a bias before a norm may
    be nothing else. Two that are as far from it as masked storage is in single precision are at most twice as far from
    each other. The biases of norms are drawn anew: at zero, rounding would decide the sign before a ReLU in a channel
    without weights, and with it the whole gradient of that channel.

    Dropout is left out: what it drops depends on the layout of the activations. Masked storage computes with contiguous
    images: in channels-last, PyTorch's norms round more than sparse storage does.

    Raises:
        WrongResultError: if they differ by more than rounding.
    """
    masks = regrow.masks(sparse)
    masked = regrow.sparsify(deepcopy(dense), masks=masks, backend="masked")
    masked = masked.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # not in its stubs
    sparse = deepcopy(sparse)
    _draw_biases_of_norms(masked, sparse)
    masked_double = deepcopy(masked).double()
    contiguous = Batches(tuple(images.contiguous() for images in batches.images[:1]), batches.labels[:1])
    right, expected = _first_step(masked, contiguous, config)
    double = Batches(tuple(images.double() for images in contiguous.images), contiguous.labels)
    _, exact = _first_step(masked_double, double, config)
    loss, found = _first_step(sparse, batches, config)
    if differs(loss, right, _LOSS_TOLERANCE):
        raise _wrong(config, f"the loss is {loss:.7g}, and {right:.7g} in masked storage")
    # Rounding that turns the winner of a pool or the sign before a ReLU moves gradients by some parts in a thousand,
    # and the gradient of a bias before a norm is nothing else.
    total = sum(float(gradient.norm()) ** 2 for gradient in expected.values()) ** 0.5
    for name, gradient in expected.items():
        distance = float((found[name] - gradient).norm())
        rounding = float((gradient - exact[name]).norm())
        allowed = _GRADIENT_TOLERANCE * float(gradient.norm()) + 1e-3 * _GRADIENT_TOLERANCE * total
        if not distance <= allowed + _TIMES_ROUNDING * rounding:
            share = distance / float(gradient.norm())
            raise _wrong(config, f"the gradient of {name} is {share:.2g} of its length away from masked storage's")


def _draw_biases_of_norms(*models: nn.Module) -> None:
    """Give the biases of batch norms values other than zero, the same in each model."""
    names = [f"{name}.bias" for name, module in models[0].named_modules() if _is_norm(module)]
    with torch.no_grad():
        for model in models:
            generator = torch.Generator().manual_seed(0)
            for name in names:
                bias = model.get_parameter(name)
                bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "running_mean") and module.bias is not None


def _first_step(model: nn.Module, batches: Batches, config: TrainConfig) -> tuple[float, dict[str, Tensor]]:
    """Take a step without dropout and return its loss and the gradients by name, of sparse weights where they exist."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    loss = float(sparse_training(config, model, batches).step())
    sparse = sparse_weights(model)
    gradients = {name: weight.existing(_gradient(weight.weight)) for name, weight in sparse.items()}
    own = {id(weight.weight) for weight in sparse.values()}
    return loss, gradients | {name: _gradient(p) for name, p in model.named_parameters() if id(p) not in own}


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _wrong(config: TrainConfig, what: str) -> WrongResultError:
    block = "" if config.block is None else f", block {config.block}"
    return WrongResultError(f"{config.preset} at {config.density:g}{block}: {what}; not timed")
