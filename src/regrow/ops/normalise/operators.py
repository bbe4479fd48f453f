"""The fused normalisation by the compiled kernels, as operators that PyTorch knows. No gradients of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.layout import allocate_batch_last, batch_last, empty_batch_last
from regrow.ops.native import kernels
from regrow.ops.refuse import refuse_double_backward


def normalise_cpu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise float32 tensors on the CPU; arguments as for `regrow.ops.normalise`."""
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
    training = mean is None or variance is None
    x = batch_last(x)
    weight, bias = _contiguous(weight), _contiguous(bias)
    residual = None if residual is None else batch_last(residual)
    mean, variance = (_copy(x, statistic) for statistic in (mean, variance))
    output = allocate_batch_last(*x.shape)
    kernels().normalise(
        shape=_shape(x, epsilon, relu, training),
        weight=_address(weight),
        bias=_address(bias),
        mean=mean.data_ptr(),
        variance=variance.data_ptr(),
        input=x.data_ptr(),
        residual=_address(residual),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output, mean, variance


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
    output_gradient, x = batch_last(output_gradient), batch_last(x)
    output = None if output is None else batch_last(output)
    weight, bias = _contiguous(weight), _contiguous(bias)
    gradients = [
        (allocate_batch_last(*x.shape) if each < 2 else mean.new_empty(mean.shape)) if wants else None
        for each, wants in enumerate(wanted)
    ]
    of_input, of_residual, of_weight, of_bias = map(_address, gradients)
    kernels().normalise_gradient(
        shape=_shape(x, epsilon, relu, training),
        weight=_address(weight),
        bias=_address(bias),
        mean=mean.data_ptr(),
        variance=variance.data_ptr(),
        output_gradient=output_gradient.data_ptr(),
        input=x.data_ptr(),
        output=_address(output),
        input_gradient=of_input,
        residual_gradient=of_residual,
        weight_gradient=of_weight,
        bias_gradient=of_bias,
        threads=torch.get_num_threads(),
    )
    return [gradient for gradient in gradients if gradient is not None]


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


def _shape(x: Tensor, epsilon: float, relu: bool, training: bool) -> Any:
    channels = x.shape[1]
    return kernels().Normalisation(
        channels=channels, length=x.numel() // channels, epsilon=epsilon, relu=relu, training=training
    )


def _copy(x: Tensor, statistic: Tensor | None) -> Tensor:
    """Return a new tensor of one number a channel, which a kernel may write."""
    return x.new_empty(x.shape[1]) if statistic is None else statistic.clone(memory_format=torch.contiguous_format)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
