"""Nearly full convolutions: the kernels take the whole units in which their weights lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_ops import CASES, convolve_both
from torch import Tensor

from regrow.core.units import Units
from regrow.ops import sparse_conv2d
from regrow.ops.conv2d import cpu
from regrow.ops.conv2d.plan import flat
from regrow.ops.pattern import Geometry, Pattern

pytest.importorskip("regrow._kernels")

GEOMETRY = Geometry(padding=(1, 1))
SHAPE = (8, 5, 3, 3)


def nearly_full(shape: tuple[int, ...] = SHAPE, density: float = 0.97) -> Pattern:
    return Pattern.of_mask(torch.rand(shape, generator=torch.Generator().manual_seed(3)) < density)


def test_each_weight_has_its_place_in_the_units() -> None:
    pattern = nearly_full()
    filled_up = pattern.filled_up(1)
    assert filled_up is not None
    units, places = filled_up
    assert torch.equal(units.positions[places.long()], pattern.positions)
    assert pattern.nonzeros < units.nonzeros <= 1.1 * pattern.nonzeros
    # none but units in which a weight lies
    numbers = Units(SHAPE, (4, 1)).numbers_of(units.positions.long())
    mask = torch.zeros(pattern.numel)
    mask[pattern.positions.long()] = 1.0
    assert len(numbers) == int(mask.view(2, 4, -1).amax(dim=1).sum())


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (nearly_full(density=0.5), 1),  # more zeros than the units win
        (nearly_full((6, 5, 3, 3)), 1),  # no units of four outputs
        (nearly_full((8, 5, 3, 3)), 4),  # nor in a group
        (nearly_full((8, 40)), 1),  # a linear layer
        (Pattern(SHAPE, torch.arange(0)), 1),
    ],
)
def test_others_stay_single_weights(pattern: Pattern, groups: int) -> None:
    assert pattern.filled_up(groups) is None


@pytest.mark.usefixtures("any_instruction_set", "poisoned_memory")
@pytest.mark.parametrize("name", ["odd", "stride and dilation", "groups", "all together", "one position"])
def test_convolution_is_the_dense_one(name: str) -> None:
    case = CASES[name]
    groups = case.geometry.groups
    case = replace(case, outputs=8 * groups, density=0.97)
    pattern = nearly_full((case.outputs, case.channels // groups, *case.kernel))
    assert pattern.filled_up(groups) is not None
    convolve_both(case, pattern)


def test_a_compiled_program_computes_the_same() -> None:
    pattern = nearly_full()
    x, values = torch.randn(3, 5, 6, 6, requires_grad=True), torch.randn(pattern.nonzeros, requires_grad=True)
    pattern.index_of_product(GEOMETRY, input_gradient=True)

    def run(x: Tensor, values: Tensor) -> Tensor:
        return sparse_conv2d(x, values, None, pattern, padding=(1, 1))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected, actual = run(x, values), compiled(x, values)
    assert torch.equal(actual, expected)
    given = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, [x, values], given), torch.autograd.grad(expected, [x, values], given), strict=True
    ):
        assert torch.equal(ours, theirs)


def arguments() -> dict[str, Any]:
    pattern = nearly_full()
    index, transposed_index = pattern.index_of_product(GEOMETRY, input_gradient=True)
    return {
        "x": torch.randn(3, 5, 6, 6),
        "values": torch.randn(pattern.nonzeros),
        "bias": None,
        "index": [tensor.clone() for tensor in index],
        "transposed_index": transposed_index,
        "weight_shape": list(SHAPE),
        "geometry": flat(GEOMETRY),
    }


def test_an_operator_takes_places() -> None:
    cpu.operator(**arguments())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda places: places + 1_000,
        lambda places: places - 1,
        lambda places: places.flip(0),
        lambda places: places[:-1],
        lambda places: places.long(),
        lambda places: places[None],
    ],
)
def test_places_that_do_not_fit_raise(wrong: Any) -> None:
    given = arguments()
    given["index"][-1] = wrong(given["index"][-1])
    with pytest.raises(ValueError, match="places of the index"):
        cpu.operator(**given)


def test_two_tensors_of_places_raise() -> None:
    given = arguments()
    given["index"].append(given["index"][-1])
    with pytest.raises(ValueError, match="one tensor of places"):
        cpu.operator(**given)
