"""Kernels for units of several outputs, against the dense weight and PyTorch's own operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from test_ops import CASES, Case, compare, convolve_both, operands
from torch import Tensor

from regrow.core.units import Units
from regrow.ops import sparse_conv2d, sparse_linear
from regrow.ops.blocking import Blocking
from regrow.ops.conv2d import cpu
from regrow.ops.conv2d.plan import output_shape
from regrow.ops.conv2d.reference import conv2d as conv2d_reference
from regrow.ops.linear.reference import linear as linear_reference
from regrow.ops.pattern import Geometry, Pattern

pytest.importorskip("regrow._kernels")
pytestmark = pytest.mark.usefixtures("poisoned_memory")

ROWS = (2, 4, 8)
# What is left to single weights: units across groups.
WHOLE = [name for name, case in CASES.items() if case.geometry.groups == 1]


def unit_pattern(shape: tuple[int, ...], rows: int, density: float) -> Pattern:
    units = Units(shape, (rows, 1))
    chosen = torch.rand(units.count, generator=torch.Generator().manual_seed(3)) < density
    positions = units.positions_of(chosen.nonzero().squeeze(1)).sort().values
    return Pattern(shape, positions, (rows, 1))


def _blocks_of(monkeypatch: pytest.MonkeyPatch, channels: int, rows: int) -> None:
    """Let blocks have at most some channels."""
    monkeypatch.setattr(
        "regrow.ops.pattern.unit_blocking", lambda all_of, *_, **__: Blocking(min(all_of, channels), True, rows)
    )


def in_units(case: Case, rows: int) -> tuple[Case, Pattern]:
    case = replace(case, outputs=case.outputs * rows)
    shape = (case.outputs, case.channels // case.geometry.groups, *case.kernel)
    return case, unit_pattern(shape, rows, case.density)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_convolution_is_the_dense_one(name: str, rows: int) -> None:
    case, pattern = in_units(CASES[name], rows)
    assert pattern.rows_of_entry(case.geometry.groups) == rows
    convolve_both(case, pattern)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("per_block", [1000, 3])
@pytest.mark.parametrize("batch", [35, 64, 100, 130])
@pytest.mark.parametrize("name", ["odd", "uneven stride", "dilation", "groups", "all together", "four positions"])
def test_blocks_of_channels_and_batches(name: str, batch: int, per_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _blocks_of(monkeypatch, per_block, 4)
    convolve_both(*in_units(replace(CASES[name], batch=batch), 4))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("batch", [1, 7, 16, 33, 63, 100, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 8), (3, 16), (130, 72)])
def test_linear_is_the_dense_one(batch: int, inputs: int, outputs: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = unit_pattern((outputs, inputs), rows, 0.3)
    x = torch.randn(batch, inputs, generator=generator).requires_grad_()
    values = torch.randn(pattern.nonzeros, generator=generator).requires_grad_()
    bias = torch.randn(outputs, generator=generator).requires_grad_()
    output = sparse_linear(x, values, bias, pattern)
    expected = linear_reference(x.double(), values.double(), bias.double(), pattern)
    compare(output, expected, [x, values, bias], scale=math.sqrt(output.numel()))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("plane", [(5, 45), (45, 5), (19, 21)])
@pytest.mark.parametrize(
    ("batch", "kernel", "geometry", "per_block"),
    [
        (35, (3, 3), Geometry(padding=(1, 1)), 1000),
        (130, (3, 3), Geometry((1, 2), (1, 1), (2, 1)), 3),
        (70, (1, 5), Geometry((2, 3), (0, 2)), 1000),
        (64, (1, 1), Geometry(), 3),
        (32, (1, 1), Geometry((1, 2)), 1000),
    ],
    ids=str,
)
def test_planes_of_many_tiles(
    plane: tuple[int, int],
    batch: int,
    kernel: tuple[int, int],
    geometry: Geometry,
    per_block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _blocks_of(monkeypatch, per_block, 4)
    convolve_both(*in_units(Case(batch, 7, 3, plane, kernel, geometry), 4))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(
    ("name", "per_block"),
    [("batch 100", 1000), ("odd", 3), ("stride", 1000), ("dilation", 3), ("several blocks", 1000)],
)
def test_strips_shared_out_among_threads(
    name: str, threads: int, per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _blocks_of(monkeypatch, per_block, 4)
    case, pattern = in_units(CASES[name], 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        convolve_both(case, pattern)
        assert torch.equal(_input_gradient(case, pattern), _input_gradient(case, pattern))
    finally:
        torch.set_num_threads(before)


def _input_gradient(case: Case, pattern: Pattern) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(case.batch, case.channels, *case.plane, generator=generator).requires_grad_()
    values = torch.randn(pattern.nonzeros, generator=generator)
    output = sparse_conv2d(x, values, None, pattern, *case.geometry)
    (gradient,) = torch.autograd.grad(output, x, torch.randn(output.shape, generator=generator))
    return gradient


BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["input", "weight", "gradient"])
@pytest.mark.parametrize(
    ("batch", "rows", "geometry"),
    [
        (35, 4, Geometry(padding=(1, 1))),
        (64, 2, Geometry((1, 2), (2, 0))),
        (130, 8, Geometry((3, 1), (1, 2), (1, 2))),
        (7, 4, Geometry(padding=(1, 1))),
    ],
    ids=str,
)
def test_what_is_not_finite_shows_where_the_dense_weight_shows_it(
    batch: int, rows: int, geometry: Geometry, where: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    _blocks_of(monkeypatch, 3, rows)
    case = Case(batch, 5, 16, (8, 9), geometry=geometry)
    x, values, bias, pattern = operands(case, unit_pattern((16, 5, 3, 3), rows, 1.0))
    gradient = torch.randn(output_shape(x.shape, pattern.shape, geometry), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        if where == "weight":
            values[[7, 100]] = bad
        else:
            spoilt = x if where == "input" else gradient
            spoilt[0, 0, 2, 1] = spoilt[-1, 4, -1, -1] = bad

    def passes(conv2d: Callable[..., Tensor], kind: torch.dtype) -> tuple[Tensor, ...]:
        output = conv2d(x.to(kind), values.to(kind), bias.to(kind), pattern, geometry)
        return output.detach(), *torch.autograd.grad(output, [x, values, bias], gradient.to(kind))

    actual = passes(lambda x, values, bias, pattern, of: sparse_conv2d(x, values, bias, pattern, *of), torch.float32)
    padded, inside = (passes(conv2d, torch.float64) for conv2d in (conv2d_reference, _without_padding))
    assert not all(each.isfinite().all() for each in inside)
    for found, by_zeros, by_inputs in zip(actual, padded, inside, strict=True):
        # What is not finite and meets nothing but padding there may show, or not.
        wanted = torch.where(found.isfinite(), by_inputs, by_zeros)
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-3, equal_nan=True)


def _without_padding(x: Tensor, values: Tensor, bias: Tensor, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Return what a convolution by all weights gives if no tap is ever multiplied with padding."""
    shape = output_shape(x.shape, pattern.shape, geometry)
    output = bias[:, None, None].expand(shape)
    for row, column in product(*map(range, pattern.kernel)):
        to, of = [], []
        for tap, outputs, inputs, stride, padding, dilation in zip(
            (row, column), shape[2:], x.shape[2:], *geometry[:3], strict=True
        ):
            reads = torch.arange(outputs) * stride + tap * dilation - padding
            inside = (reads >= 0) & (reads < inputs)
            to.append(inside.nonzero().squeeze(1))
            of.append(reads[inside])
        read = x[:, :, of[0]][:, :, :, of[1]]
        products = torch.einsum("nchw,oc->nohw", read, values.view(pattern.shape)[:, :, row, column])
        part = products.new_zeros(shape)
        part[:, :, to[0][:, None], to[1]] = products
        output = output + part
    return output


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("batch", [3, 35, 64])
def test_what_is_not_finite_shows_at_active_weights_alone(batch: int, bad: float) -> None:
    # One unit reads one input: where that is finite all is finite, whatever stands beside it.
    pattern = Pattern((8, 6), torch.tensor([2, 8, 14, 20]), (4, 1))
    x, values = torch.full((batch, 6), bad).requires_grad_(), torch.ones(4, requires_grad=True)
    with torch.no_grad():
        x[:, 2] = 1.0
    output = sparse_linear(x, values, None, pattern)
    given = torch.full((batch, 8), bad)
    given[:, :4] = 1.0
    of_x, of_values = torch.autograd.grad(output, [x, values], given)
    assert torch.equal(output, (torch.arange(8) < 4).float().expand(batch, 8))
    assert torch.equal(of_x, (4.0 * (torch.arange(6) == 2)).expand(batch, 6))
    assert torch.equal(of_values, torch.full((4,), float(batch)))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [1, 9])
