"""How active the inputs and outputs of a layer are in a step: what guides the draw of candidates for growth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from regrow.convert.hook import Hook
from regrow.convert.processes import train_together
from regrow.nn.sparse_conv import SparseConv
from regrow.nn.sparse_inputs_first import SparseInputsFirstLinear
from regrow.nn.sparse_linear import SparseLinear
from regrow.storage import Weight

__all__ = ["Activity"]


class Activity:
    """Sum |input| and |gradient of the output| of a layer over a step, for each input and each output.

    Their products bound the gradient of every weight (GraBo in arXiv:2401.04301). They are summed over samples and,
    in a convolution, over positions and groups; nothing as large as the weight is made. Known are linear layers and
    convolutions, not transposed ones, nor layers whose weight has its inputs first. Between `begin` and `end` it hangs
    on the layer by a hook.

    Args:
        weight: the weight of the layer.

    Example:
        >>> import regrow
        >>> from regrow.storage import sparse_weights
        >>> layer = regrow.sparsify(nn.Linear(3, 2), 0.5, backend="masked")
        >>> activity = Activity(sparse_weights(layer)["weight"])
        >>> activity.begin()
        >>> layer(torch.tensor([[1.0, -2.0, 0.0], [1.0, 1.0, 0.0]])).sum().backward()
        >>> activity.end()
        (tensor([2., 2.]), tensor([2., 3., 0.]))
    """

    def __init__(self, weight: Weight) -> None:
        self._module, self._shape = weight.module, weight.shape
        self._handle: RemovableHandle | None = None
        self._outputs: Tensor | None = None
        self._inputs: Tensor | None = None

    @property
    def is_watched(self) -> bool:
        """Whether it has begun and not ended."""
        return self._handle is not None

    def begin(self) -> None:
        """Sum from now on, from nothing."""
        self.end()
        known = isinstance(self._module, nn.Linear | SparseLinear | _ConvNd | SparseConv)
        if known and not isinstance(self._module, _ConvTransposeNd | SparseInputsFirstLinear):
            self._handle = self._module.register_forward_hook(Hook(self._see), with_kwargs=True)

    def end(self) -> tuple[Tensor, Tensor] | None:
        """Return the sums of outputs and of inputs, on the CPU, and sum no more.

        None where nothing is known: no pass was seen, as in a compiled model, the layer is none that is known, a sum is
        not finite or all are zero, or processes train together, which would each see their own.
        """
        outputs, inputs = self._outputs, self._inputs
        self._outputs = self._inputs = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if outputs is None or inputs is None or train_together():
            return None
        both = outputs.cpu(), inputs.cpu()
        return both if all(bool(sums.isfinite().all()) and bool(sums.any()) for sums in both) else None

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            return  # what a graph computes cannot be left out again
        x = args[0] if args else kwargs.get("input", kwargs.get("x"))
        if not (isinstance(x, Tensor) and isinstance(output, Tensor) and output.requires_grad):
            return
        # of a linear layer the last dimension, of a convolution the one before those of the kernel
        channel = -1 if len(self._shape) == 2 else 1 - len(self._shape)
        inputs = _sums(x.detach(), channel).view(-1, self._shape[1]).sum(dim=0)

        def note(gradient: Tensor) -> None:
            # those of a layer that is called twice add up
            outputs = _sums(gradient.detach(), channel)
            self._outputs = outputs if self._outputs is None else self._outputs + outputs
            self._inputs = inputs if self._inputs is None else self._inputs + inputs

        output.register_hook(note)  # type: ignore[no-untyped-call]


def _sums(x: Tensor, channel: int) -> Tensor:
    """Return the sum of absolute values over all dimensions but one."""
    others = [dimension for dimension in range(x.dim()) if dimension != channel % x.dim()]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, ord=1, dim=others, dtype=dtype) if others else x.abs().to(dtype)
