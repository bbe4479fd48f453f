"""Batch normalisation, the sum with a residual and ReLU as one operation."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.native import kernels_serve
from regrow.ops.normalise.operators import normalise_cpu
from regrow.ops.normalise.reference import normalise_reference


def normalise(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    residual: Tensor | None = None,
    epsilon: float = 1e-5,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise every channel, scale and shift it, add a residual, apply ReLU.

    Kernels serve float32 on the CPU; their result has the batch innermost in memory (see `regrow.ops.layout`), and
    inputs of another layout are copied. For anything else PyTorch's own operations are called.

    Args:
        x: input, shape (N, C, H, W).
        weight: scale of each channel, shape (C,); None is 1.
        bias: shift of each channel, shape (C,); None is 0.
        mean: mean of each channel, shape (C,), if not that of this batch.
        variance: variance of each channel, shape (C,), if not that of this batch.
        residual: added before ReLU, shape as `x`.
        epsilon: added to the variance.
        relu: whether negative results become zero.

    Returns:
        The output, shape as `x`, and the mean and the biased variance that were used, without gradient.

    Raises:
        ValueError: if shapes do not fit, only one of mean and variance is given, or one number a channel is all there
            is to take them from.

    Example:
        >>> import torch
        >>> output, mean, _ = normalise(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), epsilon=0.0, relu=True)
        >>> output.flatten(), mean
        (tensor([0., 1.]), tensor([2.]))
    """
    _check(x, weight, bias, mean, variance, residual)
    if kernels_serve(x, weight, bias, mean, variance, residual) and x.numel():
        return normalise_cpu(x, weight, bias, mean, variance, residual, epsilon, relu)
    return normalise_reference(x, weight, bias, mean, variance, residual, epsilon, relu)


def _check(x: Tensor, *others: Tensor | None) -> None:
    *by_channel, residual = others
    if x.dim() != 4:
        raise ValueError(f"normalisation wants 4 dimensions (N, C, H, W), not {tuple(x.shape)}")
    for tensor in by_channel:
        if tensor is not None and tensor.shape != x.shape[1:2]:
            raise ValueError(f"{x.shape[1]} channels want as many numbers, not shape {tuple(tensor.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"the residual has shape {tuple(residual.shape)}, the input {tuple(x.shape)}")
    _, _, mean, variance = by_channel
    if (mean is None) != (variance is None):
        raise ValueError("give both mean and variance, or neither")
    if mean is None and x.numel() == x.shape[1]:
        raise ValueError(f"more than 1 value a channel is needed for its statistics, got input {tuple(x.shape)}")


__all__ = ["normalise"]
