"""Kernels for units of several outputs, against the dense weight and PyTorch's own operations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_ops import CASES, Case, compare, convolve_both
from torch import Tensor

from regrow.core.units import Units
from regrow.ops import sparse_conv2d, sparse_linear
from regrow.ops.blocking import Blocking
from regrow.ops.conv2d import cpu
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
    monkeypatch.setattr(
        "regrow.ops.pattern.unit_blocking",
        lambda channels, *_, **__: Blocking(min(channels, per_block), sweep=True, unit=4),
    )
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


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_input_gradient(threads: int) -> None:
    case, pattern = in_units(CASES["batch 100"], 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        convolve_both(case, pattern)
        several = _input_gradient(case, pattern)
        torch.set_num_threads(1)
        assert torch.equal(_input_gradient(case, pattern), several)
    finally:
        torch.set_num_threads(before)


def _input_gradient(case: Case, pattern: Pattern) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(case.batch, case.channels, *case.plane, generator=generator).requires_grad_()
    values = torch.randn(pattern.nonzeros, generator=generator)
    output = sparse_conv2d(x, values, None, pattern, *case.geometry)
    (gradient,) = torch.autograd.grad(output, x, torch.randn(output.shape, generator=generator))
    return gradient


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
