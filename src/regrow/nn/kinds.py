"""Kinds of ordinary layers: which are linear, and which way round they keep their weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

__all__ = ["is_inputs_first_linear", "is_linear", "keeps_inputs_first"]


def is_inputs_first_linear(module: nn.Module) -> bool:
    """Return whether a module is `Conv1D` of the library transformers: y = x W + b, W of shape (inputs, outputs).

    It is a linear layer, with the weight the other way round: the projections of GPT-2 are made of it. It is known by
    its name and its attribute `nf`, the number of outputs, so that the library need not be there.

    Example:
        >>> is_inputs_first_linear(nn.Linear(4, 2))
        False
    """
    if not any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return False
    # The dense weight of a module that computes it is an ordinary attribute.
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == getattr(module, "nf", None)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, whichever way round it keeps its weight.

    Example:
        >>> is_linear(nn.Linear(4, 2)), is_linear(nn.Conv1d(4, 2, 1))
        (True, False)
    """
    return isinstance(module, nn.Linear) or is_inputs_first_linear(module)


def keeps_inputs_first(module: nn.Module) -> bool:
    """Return whether the first dimension of a module's weight counts inputs, as in transposed convolutions.

    Example:
        >>> keeps_inputs_first(nn.ConvTranspose1d(4, 2, 1)), keeps_inputs_first(nn.Conv1d(4, 2, 1))
        (True, False)
    """
    return isinstance(module, _ConvTransposeNd) or is_inputs_first_linear(module)
