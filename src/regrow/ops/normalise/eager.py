"""The fused normalisation outside of the compiler: the operators' sums with less on the way, and with dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.layout import to_batch_last
from regrow.ops.normalise import run
from regrow.ops.refuse import without_derivative


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    settings: run.Settings,
    running: run.Running | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise float32 tensors on the CPU; arguments as for `regrow.ops.normalise`."""
    output: tuple[Tensor, Tensor, Tensor] = _Normalisation.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, residual, mean, variance, settings, running
    )
    return output


class _Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        settings: run.Settings,
        running: run.Running | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.settings, ctx.training = settings, mean is None or variance is None
        x = to_batch_last(x)
        output, mean, variance = run.normalise(x, weight, bias, mean, variance, residual, settings, running)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        # What ReLU let through follows from the input, unless a residual was added.
        kept = output if settings.relu and residual is not None else None
        ctx.save_for_backward(x, kept, weight, bias, mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        given, *_ = gradients
        if given is None:
            return (None,) * 8
        x, output, weight, bias, mean, variance = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, wants_residual, *_ = ctx.needs_input_grad
        # Without ReLU or dropout a residual's gradient is the one that arrives.
        own_residual = wants_residual and (ctx.settings.relu or ctx.settings.dropped > 0)
        wanted = [wants_x, own_residual, wants_weight, wants_bias]
        with torch.no_grad():
            of_x, of_residual, of_weight, of_bias = run.gradients(
                given, x, output, weight, bias, mean, variance, ctx.settings, ctx.training, wanted
            )
        depends_on = [tensor for tensor in (given, x, weight, bias) if tensor is not None]
        of_x, of_weight, of_bias, of_residual = (
            without_derivative(gradient, *depends_on) for gradient in (of_x, of_weight, of_bias, of_residual)
        )
        if wants_residual and not own_residual:
            of_residual = given
        return of_x, of_weight, of_bias, of_residual, None, None, None, None
