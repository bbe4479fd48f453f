"""The meaning of the fused normalisation, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by PyTorch's own operations; arguments as for `regrow.ops.normalise`."""
    training = mean is None or variance is None
    output = F.batch_norm(x, mean, variance, weight, bias, training=training, eps=epsilon)
    if residual is not None:
        output = output + residual
    if mean is None or variance is None:
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    return F.relu(output) if relu else output, mean, variance
