"""What kernels are told of a convolution beside its tensors: the index structure of its weight and its geometry."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

from torch import Tensor

from regrow.ops.check import check_index, check_places, check_that
from regrow.ops.native import LARGEST, kernels
from regrow.ops.pattern import Blocks, Geometry

__all__ = ["Plan", "flat", "output_shape", "parts", "plan_of_index", "unflat"]

# Shapes of inputs that a plan remembers.
_MOST_SHAPES = 64


class _Sizes(NamedTuple):
    """What follows from the shape of an input: shape of the output, and the geometry as the kernels take it."""

    output: tuple[int, ...]
    forward: Any
    transposed: Any


class Plan:
    """A pattern and a geometry as the kernels take them, with what follows from the shapes seen so far.

    Args:
        weight_shape: shape of the dense weight: (outputs, inputs of a group, height, width) or (outputs, inputs).
        geometry: stride, padding, dilation and groups.
        blocks: grouped by output row.
        places: for each value, which of those that the kernels compute with it is, where there are others, zeros, too.
    """

    def __init__(
        self, weight_shape: Sequence[int], geometry: Geometry, blocks: Blocks | None, places: Tensor | None = None
    ) -> None:
        self.outputs, self.channels = weight_shape[0], weight_shape[1] * geometry.groups
        self.transposed: Any = None
        self._geometry = geometry
        self._kernel = tuple(weight_shape[2:])
        self._blocks = [blocks]  # whose addresses the kernels are given
        self.forward = None if blocks is None else _index(blocks, self.outputs, self.channels)
        # Outputs of an entry: kernels for units of several take the one index for all passes.
        self.unit = 1 if blocks is None else int(blocks.blocking[2])
        self.nonzeros = 0 if blocks is None else len(blocks.order) * self.unit
        self._places = places
        self._sizes: dict[tuple[int, ...], _Sizes] = {}
        _plans.add(self)

    def transpose(self, blocks: Blocks) -> None:
        """Take the nonzeros grouped by input channel, which the input's gradient uses."""
        self._blocks.append(blocks)
        self.transposed = _index(blocks, self.channels, self.outputs)

    def spread(self, values: Tensor) -> Tensor:
        """Return the values that the kernels compute with, shape (nonzeros,)."""
        if self._places is None:
            return values.contiguous()
        spread = values.new_zeros(self.nonzeros)
        spread[self._places] = values
        return spread

    def collect(self, spread: Tensor) -> Tensor:
        """Return the numbers that belong to values, shape (values,), of those that the kernels made."""
        return spread if self._places is None else spread[self._places]

    def sizes(self, shape: tuple[int, ...]) -> _Sizes:
        """Return what follows from the shape of an input."""
        known = self._sizes.get(shape)
        if known is None:
            if len(self._sizes) >= _MOST_SHAPES:
                self._sizes.clear()
            known = self._sizes[shape] = self._follow(shape)
        return known

    def forget(self) -> None:
        """Let go of what belongs to the kernels' module."""
        self.forward = self.transposed = None
        self._sizes.clear()

    def _follow(self, shape: tuple[int, ...]) -> _Sizes:
        output = output_shape(shape, (self.outputs, self.channels, *self._kernel), self._geometry)
        native = kernels()
        ends = ((shape, output, False), (output, shape, True))
        both = []
        for source, target, transposed in ends:
            axes = [
                native.Axis(source_size, target_size, *numbers)
                for source_size, target_size, *numbers in zip(
                    (*source, 1, 1)[2:4], (*target, 1, 1)[2:4], (*self._kernel, 1, 1)[:2], *self._geometry[:3],
                    strict=True,
                )
            ]  # fmt: skip
            both.append(native.Geometry(shape[0], *axes, transposed))
        return _Sizes(output, *both)


_plans: WeakSet[Plan] = WeakSet()


@atexit.register
def _forget() -> None:
    # The kernels' module complains of objects that outlive it.
    for plan in list(_plans):
        plan.forget()