@pytest.mark.parametrize("batch", [0, 1, 2, 15, 16, 33])
@pytest.mark.parametrize(
    ("plane", "kernel", "geometry"),
    [
        ((1, 1), (1, 1), Geometry()),
        ((1, 1), (3, 3), Geometry(padding=(40, 50))),
        ((1, 1), (1, 1), Geometry((3, 3), (1, 1))),
        ((1, 7), (1, 3), Geometry((1, 2), (0, 30))),
        ((7, 1), (3, 1), Geometry((2, 1), (30, 0))),
    ],
    ids=str,
)
def test_small_planes_and_more_threads_than_work(
    plane: tuple[int, int], kernel: tuple[int, int], geometry: Geometry, batch: int, threads: int
) -> None:
    case, before = Case(batch, 3, 8, plane, kernel, geometry), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        convolve_both(case, unit_pattern((8, 3, *kernel), 4, 0.7))
    finally:
        torch.set_num_threads(before)


def test_units_across_groups_are_single_weights_to_the_kernels() -> None:
    case = replace(CASES["groups"], outputs=8)  # two outputs a group
    pattern = unit_pattern((8, 3, 3, 3), 4, 0.5)
    assert pattern.rows_of_entry(4) == 1
    convolve_both(case, pattern)


@pytest.mark.parametrize("unit", [(1, 4), (4, 2), (3, 1), (16, 1)])
def test_other_units_are_single_weights_to_the_kernels(unit: tuple[int, int]) -> None:
    shape = (48, 8, 3, 3)
    units = Units(shape, unit)
    chosen = torch.arange(0, units.count, 3)
    pattern = Pattern(shape, units.positions_of(chosen).sort().values, unit)
    assert pattern.rows_of_entry(1) == 1
    convolve_both(Case(33, 8, 48, (5, 5)), pattern)


