"""The fused normalisation and its gradients by the compiled kernels, on the CPU.

What is normalised is float32 or bfloat16; parameters and statistics are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regrow.ops.autograd import Differentiable, direct
from regrow.ops.check import check_activation, check_tensor, check_that
from regrow.ops.dropout.cpu import MOST_ELEMENTS
from regrow.ops.dropout.seed import draw_seed
from regrow.ops.layout import allocate_batch_last, batch_last, empty_batch_last, to_batch_last
from regrow.ops.native import kernels
from regrow.ops.normalise import reference
from regrow.ops.normalise.settings import Running, Settings

__all__ = ["normalise"]


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
    """Normalise tensors on the CPU; arguments as for `regrow.ops.normalise`."""
    tensors = (x, weight, bias, residual, mean, variance)
    if x.shape[0] == 1:
        # One sample is batch-last in any case, and PyTorch's operations then have the longer vectors.
        return reference.normalise(x, weight, bias, mean, variance, residual, settings, running)
    if not direct(*tensors) or (settings.rate and x.numel() >= MOST_ELEMENTS * x.shape[1]):
        residual = None if residual is None else batch_last(residual)
        output, mean, variance = _normalisation.traced(x, weight, bias, residual, mean, variance, *settings[:3])
        return reference.finish(output, mean, variance, settings, running)
    if settings.rate and settings.seed is None:
        settings = settings._replace(seed=draw_seed())
    alone = None if running is None or _moved_by_kernels(running) else running
    moved = running if alone is None else None
    output, mean, variance = _normalisation((settings, moved), *tensors)
    if alone is not None:
        reference.follow(alone, mean, variance, x.numel() // x.shape[1])
    return output, mean, variance


def _moved_by_kernels(running: Running) -> bool:
    """Return whether a kernel can move the statistics: ordinary float32 on the CPU without gaps, and an int64."""
    mean, variance, batches, _ = running
    return (
        direct(mean, variance, batches)
        and mean.dtype is torch.float32 is variance.dtype
        and batches.dtype is torch.int64
        and mean.is_cpu
        and variance.is_cpu
        and batches.is_cpu
        and mean.is_contiguous()
        and variance.is_contiguous()
    )


def _run(
    plan: tuple[Settings, Running | None],
    _: object,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, batch-last, with the mean and variance that were used; moves the running statistics."""
    settings, running = plan
    residual = None if residual is None else to_batch_last(residual)
    weight, bias = _contiguous(weight), _contiguous(bias)
    mean, variance = (_copy(x, statistic) for statistic in (mean, variance))
    output = allocate_batch_last(x.shape, x.dtype)
    kernels().normalise(
        _shape(x.shape, settings), _address(weight), _address(bias), mean.data_ptr(), variance.data_ptr(),
        _running(running), x.data_ptr(), _address(residual), output.data_ptr(), torch.get_num_threads(),
        x.dtype is torch.bfloat16,
    )  # fmt: skip
    return output, mean, variance