def output_shape(shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Return the shape of the output, (N, O, H', W') or (N, O).

    Raises:
        RuntimeError: if the kernel does not fit the padded plane.
    """
    plane = []
    for size, kernel, stride, padding, dilation in zip(
        shape[2:], weight_shape[2:], *(geometry[:3] if len(shape) == 4 else ((), (), ())), strict=True
    ):
        room = size + 2 * padding - dilation * (kernel - 1) - 1
        if room < 0:
            raise RuntimeError(
                f"a kernel of {tuple(weight_shape[2:])} with dilation {geometry.dilation} is larger than a plane of "
                f"{tuple(shape[2:])} with padding {geometry.padding}"
            )
        plane.append(room // stride + 1)
    return (shape[0], weight_shape[0], *plane)


def parts(index: Sequence[Tensor]) -> tuple[Blocks, Tensor | None]:
    """Return blocks and places of an index structure."""
    return Blocks(*index[: len(Blocks._fields)]), next(iter(index[len(Blocks._fields) :]), None)


def flat(geometry: Geometry) -> list[int]:
    """Return a geometry as the numbers that an operator can take: stride, padding, dilation, groups."""
    return [*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups]


def unflat(numbers: Sequence[int]) -> Geometry:
    """Return the geometry that `flat` made numbers of."""
    stride, padding, dilation = ((numbers[at], numbers[at + 1]) for at in (0, 2, 4))
    return Geometry(stride, padding, dilation, numbers[6])


def plan_of_index(
    index: Sequence[Tensor],
    transposed_index: Sequence[Tensor],
    weight_shape: Sequence[int],
    numbers: Sequence[int],
    nonzeros: int | None = None,
) -> Plan:
    """Return the plan of index structures from anywhere, either of which may be missing.

    Raises:
        ValueError: if they, the shape or the geometry are not what kernels take.
    """
    check_that(len(numbers) == 7, f"a geometry has 7 numbers, not {list(numbers)}")
    check_that(
        len(weight_shape) in (2, 4) and min(weight_shape) > 0, f"a weight cannot have shape {list(weight_shape)}"
    )
    geometry = unflat(numbers)
    stride, padding, dilation, groups = geometry
    kernel = (weight_shape[2], weight_shape[3]) if len(weight_shape) == 4 else (1, 1)
    reach = [step * taps for step, taps in zip(dilation, kernel, strict=True)]
    check_that(
        min(*stride, *dilation, groups) > 0 and min(padding) >= 0 and max(*stride, *padding, *reach) <= LARGEST,
        f"stride, dilation and groups must be at least 1, padding at least 0, and none too large: {geometry}",
    )
    check_that(
        len(weight_shape) == 4 or geometry == Geometry(),
        f"a linear weight has no stride, padding and so on: {geometry}",
    )
    outputs, channels = weight_shape[0], weight_shape[1] * groups
    check_that(outputs % groups == 0, f"{outputs} outputs do not divide into {groups} groups")
    taps = kernel[0] * kernel[1]
    plan = Plan(weight_shape, geometry, None)
    if index:
        blocks, places = index[: len(Blocks._fields)], index[len(Blocks._fields) :]
        check_index(blocks, rows=outputs, channels=channels, taps=taps, nonzeros=None if places else nonzeros)
        plan = Plan(weight_shape, geometry, *parts(index))
        check_places(places, within=plan.nonzeros, nonzeros=nonzeros)
    if transposed_index:
        phases = stride[0] * stride[1]
        phase = geometry.phase(kernel) if phases > 1 else None
        check_index(
            transposed_index, rows=channels, channels=outputs, taps=taps, nonzeros=nonzeros, phase=phase, phases=phases
        )
        plan.transpose(Blocks(*transposed_index))
    return plan


def _index(blocks: Blocks, rows: int, channels: int) -> Any:
    """Return an index structure as the kernels take it."""
    addresses = [tensor.data_ptr() for tensor in blocks]
    return kernels().Index(*addresses, len(blocks.order), rows, channels)
