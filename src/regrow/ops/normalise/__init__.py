"""Batch normalisation, the sum with a residual, ReLU and dropout as one operation."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.dropout import check_rate
from regrow.ops.normalise.settings import Running, Settings
from regrow.ops.select import Backends

__all__ = ["Running", "normalise"]

_backends = Backends(__name__)


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
    rate: float = 0.0,
    seed: int | None = None,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise every channel, scale and shift it, add a residual, apply ReLU, drop elements.

    Kernels serve float32 on the CPU, and bfloat16 beside float32 parameters and statistics; their result has the batch
    innermost in memory (see `regrow.ops.layout`), and inputs of another layout are copied. For anything else PyTorch's
    own operations are called.

    Args:
        x: input, shape (N, C, H, W).
        weight: scale of each channel, shape (C,); None is 1.
        bias: shift of each channel, shape (C,); None is 0.
        mean: mean of each channel, shape (C,), if not that of this batch.
        variance: variance of each channel, shape (C,), if not that of this batch.
        residual: added before ReLU, shape as `x`.
        epsilon: added to the variance.
        relu: whether negative results become zero.
        rate: of dropout at the end, as for `regrow.ops.dropout`.
        seed: which elements that drops, as for `regrow.ops.dropout`.
        running: statistics to move, in place, towards those of this batch; not where the mean is given.

    Returns:
        The output, shape as `x`, and the mean and the biased variance that were used, without gradient.

    Raises:
        ValueError: if shapes do not fit, only one of mean and variance is given, one number a channel is all there is
            to take them from, running statistics are given beside them, or the rate lies outside.

    Example:
        >>> import torch
        >>> output, mean, _ = normalise(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), epsilon=0.0, relu=True)
        >>> output.flatten(), mean
        (tensor([0., 1.]), tensor([2.]))
    """
    _check(x, weight, bias, mean, variance, residual)
    _check_running(x, mean, running)
    check_rate(rate)
    settings = Settings(epsilon, relu, mean is None, rate, seed)
    backend = _backends.select(x, residual, weights=(weight, bias, mean, variance))
    output: tuple[Tensor, Tensor, Tensor] = backend.normalise(
        x, weight, bias, mean, variance, residual, settings, running
    )
    return output


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


def _check_running(x: Tensor, mean: Tensor | None, running: Running | None) -> None:
    if running is None:
        return
    if mean is not None:
        raise ValueError("running statistics follow the batch's own: give no mean and variance beside them")
    if any(statistic.shape != x.shape[1:2] for statistic in running[:2]) or running.batches.dim():
        raise ValueError(f"running statistics of {x.shape[1]} channels want as many numbers each, and one for batches")
