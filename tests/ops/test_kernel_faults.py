"""What the compiled kernels do with indices, sizes and planes that are wrong or empty."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.core.units import Units
from regrow.ops import sparse_conv2d
from regrow.ops.conv2d import cpu
from regrow.ops.conv2d.plan import Plan
from regrow.ops.layout import to_batch_last
from regrow.ops.native import kernels
from regrow.ops.pattern import Geometry, Pattern

pytest.importorskip("regrow._kernels")

FIELDS = ("order", "place", "segment_row", "segment_start", "block_start")


def pattern_of(shape: tuple[int, ...], density: float, rows: int = 1) -> Pattern:
    """Return a pattern of random units of some outputs."""
    units = Units(shape, (rows, 1))
    chosen = torch.rand(units.count, generator=torch.Generator().manual_seed(0)) < density
    return Pattern(shape, units.positions_of(chosen.nonzero().squeeze(1)).sort().values, units.unit)


class Direction:
    """One direction of a weight whose index is checked; `rows` are the outputs of a unit."""

    def __init__(
        self, shape: tuple[int, ...], geometry: Geometry, density: float, *, transposed: bool, rows: int = 1
    ) -> None:
        pattern = pattern_of(shape, density, rows)
        blocks = pattern.transposed_blocks(geometry) if transposed else pattern.forward_blocks(geometry)
        inputs = shape[1] * geometry.groups
        strided = transposed and geometry.stride != (1, 1)
        self.phase = geometry.phase(pattern.kernel) if strided else None
        self.settings = {
            "values": pattern.nonzeros,
            "rows": inputs if transposed else shape[0],
            "channels": shape[0] if transposed else inputs,
            "channels_per_block": int(blocks.blocking[0]),
            "taps": math.prod(shape[2:]),
            "phases": math.prod(geometry.stride) if strided else 1,
            "unit": int(blocks.blocking[2]),
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


@pytest.mark.parametrize("rows", [2, 4, 8])
@pytest.mark.parametrize("density", [0, 0.1, 1])
@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((8, 7), Geometry()),
        ((40, 3000), Geometry()),
        ((16, 3, 3, 2), Geometry((2, 2), (1, 0), (1, 1), 2)),
        ((48, 1, 3, 3), Geometry((1, 2), (1, 1), (2, 1), 6)),
        ((40, 400, 3, 3), Geometry((2, 1), (1, 1))),
    ],
    ids=str,
)
def test_a_right_index_of_units_passes(shape, geometry, density, rows) -> None:
    direction = Direction(shape, geometry, density, transposed=False, rows=rows)
    assert direction.settings["unit"] == rows
    assert direction.fault() == ""


def damaged() -> Direction:
    """Return a direction of several blocks and phases."""
    return Direction((40, 90, 3, 3), Geometry((2, 1), (1, 1)), 0.5, transposed=True)


def damaged_units() -> Direction:
    """Return a direction of units and several blocks."""
    return Direction((40, 400, 3, 3), Geometry((2, 1), (1, 1)), 0.5, transposed=False, rows=4)


each_damaged = pytest.mark.parametrize("make", [damaged, damaged_units])


def test_the_damaged_index_has_blocks_and_phases() -> None:
    direction = damaged()
    assert direction.settings["channels_per_block"] < direction.settings["channels"]
    assert direction.settings["phases"] == 2
    assert direction.fault() == ""


def test_the_damaged_index_of_units_has_blocks() -> None:
    direction = damaged_units()
    assert direction.settings["channels_per_block"] < direction.settings["channels"]
    assert direction.settings["unit"] == 4
    assert direction.fault() == ""


@each_damaged
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("longer", [-1, 1])
def test_a_tensor_of_the_wrong_length_is_told(name: str, longer: int, make: Callable[[], Direction]) -> None:
    direction = make()
    tensor = direction.tensors[name]
    direction.tensors[name] = tensor[:-1].clone() if longer < 0 else torch.cat([tensor, tensor[-1:]])
    assert direction.fault()


@each_damaged
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [-1, 2**15 - 1, -(2**15)])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_number_out_of_range_is_told(name: str, value: int, at: int, make: Callable[[], Direction]) -> None:
    direction = make()
    direction.tensors[name] = direction.tensors[name].clone()
    direction.tensors[name][at] = value
    assert direction.fault()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", FIELDS)
def test_every_flipped_bit_of_a_small_index_is_told(name: str, rows: int) -> None:
    # Where every weight is active each number is the only right one.
    direction = Direction((2 * rows, 3, 2, 1), Geometry(), 1, transposed=False, rows=rows)
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


def further(tensor: Tensor) -> None:
    tensor += 1


def last_of_all(tensor: Tensor) -> None:
    # of a single weight the last value would be used twice
    tensor[tensor.argmax()] = tensor.max() + 1


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("order", second_of, "used more than once"),
        ("order", further, "but there are"),
        ("order", last_of_all, "used more than once"),
        ("place", second_of, "of the same segment"),
        ("place", swapped, "of the same segment"),
        ("segment_row", second_of, "two segments"),
        ("segment_start", swapped, "starts at"),
        ("block_start", swapped, "starts at"),
        ("block_start", second_of, "segments for 10 rows"),
    ],
)
def test_a_fault_of_units_is_told_in_words(name: str, change: Callable[[Tensor], None], words: str) -> None:
    direction = damaged_units()
    direction.tensors[name] = direction.tensors[name].clone()
    change(direction.tensors[name])
    assert words in direction.fault()


@pytest.mark.parametrize(
    "settings",
    [
        {"values": 1},
        {"rows": 36},
        {"rows": 41},
        {"rows": 44},
        {"channels": 399},
        {"channels": 0},
        {"channels_per_block": 0},
        {"channels_per_block": 401},
        {"taps": 8},
        {"phases": 2},
        *({"unit": rows} for rows in (-4, 0, 1, 2, 3, 8, 16, 2**62)),
    ],
    ids=str,
)
def test_an_index_of_other_units_is_told(settings: dict[str, int]) -> None:
    direction = damaged_units()
    direction.settings |= settings
    assert direction.fault()


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("batch", [3, 40])
def test_packed_inputs_that_offsets_do_not_reach_are_a_memory_error(rows: int, batch: int) -> None:
    # One output, whose taps lie 16384 zeros apart either way.
    pattern, far = pattern_of((4, 4, 3, 3), 1, rows), (1 << 14, 1 << 14)
    x, values = torch.randn(batch, 4, 1, 1, requires_grad=True), torch.randn(pattern.nonzeros)
    with pytest.raises(MemoryError):
        sparse_conv2d(x, values, None, pattern, padding=far, dilation=far).sum().backward()


@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize(
    ("rows", "stride", "padding"),
    [(1, 300, (200, 400)), (4, 300, (200, 400)), (4, 300, (0, 2)), (4, 1 << 20, (0, 0))],
    ids=str,
)
def test_strides_far_beyond_the_kernel_read_what_they_should(rows, stride, padding, batch) -> None:
    pattern, x = pattern_of((4, 3, 2, 2), 0.7, rows), torch.randn(batch, 3, 7, 9, requires_grad=True)
    dense, values = torch.zeros(pattern.shape), torch.randn(pattern.nonzeros)
    dense.view(-1)[pattern.positions] = values
    output = sparse_conv2d(x, values, None, pattern, (stride, stride), padding)
    # PyTorch's own backward pass ends the process at the largest stride; the one output reads the same at any.
    expected = F.conv2d(x, dense, None, min(stride, 300), padding)
    torch.testing.assert_close(output, expected)
    given = torch.randn_like(output)
    torch.testing.assert_close(*(torch.autograd.grad(each, x, given)[0] for each in (output, expected)))


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


def layer(shape: tuple[int, ...]) -> tuple[Pattern, Tensor, Tensor]:
    """Return pattern, values and bias of a convolution with half of its weights."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern.of_mask(torch.rand(shape, generator=generator) < 0.5)
    values = torch.randn(pattern.nonzeros, generator=generator)
    return pattern, values, torch.randn(shape[0], generator=generator)


