"""Convolution with a sparse weight by the compiled kernels: directly, or by operators where PyTorch traces."""

from __future__ import annotations

from math import prod

from torch import Tensor

from regrow.ops.conv2d import eager, operators, run
from regrow.ops.eager import serves
from regrow.pattern import Blocks, Geometry, Pattern

# Planes up to here are linear layers to the kernels: on 2 x 2 positions under 3 x 3 taps, 16 of 36 products count.
_FEW_POSITIONS = 4
_FEW_SAMPLES = 16


def conv2d_cpu(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve float32 tensors on the CPU; arguments as for `regrow.ops.sparse_conv2d`."""
    if serves(x, values, bias):
        if _spreads(x, pattern, geometry):
            spread = pattern.spread(geometry, (x.shape[2], x.shape[3]))
            positions = prod(spread.output_plane)
            biases = None if bias is None else bias.repeat_interleave(positions)
            output = eager.convolve(x.flatten(1), values, biases, spread, Geometry())
            return output.view(x.shape[0], pattern.shape[0], *spread.output_plane)
        return eager.convolve(x, values, bias, pattern, geometry)
    return operators.convolve(x, values, bias, pattern, geometry)


def _spreads(x: Tensor, pattern: Pattern, geometry: Geometry) -> bool:
    """Return whether the planes are so small that most of what a kernel sees is padding."""
    count, _, height, width = x.shape
    if count < _FEW_SAMPLES or height * width > _FEW_POSITIONS or prod(pattern.kernel) == 1:
        return False
    outputs = prod(run.output_shape(x.shape, (*pattern.shape[:2], *pattern.kernel), geometry)[2:])
    return 0 < outputs <= _FEW_POSITIONS


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
