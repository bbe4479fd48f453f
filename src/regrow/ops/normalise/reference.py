"""The meaning of the fused normalisation, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.ops.dropout import dropout
from regrow.ops.normalise.settings import Running, Settings

__all__ = ["finish", "follow", "normalise"]


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    settings: Settings,
    running: Running | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by PyTorch's own operations; arguments as for `regrow.ops.normalise`."""
    output = F.batch_norm(x, mean, variance, weight, bias, training=settings.training, eps=settings.epsilon)
    if residual is not None:
        output = output + residual
    if mean is None or variance is None:
        # Statistics keep the precision of those that they move, whatever autocast makes of the input.
        dtype = torch.promote_types(x.dtype, torch.float32) if running is None else running.mean.dtype
        of = x.detach().to(dtype)
        variance, mean = torch.var_mean(of, (0, 2, 3), correction=0)
    return finish(F.relu(output) if settings.relu else output, mean, variance, settings, running)


def finish(
    output: Tensor, mean: Tensor, variance: Tensor, settings: Settings, running: Running | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what was normalised, with elements dropped, and mean and variance; moves the running statistics."""
    if running is not None:
        follow(running, mean, variance, output.numel() // output.shape[1])
    return dropout(output, settings.rate, settings.seed), mean, variance


@torch.no_grad()
def follow(running: Running, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move running statistics towards those of a batch with `count` numbers a channel."""
    running.batches.add_(1)
    newest: float = running.momentum if running.momentum is not None else 1.0 / float(running.batches)
    running.mean.mul_(1 - newest).add_(mean, alpha=newest)
    running.variance.mul_(1 - newest).add_(variance, alpha=newest * count / (count - 1))