def planned(pattern: Pattern, geometry: Geometry) -> Plan:
    """Return what the kernels are called with, for both directions."""
    plan = cpu.plan_of(pattern, geometry)
    plan.transpose(pattern.transposed_blocks(geometry))
    return plan


def gradients(
    x: Tensor, shape: tuple[int, ...], geometry: Geometry, threads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return output and gradients of input, values and bias by the kernels, and the dense output, summed over."""
    pattern, values, bias = layer(shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plan = planned(pattern, geometry)
        output = cpu._run(plan, (), to_batch_last(x), values, bias)
        ones = torch.ones_like(output)
        of_input, of_values, of_bias = cpu._gradients(plan, x.shape, (True,) * 3, ones, to_batch_last(x), values)
    finally:
        torch.set_num_threads(before)
    dense = torch.zeros(shape)
    dense.view(-1)[pattern.positions] = values
    return output, of_input, of_values, of_bias, F.conv2d(x, dense, bias, *geometry)


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 15, 70])
@pytest.mark.parametrize(
    ("kernel", "geometry"),
    [
        ((1, 1), Geometry(stride=(3, 3), padding=(1, 1))),
        ((1, 1), Geometry(stride=(3, 1), padding=(1, 0))),
        ((1, 1), Geometry(stride=(5, 3), padding=(2, 1))),
        ((3, 3), Geometry(padding=(1, 1))),
        ((3, 5), Geometry(stride=(2, 2), padding=(1, 2))),
    ],
    ids=str,
)
def test_planes_of_one_position_heed_their_padding(kernel, geometry, batch, threads) -> None:
    x = torch.randn(batch, 4, 1, 1)
    output, of_input, of_values, _, dense = gradients(x, (4, 4, *kernel), geometry, threads)
    torch.testing.assert_close(output, dense)
    if kernel == (1, 1):
        assert not of_input.any()
        assert not of_values.any()


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("plane", [(1, 1), (1, 9), (9, 1), (9, 9)])
def test_a_batch_of_no_samples_has_gradients_of_zero(plane: tuple[int, int], threads: int) -> None:
    x = torch.randn(0, 4, *plane)
    output, of_input, of_values, of_bias, dense = gradients(x, (6, 4, 1, 1), Geometry(), threads)
    assert output.shape == dense.shape
    assert of_input.shape == x.shape
    assert not of_values.any()
    assert not of_bias.any()


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_without_inputs_outputs_are_the_bias(batch: int) -> None:
    bias = torch.randn(5)
    plan = cpu.plan_of(Pattern((5, 0), torch.zeros(0, dtype=torch.int32)), Geometry())
    x = torch.randn(batch, 0)
    output = cpu._run(plan, (), x, torch.zeros(0), bias)
    of_values, of_bias = cpu._gradients(plan, x.shape, (False, True, True), torch.ones_like(output), x, torch.zeros(0))
    assert torch.equal(output, bias.expand(batch, 5))
    assert of_values.shape == (0,)
    assert torch.equal(of_bias, torch.full((5,), float(batch)))


@pytest.mark.usefixtures("any_instruction_set")
@pytest.mark.parametrize("batch", [2, 70])
def test_kernels_of_many_taps_have_plans_beyond_the_stack(batch: int) -> None:
    geometry = Geometry(padding=(0, 70))
    output, *_, dense = gradients(torch.randn(batch, 2, 2, 30), (3, 2, 1, 141), geometry, threads=1)
    torch.testing.assert_close(output, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"input": 2, "output": 0}, "does not fit a plane of 2"),
        ({"input": 7, "output": 4}, "has 3 outputs, not 4"),
        ({"input": -1}, "must not be negative"),
        ({"kernel": 0}, "at least 1"),
        ({"stride": 0}, "at least 1"),
        ({"dilation": 0}, "at least 1"),
        ({"padding": -1}, "must not be negative"),
    ],
    ids=str,
)
def test_a_plane_that_cannot_be_is_refused(sizes: dict[str, int], words: str) -> None:
    whole = kernels().Axis(input=1, output=1, kernel=1, stride=1, padding=0, dilation=1)
    given = {"input": 7, "output": 3, "kernel": 3, "stride": 2, "padding": 0, "dilation": 1} | sizes
    with pytest.raises(ValueError, match=words):
        kernels().Geometry(batch=1, height=whole, width=kernels().Axis(**given), transposed=False)


def test_a_batch_below_zero_is_refused() -> None:
    axis = kernels().Axis(input=1, output=1, kernel=1, stride=1, padding=0, dilation=1)
    with pytest.raises(ValueError, match="fewer than 0"):
        kernels().Geometry(batch=-1, height=axis, width=axis, transposed=False)


@pytest.mark.parametrize("shape", [(1 << 62,), (1 << 61,), (1 << 32, 1 << 32), (1 << 63, 2), (3, 1 << 62, 5)], ids=str)
def test_an_output_beyond_all_memory_is_a_memory_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(MemoryError):
        kernels().allocate(shape=shape, strides=[1] * len(shape))


def test_strides_must_match_the_sides() -> None:
    with pytest.raises(ValueError, match="as many strides"):
        kernels().allocate(shape=(2, 3), strides=(1,))


def test_memory_of_many_tensors_comes_back() -> None:
    kernels().release_memory()
    kept = [kernels().allocate(shape=(1000,), strides=(1,)) for _ in range(200)]
    assert kernels().release_memory() == 0
    del kept
    assert kernels().release_memory() >= 200 * 4000


def taken(size: int) -> torch.Tensor:
    return kernels().allocate(shape=(size // 4,), strides=(1,))


def test_memory_of_small_tensors_makes_a_large_one() -> None:
    kernels().release_memory()
    kept = [taken(2 << 20) for _ in range(8)]
    del kept
    large = taken(16 << 20)
    several = [taken(3 << 20) for _ in range(2)]
    del large
    several += [taken(5 << 20) for _ in range(3)]
    del several
    assert kernels().release_memory() <= 22 << 20


def test_blocks_of_memory_never_overlap() -> None:
    generator = random.Random(0)
    kept: list[tuple[int, torch.Tensor]] = []
    for number in range(600):
        if len(kept) > 20 or (kept and generator.random() < 0.45):
            mark, tensor = kept.pop(generator.randrange(len(kept)))
            assert bool((tensor == mark).all())
        else:
            kept.append((number, taken(generator.choice((4, 60_000, 70_000, 300_000, 1 << 20))).fill_(number)))
    assert all(bool((tensor == mark).all()) for mark, tensor in kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_runs_kernels_after_its_parent_had_threads() -> None:
    code = """
        import os, signal
        import numpy, torch
        from regrow.ops.native import kernels

        x = torch.arange(64.0 * 64).view(64, 64)

        def transposed():
            target = numpy.zeros((64, 64), numpy.float32)
            kernels().transpose(
                source=x.data_ptr(), source_pitch=64, source_distance=0, target=target.ctypes.data, target_pitch=64,
                target_distance=0, rows=64, columns=64, count=1, threads=2,
            )
            return target

        before = transposed()
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if numpy.array_equal(transposed(), before) else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
