"""A dense model as a function of the weights that may be sparse, and the choice of the highest scores among all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from regrow.convert.eligible import Selector, eligible
from regrow.core.extreme import extreme
from regrow.nn.modes import modes_kept
from regrow.storage import sparse_weights

__all__ = ["Loss", "gradients_of", "highest", "left_as_it_was", "number_kept", "outputs_of", "weights_of"]

Loss = Callable[[Any, Any], Tensor]
"""From what the model returns and the targets to a number."""


def weights_of(
    model: nn.Module, include: Sequence[Selector] = (), keep_dense: Sequence[Selector] = ()
) -> dict[str, Tensor]:
    """Return the weights that `regrow.sparsify` would make sparse, by name, as new leaves that share their memory.

    Raises:
        ValueError: if the model is sparse already, or as `regrow.sparsify` raises it for these selectors.
    """
    if sparse_weights(model):
        raise ValueError("this model is sparse already: take one that is dense, or call regrow.densify(model) first")
    return {slot.name: slot.weight.detach().requires_grad_() for slot in eligible(model, include, keep_dense)}


def outputs_of(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Any, others: Mapping[str, Tensor] | None = None
) -> Any:
    """Return what the model computes with other weights; its own, and its buffers, stay as they are.

    Args:
        model: the model.
        weights: what stands in the place of some parameters, by name.
        inputs: a tensor, or a tuple of arguments.
        others: what stands in the place of the rest of parameters and buffers; None takes copies of the buffers.
    """
    if others is None:
        others = {name: buffer.clone() for name, buffer in model.named_buffers()}
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    return functional_call(model, {**others, **weights}, arguments)


def gradients_of(value: Tensor, weights: Mapping[str, Tensor], *, again: bool = False) -> dict[str, Tensor]:
    """Return the gradient of a number with respect to some weights, zero where it does not depend on one.

    Args:
        value: the number, shape ().
        weights: leaves, by name.
        again: whether gradients of the gradient are to be had.
    """
    found = torch.autograd.grad(
        value, list(weights.values()), create_graph=again, allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))


@contextmanager
def left_as_it_was(model: nn.Module, *, batch_statistics: bool) -> Iterator[None]:
    """Compute with gradients in evaluation mode; modes and random generators are then as they were before.

    Args:
        model: the model.
        batch_statistics: whether norms take the statistics of the batch all the same.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with modes_kept(model), torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        model.eval()
        for module in model.modules():
            if isinstance(module, _NormBase):
                module.training = batch_statistics
        yield


def number_kept(weights: Mapping[str, Tensor], density: float) -> int:
    """Return how many weights a density means.

    Raises:
        ValueError: if the density is outside (0, 1], or leaves no weight at all.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is outside (0, 1]: it is the share of weights to keep")
    total = sum(weight.numel() for weight in weights.values())
    count = round(density * total)
    if not count:
        raise ValueError(f"density {density:g} keeps none of {total} weights: take {1 / total:.2g} or more")
    return count


def highest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return masks of the `count` highest scores of all layers together, ties to the earlier layer and position.

    Args:
        scores: of every layer, in the shape of its weight.
        count: how many.

    Raises:
        ValueError: if a score is not finite.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([3.0, 3.0])}
        >>> highest(scores, 2)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    flat = torch.cat([score.detach().reshape(-1) for score in scores.values()])
    if not bool(flat.isfinite().all()):
        raise ValueError(
            "a score is not finite: what the model returns, the loss or its gradient overflows; look at the batch, and "
            "scale the weights down"
        )
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[extreme(flat, count, lambda numbers: numbers, largest=True)] = True
    parts = torch.split(chosen, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
