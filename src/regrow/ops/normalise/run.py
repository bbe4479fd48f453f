"""The fused normalisation and its gradients by the compiled kernels, float32 on the CPU. Nothing here is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regrow.ops.eager import serves
from regrow.ops.layout import allocate_batch_last, to_batch_last
from regrow.ops.native import kernels, kernels_serve


class Settings(NamedTuple):
    """What a normalisation is told beside its tensors; see `regrow.ops.normalise`."""

    epsilon: float
    relu: bool
    dropped: float = 0.0
    seed: int = 0


class Running(NamedTuple):
    """Statistics that follow those of the batches, in place.

    Attributes:
        mean: of each channel, shape (C,).
        variance: unbiased, of each channel, shape (C,).
        batches: how many there were, int64, shape ().
        momentum: what the newest batch counts; None for the mean over all batches.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor
    momentum: float | None

    @property
    def served(self) -> bool:
        """Whether a kernel can move them: ordinary float32 on the CPU without gaps, and an int64."""
        *statistics, batches = self[:3]
        return (
            serves(*self[:3])
            and kernels_serve(*statistics)
            and batches.device.type == "cpu"
            and batches.dtype == torch.int64
            and all(statistic.is_contiguous() for statistic in statistics)
        )


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    settings: Settings,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, batch-last, with the mean and variance that were used; moves the running statistics."""
    training = mean is None or variance is None
    x = to_batch_last(x)
    residual = None if residual is None else to_batch_last(residual)
    weight, bias = _contiguous(weight), _contiguous(bias)
    mean, variance = (_copy(x, statistic) for statistic in (mean, variance))
    output = allocate_batch_last(*x.shape)
    kernels().normalise(
        shape=_shape(x, settings, training),
        weight=_address(weight),
        bias=_address(bias),
        mean=mean.data_ptr(),
        variance=variance.data_ptr(),
        running=_running(running),
        input=x.data_ptr(),
        residual=_address(residual),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output, mean, variance


def gradients(
    output_gradient: Tensor,
    x: Tensor,
    output: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    settings: Settings,
    training: bool,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of input, residual, weight and bias, those that are wanted; else None.

    Args:
        output_gradient: gradient of the output, shape (N, C, H, W).
        x: input.
        output: with ReLU after a residual, the output; else None.
        weight: as given to `normalise`.
        bias: as given to `normalise`.
        mean: that was used.
        variance: that was used.
        settings: as given to `normalise`.
        training: whether mean and variance are those of the batch.
        wanted: which of the four.
    """
    output_gradient, x = to_batch_last(output_gradient), to_batch_last(x)
    output = None if output is None else to_batch_last(output)
    weight, bias = _contiguous(weight), _contiguous(bias)
    made = [
        (allocate_batch_last(*x.shape) if each < 2 else mean.new_empty(mean.shape)) if wants else None
        for each, wants in enumerate(wanted)
    ]
    of_input, of_residual, of_weight, of_bias = map(_address, made)
    kernels().normalise_gradient(
        shape=_shape(x, settings, training),
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
    return made


def _shape(x: Tensor, settings: Settings, training: bool) -> Any:
    channels = x.shape[1]
    return kernels().Normalisation(
        channels=channels,
        length=x.numel() // channels,
        epsilon=settings.epsilon,
        relu=settings.relu,
        training=training,
        dropout=kernels().Dropout(settings.dropped, settings.seed),
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
    return x.new_empty(x.shape[1]) if statistic is None else statistic.clone(memory_format=torch.contiguous_format)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
