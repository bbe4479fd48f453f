"""What a sparse convolution keeps of its input: where a norm made it, what the norm keeps, and the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regrow.core.units import Units
from regrow.ops import batch_last, remade, sparse_conv2d
from regrow.ops.gradient import watch
from regrow.ops.normalise import Running, normalise
from regrow.ops.pattern import Geometry, Pattern

pytest.importorskip("regrow._kernels")

CHANNELS, OUTPUTS = 6, 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pattern_of(outputs: int, channels: int, density: float, rows: int = 1) -> Pattern:
    """Return a pattern of random units of some outputs."""
    units = Units((outputs, channels, 3, 3), (rows, 1))
    chosen = torch.rand(units.count, generator=torch.Generator().manual_seed(1)) < density
    return Pattern(units.shape, units.positions_of(chosen.nonzero().squeeze(1)).sort().values, units.unit)


# One for each way in which inputs are packed.
PATTERNS = {
    "sweep": pattern_of(OUTPUTS, CHANNELS, 0.3),
    "blocked": pattern_of(24, 40, 0.9),
    "units": pattern_of(OUTPUTS, CHANNELS, 0.3, 4),
}
PATTERN = PATTERNS["sweep"]


def leaves(dtype: torch.dtype = torch.float32, pattern: Pattern = PATTERN, batch: int = 40) -> list[Tensor]:
    """Return an input of a norm, the norm's weight and bias, and the weights of a convolution."""
    channels = pattern.shape[1]
    x = drawn(batch, channels, 5, 7).to(dtype)
    parameters = drawn(channels, seed=2), drawn(channels, seed=3), drawn(pattern.nonzeros, seed=4)
    return [tensor.requires_grad_() for tensor in (x, *parameters)]


def convolved(x: Tensor, values: Tensor, pattern: Pattern = PATTERN, stride: int = 1) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype is torch.bfloat16):
        return sparse_conv2d(x, values, None, pattern, padding=(1, 1), stride=(stride, stride))


def saved_input(output: Tensor) -> Tensor:
    """Return what the convolution that gave an output keeps first."""
    first: Tensor = output.grad_fn.saved_tensors[0]
    return first


