"""Layers of random sizes and geometries against PyTorch's own in float64, seeded: a short profile, and a long one."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.core.units import Units
from regrow.ops import sparse_conv2d, sparse_linear
from regrow.ops.gradient import weight_gradient_at
from regrow.ops.pattern import Geometry, Pattern

SIDES = [1, 2, 3, 5, 7, 8, 16, 17, 31, 33]
PLANES = [1, 1, 2, 3, 4, 5, 7, 8, 13, 16]
BATCHES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65]
DENSITIES = [0.0, 0.02, 0.1, 0.3, 0.9, 1.0]


@dataclass(frozen=True)
class Case:
    """A layer and its input; `plane` is None for a linear layer."""

    outputs: int
    inputs: int
    kernel: tuple[int, int]
    geometry: Geometry
    plane: tuple[int, int] | None
    batch: int
    density: float
    memory: str
    bias: bool
    threads: int
    rows: int = 1  # outputs of a unit

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs // self.geometry.groups, *(self.kernel if self.plane else ()))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.inputs, *(self.plane or ()))


def drawn_case(draw: random.Random) -> Case:
    """Draw a layer whose kernel fits its plane."""
    if draw.random() < 0.2:
        sides = draw.choice([*SIDES, 100, 257]), draw.choice([*SIDES, 100, 257])
        kernel, geometry, plane = (1, 1), Geometry(), None
    else:
        groups = draw.choice([1, 1, 1, 2, 3, 4])
        most = [side for side in SIDES if side * groups <= 40]
        sides = draw.choice(most) * groups, draw.choice(most) * groups
        while True:
            kernel = draw.choice([1, 1, 2, 3, 3, 5]), draw.choice([1, 1, 2, 3, 3, 4])
            stride = draw.choice([1, 1, 1, 2, 3]), draw.choice([1, 1, 1, 2, 4])
            padding = draw.choice([0, 0, 1, 1, 2]), draw.choice([0, 0, 1, 1, 3])
            dilation = draw.choice([1, 1, 1, 2, 3]), draw.choice([1, 1, 1, 2])
            plane = draw.choice(PLANES), draw.choice(PLANES)
            if all(
                side + 2 * zeros >= step * (taps - 1) + 1
                for side, zeros, step, taps in zip(plane, padding, dilation, kernel, strict=True)
            ):
                break
        geometry = Geometry(stride, padding, dilation, groups)
    return Case(
        *sides,
        kernel,
        geometry,
        plane,
        batch=draw.choice(BATCHES),
        density=draw.choice(DENSITIES),
        memory=draw.choice(["contiguous", "batch last", "channels last", "strided"]),
        bias=draw.random() < 0.5,
        threads=draw.choice([1, 1, 2]),
    )


def drawn_case_of_units(draw: random.Random) -> Case:
    """Draw a layer of units, of about as many outputs, by up to as many threads as there may be too little work for."""
    case, rows = drawn_case(draw), draw.choice([2, 4, 8])
    of_group = max(1, case.outputs // case.geometry.groups // rows) * rows
    return replace(case, outputs=of_group * case.geometry.groups, rows=rows, threads=draw.choice([1, 2, 7]))


def laid_out(x: Tensor, memory: str) -> Tensor:
    """Return the same numbers in another order in memory."""
    if memory == "batch last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if memory == "channels last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if memory == "strided":
        wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
        wide[..., ::2] = x
        return wide[..., ::2]
    return x


def check(case: Case, seed: int) -> None:
    """Compare output and all gradients, those of absent weights among them, with float64."""
    generator = torch.Generator().manual_seed(seed)
    units = Units(case.weight_shape, (case.rows, 1))
    chosen = torch.rand(units.count, generator=generator) < case.density
    mask = torch.zeros(units.shape, dtype=torch.bool)
    mask.view(-1)[units.positions_of(chosen.nonzero().squeeze(1))] = True
    weight = torch.randn(case.weight_shape, generator=generator, dtype=torch.float64) * mask
    bias = torch.randn(case.outputs, generator=generator, dtype=torch.float64) if case.bias else None
    x = torch.randn(case.input_shape, generator=generator, dtype=torch.float64)
    pattern, geometry = Pattern.of_mask(mask, units.unit), case.geometry
    assert pattern.rows_of_entry(geometry.groups) == case.rows
    exact = [tensor.clone().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    if case.plane is None:
        expected = F.linear(*exact)
    else:
        expected = F.conv2d(exact[0], exact[1], exact[2] if case.bias else None, *geometry)
    given = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected_gradients = torch.autograd.grad(expected, exact, given)

    ours = [laid_out(x.float(), case.memory), weight[mask].float(), *([bias.float()] if bias is not None else [])]
    ours = [tensor.detach().requires_grad_() for tensor in ours]
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        if case.plane is None:
            output = sparse_linear(ours[0], ours[1], ours[2] if case.bias else None, pattern)
        else:
            output = sparse_conv2d(ours[0], ours[1], ours[2] if case.bias else None, pattern, *geometry)
        gradients = torch.autograd.grad(output, ours, laid_out(given.float(), case.memory))
        absent = weight_gradient_at(Pattern.of_mask(~mask, units.unit), ours[0].detach(), given.float(), geometry)
    finally:
        torch.set_num_threads(before)

    of_x, of_weight, *of_bias = expected_gradients
    pairs = [(output, expected), (gradients[0], of_x), (gradients[1], of_weight[mask]), (absent, of_weight[~mask])]
    pairs += zip(gradients[2:], of_bias, strict=True)
    check_bfloat16(case, [tensor.detach() for tensor in ours], given.float(), pattern)
    for one, other in pairs:
        assert one.shape == other.shape, case
        # Sums of n numbers of size one, in float32, are off by about sqrt(n) roundings.
        scale = float(other.detach().abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(
            one.double(), other, rtol=1e-4, atol=2e-5 * max(1.0, scale), msg=lambda m: f"{case}: {m}"
        )


def check_bfloat16(case: Case, leaves: list[Tensor], given: Tensor, pattern: Pattern) -> None:
    """Compare output and gradients in bfloat16 with those in float32 of the same numbers, rounded once."""
    x, *weights = leaves
    given, found = given.bfloat16(), []
    for dtype in (torch.bfloat16, torch.float32):
        entered = laid_out(x.bfloat16().to(dtype), case.memory).requires_grad_()
        of = [entered, *(weight.clone().requires_grad_() for weight in weights)]
        bias = of[2] if case.bias else None
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            if case.plane is None:
                output = sparse_linear(entered, of[1], bias, pattern)
            else:
                output = sparse_conv2d(entered, of[1], bias, pattern, *case.geometry)
        assert output.dtype is dtype, case
        found.append((output, *torch.autograd.grad(output, of, laid_out(given.to(dtype), case.memory))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other.to(one.dtype)), case


def run(seeds: range, draw: Callable[[random.Random], Case] = drawn_case) -> None:
    for seed in seeds:
        check(draw(random.Random(seed)), seed)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("part", range(4))
def test_random_layers_compute_as_pytorch_does(part: int) -> None:
    run(range(50 * part, 50 * (part + 1)))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("part", range(2))
def test_random_layers_of_units_compute_as_pytorch_does(part: int) -> None:
    run(range(50 * part, 50 * (part + 1)), drawn_case_of_units)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_many_random_layers_compute_as_pytorch_does(part: int, any_instruction_set: str) -> None:
    run(range(1000 + 500 * part, 1000 + 500 * (part + 1)))


@pytest.mark.slow
@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("part", range(10))
def test_many_random_layers_of_units_compute_as_pytorch_does(part: int) -> None:
    run(range(1000 + 500 * part, 1000 + 500 * (part + 1)), drawn_case_of_units)


def test_the_short_profile_meets_the_odd_cases() -> None:
    cases = [drawn_case(random.Random(seed)) for seed in range(200)]
    assert {case.batch for case in cases} == set(BATCHES)
    assert {case.density for case in cases} == set(DENSITIES)
    assert any(case.plane is None for case in cases)
    assert any(case.plane == (1, 1) and case.geometry.padding != (0, 0) for case in cases)
    assert {case.geometry.groups for case in cases} == {1, 2, 3, 4}


def test_the_short_profile_of_units_meets_the_odd_cases() -> None:
    cases = [drawn_case_of_units(random.Random(seed)) for seed in range(100)]
    assert {case.batch for case in cases} == set(BATCHES)
    assert {case.rows for case in cases} == {2, 4, 8}
    assert {case.threads for case in cases} == {1, 2, 7}
    assert {case.geometry.groups for case in cases} == {1, 2, 3, 4}
    assert any(case.batch == 1 and case.plane is None for case in cases)
