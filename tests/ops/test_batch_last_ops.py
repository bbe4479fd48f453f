"""Normalisation and pooling with the batch innermost, against PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.ops import batch_last, is_batch_last
from regrow.ops.normalise import cpu as normalise_cpu
from regrow.ops.normalise import normalise
from regrow.ops.pool import cpu as pool_cpu
from regrow.ops.pool import max_pool2d, mean_pool2d

pytest.importorskip("regrow._kernels")

# Batches below, at and beside multiples of every vector; planes odd and even; channels beyond the sums' blocks.
SHAPES = [(1, 3, 5, 7), (2, 1, 1, 1), (7, 5, 4, 4), (16, 4, 8, 8), (33, 3, 9, 7), (64, 2, 16, 17), (100, 3, 1, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
WINDOWS = {
    "2x2": ((2, 2), (2, 2), (0, 0)),
    "3x3 overlapping": ((3, 3), (2, 2), (1, 1)),
    "uneven": ((3, 2), (1, 2), (1, 0)),
    "apart": ((1, 2), (3, 3), (0, 1)),
    "plane": ((6, 7), (6, 7), (0, 0)),
}
each_window = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agrees(
    ours: Callable[..., Tensor], pytorchs: Callable[..., Tensor], inputs: list[Tensor | None], tolerance: float = 1e-5
) -> None:
    """Compare output and every gradient in single precision with PyTorch's in double precision."""
    singles = [None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in inputs]
    doubles = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    actual, expected = ours(*singles), pytorchs(*doubles)
    assert is_batch_last(actual)
    gradient = drawn(*expected.shape, seed=9)
    found = torch.autograd.grad(actual, [tensor for tensor in singles if tensor is not None], gradient)
    wanted = torch.autograd.grad(expected, [tensor for tensor in doubles if tensor is not None], gradient.double())
    for a, b in zip((actual, *found), (expected, *wanted), strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


def away_from_zero(*shape: int) -> Tensor:
    """Return numbers of both signs for a channel's scale and shift."""
    numbers = drawn(*shape, seed=3)
    return numbers + 0.2 * numbers.sign()


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("training", [True, False])
@each_shape
def test_normalisation_is_pytorchs(
    shape: tuple[int, ...], training: bool, relu: bool, residual: bool, affine: bool
) -> None:
    count, channels, height, width = shape
    if training and count * height * width < 8:
        pytest.skip("the gradient of a handful of normalised numbers is all rounding")
    mean, variance = drawn(channels, seed=5), drawn(channels, seed=6).square() + 0.1
    parameters = [away_from_zero(channels), drawn(channels, seed=4)] if affine else [None, None]

    def activation(output: Tensor, residual: Tensor | None) -> Tensor:
        output = output if residual is None else output + residual
        return F.relu(output) if relu else output

    def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        given = {} if training else {"mean": mean, "variance": variance}
        return normalise(x, weight, bias, residual=residual, relu=relu, **given)[0]

    def pytorchs(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        statistics = (None, None) if training else (mean.double(), variance.double())
        return activation(F.batch_norm(x, *statistics, weight, bias, training=training), residual)

    more = drawn(*shape, seed=2) if residual else None
    agrees(ours, pytorchs, [drawn(*shape) * 3 + 1, *parameters, more], tolerance=3e-5)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("offset", [0.0, 1e2, -1e4])
def test_statistics_bear_a_mean_far_from_zero(offset: float) -> None:
    x = (drawn(100, 3, 9, 11) + offset).requires_grad_()
    _, mean, variance = normalise(x)
    exact = x.detach().double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=2e-6, atol=0)
    assert not mean.requires_grad
    assert not variance.requires_grad


def test_a_channel_of_one_number_has_no_variance() -> None:
    output, mean, variance = normalise(torch.full((5, 2, 3, 3), 0.3), torch.ones(2), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(mean, torch.full((2,), 0.3))
    torch.testing.assert_close(variance, torch.zeros(2), rtol=0, atol=1e-14)
    torch.testing.assert_close(output[0, :, 0, 0], torch.tensor([1.0, -1.0]), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@each_window
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 64])
def test_max_pool_is_pytorchs(batch: int, window: tuple[tuple[int, int], ...]) -> None:
    # Rounded, so that there are ties: of equal numbers the first one counts. Windows of 2x2 tile the wider plane.
    for width in (7, 8):
        x = drawn(batch, 3, 6, width).mul(2).round()
        agrees(lambda x: max_pool2d(x, *window), lambda x: F.max_pool2d(x, *window), [x])


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@each_window
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 64])
def test_mean_pool_is_pytorchs(batch: int, divisor: int | None, window: tuple[tuple[int, int], ...]) -> None:
    def pytorchs(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, *window, count_include_pad=False, divisor_override=divisor)

    agrees(lambda x: mean_pool2d(x, *window, divisor=divisor), pytorchs, [drawn(batch, 3, 6, 7)])