def test_one_index_serves_all_passes_and_is_small() -> None:
    shape = (64, 64, 3, 3)
    pattern = unit_pattern(shape, 4, 0.05)
    x = torch.randn(64, 64, 4, 4, requires_grad=True)
    values = torch.randn(pattern.nonzeros, requires_grad=True)
    sparse_conv2d(x, values, None, pattern, padding=(1, 1)).sum().backward()
    single = Pattern(shape, pattern.positions)
    single.forward_blocks(Geometry(padding=(1, 1)))
    single.transposed_blocks(Geometry(padding=(1, 1)))
    index, of_single = (each.nbytes - each.positions.nbytes for each in (pattern, single))
    assert index < 0.2 * of_single


def test_a_missing_gradient_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    case, pattern = in_units(CASES["odd"], 4)
    x = torch.randn(case.batch, case.channels, *case.plane)
    values = torch.randn(pattern.nonzeros, requires_grad=True)
    called: list[str] = []
    native = cpu.kernels()

    class Recorded:
        def __getattr__(self, name: str) -> object:
            called.append(name)
            return getattr(native, name)

    monkeypatch.setattr(cpu, "kernels", Recorded)
    sparse_conv2d(x, values, None, pattern, *case.geometry).sum().backward()
    assert "values_gradient" in called
    assert "input_gradient" not in called


def test_compiled_and_exported_programs_take_units() -> None:
    case, pattern = in_units(CASES["stride"], 4)
    x = torch.randn(case.batch, case.channels, *case.plane, requires_grad=True)
    values = torch.randn(pattern.nonzeros, requires_grad=True)
    pattern.forward_blocks(case.geometry)

    def run(x: Tensor, values: Tensor) -> Tensor:
        return sparse_conv2d(x, values, None, pattern, *case.geometry)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected, actual = run(x, values), compiled(x, values)
    torch.testing.assert_close(actual, expected)
    given = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, [x, values], given), torch.autograd.grad(expected, [x, values], given), strict=True
    ):
        torch.testing.assert_close(a, b)
