"""Convolution with a sparse weight by the compiled kernels: directly, or by operators where PyTorch traces."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.conv2d import eager, operators, run
from regrow.ops.eager import serves
from regrow.ops.pattern import Blocks, Geometry, Pattern


def conv2d_cpu(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve float32 tensors on the CPU; arguments as for `regrow.ops.sparse_conv2d`."""
    if serves(x, values, bias):
        return eager.convolve(x, values, bias, pattern, geometry)
    return operators.convolve(x, values, bias, pattern, geometry)


def conv2d_values_gradient(
    index: list[Tensor], x: Tensor, output_gradient: Tensor, weight_shape: list[int], geometry: Geometry
) -> Tensor:
    """Return the gradient of weights of a convolution or a linear layer, float32 on the CPU, shape (weights,).

    Args:
        index: the `Blocks` of the weights, as from `Pattern.forward_blocks`.
        x: input of the layer, shape (N, C, H, W) or (N, C).
        output_gradient: gradient of its output, shape (N, O, H', W') or (N, O).
        weight_shape: shape of the dense weight.
        geometry: stride, padding, dilation and groups.
    """
    plane = [*weight_shape, 1, 1][:4]
    if x.dim() == 2:
        output_gradient, x = (tensor.unsqueeze(-1).unsqueeze(-1) for tensor in (output_gradient, x))
    return run.values_gradient(output_gradient, x, Blocks(*index), plane, geometry)
