"""Activations that are made again in the backward pass, from what an operation before keeps in any case.

A norm keeps its input for its own gradients. From that its output follows, bit for bit; so a convolution after the
norm, which needs the output again for the gradient of its weights, keeps what the norm keeps. Its kernels make the
output of it as they read, or it is made in a pass before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

__all__ = ["Make", "Making", "Unmade", "keep", "kept", "making_of", "note"]


class Make(Protocol):
    """What makes an activation again, of tensors of which the first is large."""

    def __call__(self, *tensors: Any) -> Tensor:
        """Return the activation."""

    def for_kernels(self, *tensors: Any) -> Any | None:
        """Return what kernels are told so that they make it as they read; None where they cannot."""


class Making(NamedTuple):
    """How an activation is made again.

    Attributes:
        make: from the tensors to the activation.
        tensors: what it is made of, the large one first.
    """

    make: Make
    tensors: tuple[Tensor | None, ...]


class Unmade(NamedTuple):
    """An activation that kernels make as they read.

    Attributes:
        x: what they read, in the activation's shape.
        normalised: what they make of it.
    """

    x: Tensor
    normalised: Any


class _Note(NamedTuple):
    make: Make
    large: TensorWeakRef  # of what backward frees, a node may hold no more than that
    others: tuple[Tensor | None, ...]
    versions: tuple[int, ...]


def note(node: Any, output: Tensor, make: Make, tensors: Sequence[Tensor | None]) -> None:
    """Write down on the node of an operation in the graph how its first output can be made again.

    Args:
        node: the `ctx` of its forward function.
        output: what it gives.
        make: from tensors to the output.
        tensors: what it keeps for its own backward pass; the first is large.
    """
    large, *others = tensors
    assert large is not None
    if _hooks_at_work() or any(tensor is not None and tensor.is_inference() for tensor in (output, *tensors)):
        return  # whether inference tensors change is not counted
    node.noted = _Note(make, TensorWeakRef(large), tuple(others), _versions(output, tensors))


def making_of(activation: Tensor) -> Making | None:
    """Return how an activation can be made again; None where nobody has written that down, or something changed."""
    noted: _Note | None = getattr(activation.grad_fn, "noted", None)
    if noted is None or activation.output_nr:
        return None
    large = noted.large()
    tensors = (large, *noted.others)
    if large is None or _versions(activation, tensors) != noted.versions:
        return None
    return Making(noted.make, tensors)


def keep(node: Any, x: Tensor | None, given: Tensor, others: Sequence[Tensor | None] = ()) -> None:
    """Save the input of an operation for its backward pass, or what it is made of, and other tensors.

    Args:
        node: the `ctx` of its forward function.
        x: the input as `kept` is to return it; None if that is not needed.
        given: the input as it came.
        others: to be saved with it.
    """
    making = None if x is None or _hooks_at_work() else making_of(given)
    node.making = None if making is None else (making.make, len(making.tensors))
    node.save_for_backward(*((x,) if making is None else making.tensors), *others)


def kept(node: Any, saved: Sequence[Tensor | None], *, by_kernels: bool = False) -> tuple[Any, ...]:
    """Return what `keep` was given, out of what it saved: the input, made again if need be, and the others.

    Args:
        node: the `ctx` of the operation.
        saved: its `saved_tensors`.
        by_kernels: whether the input may be an `Unmade`.
    """
    if node.making is None:
        return tuple(saved)
    make, count = node.making
    tensors, others = saved[:count], saved[count:]
    normalised = make.for_kernels(*tensors) if by_kernels else None
    return (make(*tensors) if normalised is None else Unmade(tensors[0], normalised), *others)  # type: ignore[arg-type]


def _hooks_at_work() -> bool:
    """Return whether hooks decide what becomes of saved tensors, as in activation checkpoints: nothing else may."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


def _versions(output: Tensor, tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    return (output._version, *(0 if tensor is None else tensor._version for tensor in tensors))
