"""A linear layer with a sparsely stored weight, for one that keeps its weight as (inputs, outputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.positions import compact
from regrow.core.transposed import transposed
from regrow.nn.sparse_linear import SparseLinear

__all__ = ["SparseInputsFirstLinear"]


class SparseInputsFirstLinear(SparseLinear):
    """`Conv1D` of the library transformers, y = x W + b, of which only some weights exist.

    Within, it is a `SparseLinear`: values and positions are those of the transpose, shape (out_features, in_features),
    which kernels take. All that is as large as the dense weight has the shape of the ordinary layer's, (in_features,
    out_features): `weight`, states of the ordinary layer that are loaded, and what `to_dense` returns.

    Args:
        kind: type of the ordinary layer, called with the numbers of outputs and inputs.
        args: as `SparseLinear` takes them, positions in the transpose.
        kwargs: likewise.
    """

    inputs_first = True

    def __init__(self, kind: Callable[[int, int], nn.Module], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind

    @staticmethod
    def from_inputs_first(dense: Any, index: Tensor, unit: tuple[int, int] = (1, 1)) -> SparseInputsFirstLinear:
        """Return a layer that keeps of `dense` the weights at some flat positions, and its bias.

        Args:
            dense: the ordinary layer.
            index: flat positions in its weight, (inputs, outputs).
            unit: inputs and outputs of a unit of topology, in that order, as they lie in its weight.
        """
        inputs, outputs = dense.weight.shape
        index = transposed(index, (inputs, outputs)).sort().values
        weight: nn.Parameter = dense.weight
        values = nn.Parameter(weight.detach().t().reshape(-1)[index], requires_grad=weight.requires_grad)
        return SparseInputsFirstLinear(
            type(dense), inputs, outputs, values, compact(index, inputs * outputs), dense.bias, unit=(unit[1], unit[0])
        )

    def to_dense(self) -> nn.Module:  # type: ignore[override]
        """Return the ordinary layer that computes the same, with absent weights at zero."""
        with torch.device("meta"):  # what it draws there is drawn from no generator
            dense = self.kind(self.out_features, self.in_features)
        dense.weight = nn.Parameter(self.dense_weight(), requires_grad=self.values.requires_grad)
        dense.register_parameter("bias", self.bias)
        return dense.train(self.training)