@pytest.mark.usefixtures("any_instruction_set")
def test_large_activations_are_right_around_the_caches() -> None:
    shape = (128, 5, 64, 64)  # 10 MiB

    def normalised(x: Tensor, residual: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, training=True) + residual)

    agrees(
        lambda x, residual: normalise(x, residual=residual, relu=True)[0],
        normalised,
        [drawn(*shape), drawn(*shape, seed=1)],
        tolerance=3e-5,
    )
    for kernel in (2, 3):
        agrees(
            lambda x, kernel=kernel: max_pool2d(x, (kernel, kernel), (2, 2)),
            lambda x, kernel=kernel: F.max_pool2d(x, kernel, 2),
            [drawn(*shape)],
        )


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_passes_as_in_pytorch(bad: float) -> None:
    x = drawn(20, 2, 4, 4)
    x[3, 1, 2, 2] = bad
    mean, variance = torch.zeros(2), torch.ones(2)
    expected = F.relu(F.batch_norm(x, mean, variance))
    torch.testing.assert_close(normalise(x, mean=mean, variance=variance, relu=True)[0], expected, equal_nan=True)
    expected = F.relu(F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(normalise(x, relu=True)[0], expected, equal_nan=True)
    torch.testing.assert_close(max_pool2d(x, (2, 2), (2, 2)), F.max_pool2d(x, 2), equal_nan=True)
    torch.testing.assert_close(mean_pool2d(x, (2, 2), (2, 2)), F.avg_pool2d(x, 2), equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equal_inputs_give_equal_bits_whatever_the_threads(threads: int) -> None:
    def run() -> list[Tensor]:
        x, residual = drawn(100, 7, 9, 9).requires_grad_(), drawn(100, 7, 9, 9, seed=1).requires_grad_()
        weight, bias = drawn(7).requires_grad_(), drawn(7, seed=1).requires_grad_()
        output = normalise(x, weight, bias, residual=residual, relu=True)[0]
        pooled = mean_pool2d(max_pool2d(output, (3, 3), (2, 2), (1, 1)), (2, 2), (1, 1))
        return [pooled, *torch.autograd.grad(pooled.square().sum(), [x, weight, bias, residual])]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run()
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(alone, run(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "residual"])
@pytest.mark.parametrize("relu", [True, False])
def test_frozen_inputs_get_no_gradient(frozen: str, relu: bool) -> None:
    leaves = {"x": drawn(5, 3, 4, 4), "weight": drawn(3), "bias": drawn(3, seed=1), "residual": drawn(5, 3, 4, 4)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    output, *_ = normalise(**leaves, relu=relu)
    output.square().sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch last", "expanded"])
def test_any_layout_gives_the_same(layout: str) -> None:
    x = drawn(8, 6, 5, 4)
    given = {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "batch last": batch_last(x),
        "expanded": x[:, :1].expand_as(x),
    }[layout]
    expected = F.max_pool2d(F.relu(F.batch_norm(given, None, None, training=True)), 2)
    torch.testing.assert_close(max_pool2d(normalise(given, relu=True)[0], (2, 2), (2, 2)), expected)


def test_other_types_take_pytorchs_own() -> None:
    x, residual = drawn(4, 3, 4, 4).double().requires_grad_(), drawn(4, 3, 4, 4, seed=1).double().requires_grad_()

    def function(x: Tensor, residual: Tensor) -> Tensor:
        output = normalise(x, residual=residual)[0]
        return mean_pool2d(max_pool2d(output, (2, 2), (1, 1)), (3, 3), (1, 1))

    assert function(x, residual).dtype == torch.float64
    assert torch.autograd.gradcheck(function, (x, residual))
    output, mean, variance = normalise(x, relu=True)
    torch.testing.assert_close(output, F.relu(F.batch_norm(x, None, None, training=True)))
    torch.testing.assert_close(variance, x.detach().var((0, 2, 3), correction=0))
    torch.testing.assert_close(mean, x.detach().mean((0, 2, 3)))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_operators_keep_the_rules_of_torch_library(training: bool, residual: bool) -> None:
    x = drawn(5, 3, 4, 4).requires_grad_()
    weight, bias = away_from_zero(3).requires_grad_(), drawn(3).requires_grad_()
    statistics = (None, None) if training else (drawn(3), drawn(3).square() + 1)
    more = drawn(5, 3, 4, 4, seed=1).requires_grad_() if residual else None
    settings = (1e-5, True, training)
    torch.library.opcheck(normalise_cpu.operator, (x, weight, bias, more, *statistics, *settings))
    output, mean, variance = (tensor.detach() for tensor in normalise(x, weight, bias, residual=more, relu=True))
    saved = (x.detach(), output if residual else None, weight.detach(), bias.detach(), mean, variance)
    wanted = [True, True, False, residual]
    torch.library.opcheck(
        normalise_cpu.gradient_operator, (batch_last(output), *saved, *settings, list(x.shape), wanted)
    )


def test_pooling_operators_keep_the_rules_of_torch_library() -> None:
    x, window = batch_last(drawn(5, 3, 6, 6)), [3, 3, 2, 2, 1, 1]
    torch.library.opcheck(pool_cpu.max_operator, (x.clone().requires_grad_(), window))
    torch.library.opcheck(pool_cpu.mean_operator, (x.clone().requires_grad_(), window, 0))
    output, winner = pool_cpu.max_operator(x, window)
    torch.library.opcheck(pool_cpu.max_gradient_operator, (output, winner, window, list(x.shape), [True]))
    torch.library.opcheck(pool_cpu.mean_gradient_operator, (output, window, 9, list(x.shape), [True]))


def test_second_derivatives_are_refused() -> None:
    x = drawn(4, 2, 4, 4).requires_grad_()
    for output in (normalise(x)[0], max_pool2d(x, (2, 2), (2, 2)), mean_pool2d(x, (2, 2), (2, 2))):
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            gradient.sum().backward()


def test_errors_say_what_does_not_fit() -> None:
    x = torch.randn(4, 3, 5, 5)
    with pytest.raises(ValueError, match="4 dimensions"):
        normalise(x[0])
    with pytest.raises(ValueError, match="3 channels want as many numbers"):
        normalise(x, torch.ones(4))
    with pytest.raises(ValueError, match="the residual has shape"):
        normalise(x, residual=x[:2])
    with pytest.raises(ValueError, match="both mean and variance"):
        normalise(x, mean=torch.zeros(3))
    with pytest.raises(ValueError, match="more than 1 value a channel"):
        normalise(x[:1, :, :1, :1])
    with pytest.raises(ValueError, match="4 dimensions"):
        max_pool2d(x[0], (2, 2), (2, 2))
    with pytest.raises(ValueError, match="at most half the kernel"):
        max_pool2d(x, (2, 2), (2, 2), (2, 0))
    with pytest.raises(ValueError, match="does not fit an input"):
        mean_pool2d(x, (6, 2), (2, 2))
    with pytest.raises(ValueError, match="divisor must be at least 1"):
        mean_pool2d(x, (2, 2), (2, 2), divisor=0)
