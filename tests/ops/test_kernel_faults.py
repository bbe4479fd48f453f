"""What the compiled kernels do with indices, sizes and planes that are wrong or empty."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regrow.ops.native import kernels
from regrow.ops.pattern import Geometry, Pattern

pytest.importorskip("regrow._kernels")

FIELDS = ("order", "place", "segment_row", "segment_start", "block_start")


class Direction:
    """One direction of a weight whose index is checked."""

    def __init__(self, shape: tuple[int, ...], geometry: Geometry, density: float, *, transposed: bool) -> None:
        chosen = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
        pattern = Pattern.of_mask(chosen)
        blocks = pattern.transposed_blocks(geometry) if transposed else pattern.forward_blocks(geometry)
        inputs = shape[1] * geometry.groups
        strided = transposed and geometry.stride != (1, 1)
        self.phase = pattern._phase(geometry) if strided else None
        self.settings = {
            "values": pattern.nonzeros,
            "rows": inputs if transposed else shape[0],
            "channels": shape[0] if transposed else inputs,
            "channels_per_block": int(blocks.blocking[0]),
            "taps": math.prod(shape[2:]),
            "phases": math.prod(geometry.stride) if strided else 1,
        }
        self.tensors = dict(zip(FIELDS, list(blocks), strict=False))

    def fault(self) -> str:
        """Return what the check says of the index as it stands."""
        given = {}
        for name, tensor in self.tensors.items():
            given[name], given[f"{name}s"] = tensor.data_ptr(), len(tensor)
        phase = 0 if self.phase is None else self.phase.data_ptr()
        return str(kernels().check_index(**given, phase=phase, **self.settings))


DIRECTIONS = [
    ((3, 7), Geometry(), False),
    ((300, 500), Geometry(), True),
    ((4, 3, 3, 2), Geometry((2, 2), (1, 0), (1, 1), 2), True),
    ((6, 1, 3, 3), Geometry((1, 2), (1, 1), (2, 1), 6), False),
    ((40, 90, 3, 3), Geometry((2, 1), (1, 1)), True),
    ((40, 90, 3, 3), Geometry((2, 1), (1, 1)), False),
    ((5, 3, 11, 11), Geometry((4, 4), (2, 2)), True),
]


@pytest.mark.parametrize("density", [0, 0.1, 1])
@pytest.mark.parametrize(("shape", "geometry", "transposed"), DIRECTIONS, ids=str)
def test_a_right_index_passes(shape, geometry, transposed, density) -> None:
    assert Direction(shape, geometry, density, transposed=transposed).fault() == ""


def damaged() -> Direction:
    """Return a direction of several blocks and phases."""
    return Direction((40, 90, 3, 3), Geometry((2, 1), (1, 1)), 0.5, transposed=True)


def test_the_damaged_index_has_blocks_and_phases() -> None:
    direction = damaged()
    assert direction.settings["channels_per_block"] < direction.settings["channels"]
    assert direction.settings["phases"] == 2
    assert direction.fault() == ""


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("longer", [-1, 1])
def test_a_tensor_of_the_wrong_length_is_told(name: str, longer: int) -> None:
    direction = damaged()
    tensor = direction.tensors[name]
    direction.tensors[name] = tensor[:-1].clone() if longer < 0 else torch.cat([tensor, tensor[-1:]])
    assert direction.fault()


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [-1, 2**15 - 1, -(2**15)])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_number_out_of_range_is_told(name: str, value: int, at: int) -> None:
    direction = damaged()
    direction.tensors[name] = direction.tensors[name].clone()
    direction.tensors[name][at] = value
    assert direction.fault()


@pytest.mark.parametrize("name", FIELDS)
def test_every_flipped_bit_of_a_small_index_is_told(name: str) -> None:
    # Where every weight is active each number is the only right one.
    direction = Direction((2, 3, 2, 1), Geometry(), 1, transposed=False)
    original = direction.tensors[name]
    for at in range(len(original)):
        for bit in range(original.itemsize * 8 - 1):
            changed = original.clone()
            changed[at] = changed[at] ^ (1 << bit)
            direction.tensors[name] = changed
            assert direction.fault(), (at, bit)


def second_of(tensor: Tensor) -> None:
    tensor[1] = tensor[0]


def swapped(tensor: Tensor) -> None:
    tensor[[0, 1]] = tensor[[1, 0]]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("order", second_of, "used more than once"),
        ("place", second_of, "of the same segment"),
        ("place", swapped, "of the same segment"),
        ("segment_row", second_of, "two segments"),
        ("segment_start", swapped, "starts at"),
        ("block_start", swapped, "starts at"),
        ("block_start", second_of, "segments for 90 rows"),
    ],
)
def test_a_fault_is_told_in_words(name: str, change: Callable[[Tensor], None], words: str) -> None:
    direction = damaged()
    direction.tensors[name] = direction.tensors[name].clone()
    change(direction.tensors[name])
    assert words in direction.fault()


def test_a_tap_of_another_phase_is_told() -> None:
    direction = damaged()
    assert direction.phase is not None
    direction.phase = direction.phase.flip(0) + 1
    assert "not of phase" in direction.fault()


@pytest.mark.parametrize(
    "settings",
    [
        {"values": 1},
        {"rows": 89},
        {"rows": 91},
        {"channels": 39},
        {"channels": 0},
        {"channels": 2**40},
        {"channels_per_block": 0},
        {"channels_per_block": -1},
        {"channels_per_block": 41},
        {"taps": 0},
        {"taps": 8},
        {"phases": 0},
        {"phases": 4},
        {"phases": 2**62},
    ],
    ids=str,
)
def test_an_index_of_another_weight_is_told(settings: dict[str, int]) -> None:
    direction = damaged()
    direction.settings |= settings
    assert direction.fault()
