"""The numbers behind a tensor: others in their place, whether there are any, and whether they have changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow.ops.program import checksum

__all__ = ["checksum_of", "has_numbers", "rebind", "version_of"]


def rebind(parameter: nn.Parameter, data: Tensor) -> None:
    """Let a parameter hold other numbers, of any count; it stays the same object, and its gradient becomes None."""
    parameter.grad = None
    # A graph still alive somewhere, as that of the last loss, keeps the node that accumulates the gradient, and that
    # keeps the old shape. PyTorch makes a new one when the dtype changes, so it changes for a moment.
    parameter.data = data.new_empty(0, dtype=torch.bfloat16 if data.dtype != torch.bfloat16 else torch.float32)
    parameter.data = data
    # A backward pass of a graph from before would take the new numbers for the old ones: so it raises.
    if not parameter.is_inference():
        torch.autograd.graph.increment_version(parameter)


def has_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor holds numbers of its own, and nothing that traces or transforms stands for them."""
    return (
        type(tensor) is Tensor
        and not tensor.is_meta
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def checksum_of(tensor: Tensor) -> int:
    """Return a checksum of a tensor's numbers; 0 where it has none."""
    return checksum(tensor) if has_numbers(tensor) else 0


def version_of(tensor: Tensor) -> int:
    """Return how often PyTorch has seen a write into a tensor; 0 for one of inference, where it does not look."""
    return 0 if tensor.is_inference() else tensor._version