def same_either_way(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, affine: bool = True, pattern: Pattern = PATTERN,
    batch: int = 40, stride: int = 1, **settings: Any,
) -> None:  # fmt: skip
    """Compare the gradients with those of a convolution that keeps its input, bit for bit."""
    found = []
    for makes_again in (True, False):
        torch.manual_seed(0)
        x, weight, bias, values = leaves(dtype, pattern, batch)
        if not makes_again:
            monkeypatch.setattr(remade, "making_of", lambda _: None)
        z, *_ = normalise(x, *((weight, bias) if affine else ()), **settings)
        output = convolved(z, values, pattern, stride)
        assert (saved_input(output).data_ptr() != z.data_ptr()) is makes_again
        wanted = [x, weight, bias, values] if affine else [x, values]
        found.append((output, *torch.autograd.grad(output, wanted, drawn(*output.shape, seed=7).to(dtype))))
    for again, kept in zip(*found, strict=True):
        assert torch.equal(again, kept)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"relu": True},
    "no parameters": {"relu": True, "affine": False},
    "dropout": {"relu": True, "rate": 0.3, "seed": 11},
    "drawn dropout": {"rate": 0.4},
    "given statistics": {"relu": True, "mean": drawn(CHANNELS, seed=5), "variance": drawn(CHANNELS, seed=6) ** 2},
}
each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@each_type
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_gradients_are_those_of_a_kept_input(
    settings: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_either_way(monkeypatch, dtype, **settings)


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@each_type
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [3, 40, 130])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_every_way_of_packing_makes_the_input_again(
    pattern: Pattern, batch: int, stride: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry((stride, stride), (1, 1))
    sweeps = bool(pattern.forward_blocks(geometry).blocking[1])
    assert sweeps is (pattern is not PATTERNS["blocked"])
    same_either_way(monkeypatch, dtype, pattern=pattern, batch=batch, stride=stride, relu=True)


def test_what_a_norm_gave_is_gone_before_the_backward_pass() -> None:
    x, weight, bias, values = leaves()
    z, *_ = normalise(x, weight, bias, relu=True)
    gone = remade.TensorWeakRef(z)
    output = convolved(z, values)
    del z
    assert gone() is None
    output.sum().backward()


def test_several_users_and_passes_make_it_again() -> None:
    x, weight, bias, values = leaves()
    z, *_ = normalise(x, weight, bias, relu=True)
    output = convolved(z, values) + convolved(z, values * 2)
    first = torch.autograd.grad(output.sum(), [x, values], retain_graph=True)
    second = torch.autograd.grad(output.sum(), [x, values])
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_the_convolution_has_what_it_needs_when_the_norm_has_let_go() -> None:
    x, weight, bias, values = leaves()
    other = values.detach().clone().requires_grad_()
    z, *_ = normalise(x, weight, bias, relu=True)
    output, beside = convolved(z, values), convolved(z, other)
    output.sum().backward()
    (gradient,) = torch.autograd.grad(beside.sum(), [other])
    assert torch.equal(gradient, values.grad)


def test_a_residual_is_not_kept_so_the_sum_is() -> None:
    x, weight, bias, values = leaves()
    z, *_ = normalise(x, weight, bias, residual=drawn(*x.shape, seed=8), relu=True)
    assert saved_input(convolved(z, values)).data_ptr() == z.data_ptr()


@pytest.mark.parametrize("with_record", [True, False])
def test_what_was_changed_in_place_is_kept(with_record: bool) -> None:
    x, weight, bias, values = leaves()
    z, *_ = normalise(x, weight, bias, relu=True)
    with torch.set_grad_enabled(with_record):
        z.mul_(3.0)
    output = convolved(z, values)
    assert saved_input(output).data_ptr() == z.data_ptr()
    (actual,) = torch.autograd.grad(output.sum(), [values])
    (expected,) = torch.autograd.grad(convolved(z.detach(), values).sum(), [values])
    assert torch.equal(actual, expected)


def test_a_change_after_the_convolution_does_not_matter() -> None:
    x, weight, bias, values = leaves()
    z, *_ = normalise(x, weight, bias, relu=True)
    (expected,) = torch.autograd.grad(convolved(z.detach(), values).sum(), [values])
    output = convolved(z, values)
    with torch.no_grad():
        z.zero_()
    (actual,) = torch.autograd.grad(output.sum(), [values])
    assert torch.equal(actual, expected)


def test_what_it_is_made_of_may_not_change() -> None:
    x, weight, bias, values = leaves()
    given = batch_last(x * 1)
    z, *_ = normalise(given, weight, bias)
    with torch.no_grad():
        given.mul_(2)
    assert saved_input(output := convolved(z, values)).data_ptr() == z.data_ptr()
    output = convolved(normalise(given, weight, bias)[0], values)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.sum(), [values])


def test_nothing_is_noted_without_gradients() -> None:
    x, weight, bias, values = leaves()
    running = Running(torch.zeros(CHANNELS), torch.ones(CHANNELS), torch.zeros((), dtype=torch.int64), 0.1)
    with torch.inference_mode():
        output = convolved(normalise(x, weight, bias, running=running)[0], values)
    assert output.grad_fn is None


def test_looking_at_absent_weights_keeps_no_more() -> None:
    absent = torch.zeros(OUTPUTS * CHANNELS * 9, requires_grad=True)
    x, weight, bias, values = leaves()
    z, *_ = normalise(x, weight, bias, relu=True)
    geometry = Geometry(padding=(1, 1))
    output = watch(convolved(z, values.detach()), z, absent, None, PATTERN.shape, geometry)
    assert saved_input(output).data_ptr() != z.data_ptr()
    output.sum().backward()
    kept = torch.zeros_like(absent, requires_grad=True)
    z = z.detach()
    watch(convolved(z, values.detach()), z, kept, None, PATTERN.shape, geometry).sum().backward()
    assert torch.equal(absent.grad, kept.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_and_hooks_for_saved_tensors_agree(reentrant: bool) -> None:
    def block(x: Tensor, weight: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        return convolved(normalise(x * 2, weight, bias, relu=True, rate=0.3)[0], values)

    torch.manual_seed(1)
    expected = torch.autograd.grad(block(*(inputs := leaves())).sum(), inputs)
    torch.manual_seed(1)
    checkpoint(block, *(inputs := leaves()), use_reentrant=reentrant).sum().backward()
    assert all(map(torch.equal, (each.grad for each in inputs), expected))
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda packed: packed):
        output = block(*(inputs := leaves()))
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), inputs), expected))


def test_second_derivatives_are_refused() -> None:
    x, weight, bias, values = leaves()
    output = convolved(normalise(x, weight, bias, relu=True)[0], values)
    (gradient,) = torch.autograd.grad(output.square().sum(), [values], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()