def _keep(
    _: object, inputs: Sequence[Tensor | None], outputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, *_rest = inputs
    output, mean, variance = outputs
    # What ReLU let through follows from the input, unless a residual was added.
    return x, None if residual is None else output, weight, bias, mean, variance


def _gradients(
    plan: tuple[Settings, Running | None],
    shape: tuple[int, ...],
    wanted: Sequence[bool],
    given: Tensor,
    x: Tensor,
    output: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
) -> list[Tensor]:
    settings, _ = plan
    wants_x, wants_weight, wants_bias, wants_residual = wanted
    # Without ReLU or dropout a residual's gradient is the one that arrives.
    own_residual = wants_residual and (settings.relu or settings.rate > 0)
    weight, bias = _contiguous(weight), _contiguous(bias)
    of_x, of_residual = (
        allocate_batch_last(shape, given.dtype) if wants else None for wants in (wants_x, own_residual)
    )
    of_weight, of_bias = (torch.empty_like(mean) if wants else None for wants in (wants_weight, wants_bias))
    kernels().normalise_gradient(
        _shape(shape, settings), _address(weight), _address(bias), mean.data_ptr(), variance.data_ptr(),
        given.data_ptr(), x.data_ptr(), _address(output if settings.relu else None),
        *map(_address, (of_x, of_residual, of_weight, of_bias)), torch.get_num_threads(),
        given.dtype is torch.bfloat16,
    )  # fmt: skip
    if wants_residual and not own_residual:
        of_residual = given
    return [each for each in (of_x, of_weight, of_bias, of_residual) if each is not None]


class _Again(NamedTuple):
    """Makes the output again from what is kept: the mean and variance are those that were used for it."""

    settings: Settings

    def __call__(
        self, x: Tensor, _: None, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor
    ) -> Tensor:
        weight, bias = _contiguous(weight), _contiguous(bias)
        output = allocate_batch_last(x.shape, x.dtype)
        kernels().normalise(
            _shape(x.shape, self.settings), _address(weight), _address(bias), mean.data_ptr(), variance.data_ptr(),
            _running(None), x.data_ptr(), 0, output.data_ptr(), torch.get_num_threads(), x.dtype is torch.bfloat16,
        )  # fmt: skip
        return output

    def for_kernels(
        self, x: Tensor, _: None, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor
    ) -> Any | None:
        if self.settings.rate or any(each is not None and not each.is_contiguous() for each in (weight, bias)):
            return None
        return kernels().Normalised(
            _shape(x.shape, self.settings), _address(weight), _address(bias), mean.data_ptr(), variance.data_ptr()
        )


def _making(plan: tuple[Settings, Running | None], *kept: Tensor | None) -> _Again | None:
    """Return what makes the output again; None where a residual, which is not kept, was added."""
    return _Again(plan[0]._replace(training=False)) if kept[1] is None else None


_normalisation = Differentiable(_run, _keep, _gradients, inputs=6, differentiable=4, making=_making)


def _operator(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    epsilon: float,
    relu: bool,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias, mean, variance)
    check_activation("the residual", residual, x.shape, like=x)
    check_that(
        (mean is None) == training and (variance is None) == training,
        "mean and variance are those of the batch in training, else given",
    )
    check_that(
        not training or x.numel() > x.shape[1],
        f"more than 1 value a channel is needed for its statistics, got input {tuple(x.shape)}",
    )
    return _run(
        (Settings(epsilon, relu, training), None), None, to_batch_last(x), weight, bias, residual, mean, variance
    )


def _gradient_operator(
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
    input_shape: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    """Return the gradients that are wanted, in this order: of input, weight, bias, residual."""
    _check(x, weight, bias, mean, variance)
    check_activation("the output's gradient", output_gradient, x.shape, like=x)
    check_activation("the output", output, x.shape, like=x)
    check_that(tuple(input_shape) == tuple(x.shape), f"the input has shape {tuple(x.shape)}, not {tuple(input_shape)}")
    check_that(len(wanted) == 4, f"four gradients are wanted or not, not {wanted}")
    given = to_batch_last(output_gradient)
    output = None if output is None else to_batch_last(output)
    mean, variance = mean.contiguous(), variance.contiguous()
    plan = (Settings(epsilon, relu, training), None)
    made = _gradients(plan, tuple(x.shape), wanted, given, to_batch_last(x), output, weight, bias, mean, variance)
    # An operator may not return what it was given.
    return [each.clone() if each is output_gradient else each for each in made]


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    return empty_batch_last(x, *x.shape), mean, variance


def _gradient_fake(output_gradient: Tensor, *arguments: Any) -> list[Tensor]:
    *_, input_shape, wanted = arguments
    channels = (input_shape[1],)
    return [
        output_gradient.new_empty(channels, dtype=torch.float32)
        if each in (1, 2)
        else empty_batch_last(output_gradient, *input_shape)
        for each, wants in enumerate(wanted)
        if wants
    ]


operator, gradient_operator = _normalisation.operators(
    "normalise", _operator, _gradient_operator, _fake, _gradient_fake
)


def _check(x: Tensor, *by_channel: Tensor | None) -> None:
    check_activation("the input", x)
    check_that(x.dim() == 4 and x.numel(), f"an input has 4 dimensions, none of them 0, not shape {tuple(x.shape)}")
    for name, tensor in zip(("weight", "bias", "mean", "variance"), by_channel, strict=True):
        check_tensor(name, tensor, x.shape[1:2])


def _shape(shape: tuple[int, ...], settings: Settings) -> Any:
    count, channels, height, width = shape
    native = kernels()
    dropout = native.Dropout(settings.rate, settings.seed or 0)
    return native.Normalisation(
        channels, count * height * width, settings.epsilon, settings.relu, settings.training, dropout
    )


def _running(running: Running | None) -> Any:
    if running is None:
        return kernels().RunningStatistics(0, 0, 0, 0.0)
    *statistics, momentum = running
    # PyTorch does not see what the kernel writes.
    torch.autograd.graph.increment_version(statistics)
    addresses = [statistic.data_ptr() for statistic in statistics]
    return kernels().RunningStatistics(*addresses, -1.0 if momentum is None else momentum)


def _copy(x: Tensor, statistic: Tensor | None) -> Tensor:
    """Return a new tensor of one number a channel, which a kernel may write."""
    if statistic is None:
        return x.new_empty(x.shape[1], dtype=torch.float32)
    return statistic.clone(memory_format=torch.contiguous_format)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
