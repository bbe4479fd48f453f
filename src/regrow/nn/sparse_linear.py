"""A linear layer with a sparsely stored weight."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.core.positions import compact
from regrow.nn.sparse_layer import SparseLayer
from regrow.ops import sparse_linear
from regrow.ops.pattern import Geometry, Pattern

__all__ = ["SparseLinear", "kept"]


class SparseLinear(SparseLayer):
    """`nn.Linear` of which only some weights exist.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        values: the weights that exist, shape (nonzeros,).
        index: their flat positions in the dense weight (out_features, in_features), sorted, int32 or int64.
        bias: shape (out_features,), or None.
        unit: outputs and inputs of a unit of topology.

    Example:
        >>> import torch
        >>> layer = SparseLinear(3, 2, values=torch.tensor([2.0, 5.0]), index=torch.tensor([0, 4]))
        >>> layer(torch.tensor([1.0, 10.0, 100.0]))
        tensor([ 2., 50.])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        values: Tensor,
        index: Tensor,
        bias: Tensor | None = None,
        *,
        unit: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(values, index, bias, unit)
        self.in_features = in_features
        self.out_features = out_features
        # That of a convolution on a plane of one position.
        self.geometry = Geometry()
        self.prepare()

    @staticmethod
    def from_dense(dense: nn.Linear, index: Tensor, unit: tuple[int, int] = (1, 1)) -> SparseLinear:
        """Return a layer that keeps of `dense` the weights at the flat positions `index`, and its bias."""
        values, index = kept(dense.weight, index), compact(index, dense.weight.numel())
        return SparseLinear(dense.in_features, dense.out_features, values, index, dense.bias, unit=unit)

    def to_dense(self) -> nn.Linear:
        """Return the ordinary layer that computes the same, with absent weights at zero."""
        dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(self.dense_weight(), requires_grad=self.values.requires_grad)
        dense.register_parameter("bias", self.bias)
        return dense.train(self.training)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return (self.out_features, self.in_features)

    def enter(self, x: Tensor) -> Tensor:
        """Return the input, shape (..., in_features), as it is."""
        return x

    def product(self, x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Return the output, shape (..., out_features), for the input of shape (..., in_features)."""
        return sparse_linear(x, values, self.bias, pattern)

    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the output as it is."""
        return output

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"nonzeros={self.values.numel()}"
        )


def kept(weight: Tensor, index: Tensor) -> nn.Parameter:
    """Return the numbers of a dense weight at flat positions as a parameter, trained if the weight is."""
    return nn.Parameter(weight.detach().reshape(-1)[index], requires_grad=weight.requires_grad)
