"""The fused normalisation as operators that PyTorch's compiler and exporter know. No gradients of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.layout import batch_last, empty_batch_last
from regrow.ops.normalise import run
from regrow.ops.refuse import refuse_double_backward


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by operators; arguments as for `regrow.ops.normalise`."""
    residual = None if residual is None else batch_last(residual)
    output: tuple[Tensor, Tensor, Tensor] = _normalise(
        batch_last(x), weight, bias, mean, variance, residual, epsilon, relu
    )
    return output


@torch.library.custom_op("regrow::normalise", mutates_args=(), device_types="cpu")
def _normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return run.normalise(x, weight, bias, mean, variance, residual, run.Settings(epsilon, relu))


@torch.library.custom_op("regrow::normalise_gradient", mutates_args=(), device_types="cpu")
def _normalise_gradient(
    output_gradient: Tensor,
    x: Tensor,
    output: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    relu: bool,
    training: bool,
    wanted: list[bool],
) -> list[Tensor]:
    """Return the gradients that are wanted, in this order: of input, residual, weight, bias."""
    settings = run.Settings(epsilon, relu)
    made = run.gradients(output_gradient, x, output, weight, bias, mean, variance, settings, training, wanted)
    return [gradient for gradient in made if gradient is not None]


@_normalise.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_batch_last(x, *x.shape), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


@_normalise_gradient.register_fake
def _(
    output_gradient: Tensor,
    x: Tensor,
    output: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    relu: bool,
    training: bool,
    wanted: list[bool],
) -> list[Tensor]:
    return [
        empty_batch_last(x, *x.shape) if each < 2 else mean.new_empty(mean.shape)
        for each, wants in enumerate(wanted)
        if wants
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, given_mean, given_variance, residual, ctx.epsilon, ctx.relu = inputs
    ctx.training = given_mean is None or given_variance is None
    normalised, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.set_materialize_grads(False)
    # What ReLU let through follows from the input, unless a residual was added.
    ctx.save_for_backward(x, normalised if ctx.relu and residual is not None else None, weight, bias, mean, variance)


def _backward(ctx: Any, output_gradient: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    x, output, weight, bias, mean, variance = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, _, _, wants_residual, *_ = ctx.needs_input_grad
    if output_gradient is None:
        return (None,) * 8
    output_gradient = batch_last(output_gradient)
    # Without ReLU a residual's gradient is the one that arrives.
    own_residual = wants_residual and ctx.relu
    wanted = [wants_x, own_residual, wants_weight, wants_bias]
    made = iter(
        _normalise_gradient(
            output_gradient, x, output, weight, bias, mean, variance, ctx.epsilon, ctx.relu, ctx.training, wanted
        )
    )
    of_x, of_residual, of_weight, of_bias = (next(made) if wants else None for wants in wanted)
    if wants_residual and not own_residual:
        of_residual = output_gradient
    return of_x, of_weight, of_bias, None, None, of_residual, None, None


_normalise.register_autograd(_backward, setup_context=_setup_context)
_normalise_gradient.register_autograd(refuse_double_backward)
