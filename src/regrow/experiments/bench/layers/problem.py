"""One layer at one density as data, and its passes by the sparse kernels.

Run as a script it answers requests on its standard input: `regrow bench compare` starts one such process for each of
two revisions. So this file imports of regrow only what both have, the operators and the pattern.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.ops import sparse_conv2d, sparse_linear
from regrow.ops.pattern import Pattern

__all__ = [
    "PASSES",
    "Passes",
    "Problem",
    "Shape",
    "channels_last",
    "dense_passes",
    "innermost",
    "relative_error",
    "separate_passes",
    "sparse_passes",
    "values_at",
]

PASSES = ("forward", "input", "weight")
"""Output, gradient of the input, gradient of the weights."""

Passes = dict[str, Callable[[], tuple[Tensor, ...]]]
"""What each pass returns: the output, the input's gradient, the weight's; `backward` returns the last two."""


@dataclass(frozen=True)
class Shape:
    """One layer of a network; a linear layer has a kernel of None and a plane of 1 x 1.

    Attributes:
        network: where it is from.
        inputs: channels or features of the input.
        outputs: those of the output.
        batch: samples, or tokens.
        kernel: height and width of the kernel.
        plane: height and width of the input.
        stride: step of the kernel in both directions.
        padding: zeros on every side.
    """

    network: str
    inputs: int
    outputs: int
    batch: int
    kernel: int | None = None
    plane: int = 1
    stride: int = 1
    padding: int = 0

    def __str__(self) -> str:
        """Return the shape as the tables name it: inputs-outputs, kernel, plane / stride."""
        name = f"{self.inputs}-{self.outputs}"
        return name if self.kernel is None else f"{name} {self.kernel}x{self.kernel} @{self.plane}/{self.stride}"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return (self.outputs, self.inputs) if self.kernel is None else (self.outputs, self.inputs, *(self.kernel,) * 2)

    @property
    def output_plane(self) -> int:
        """Height and width of the output."""
        return (self.plane + 2 * self.padding - (self.kernel or 1)) // self.stride + 1


@dataclass(frozen=True)
class Problem:
    """A layer with its numbers, drawn from a fixed seed.

    Attributes:
        shape: the layer.
        density: share of the weights that exist.
        block: outputs and inputs of a unit, of whose weights all exist or none.
    """

    shape: Shape
    density: float
    block: tuple[int, int] = (1, 1)

    @cached_property
    def pattern(self) -> Pattern:
        """Where weights exist: units drawn uniformly. Sides that a block does not divide have the next smaller ones."""
        numel = prod(self.shape.weight_shape)
        if self.block == (1, 1):
            exists = torch.randperm(numel, generator=_generator(0))[: max(1, round(self.density * numel))]
            return Pattern(self.shape.weight_shape, exists.sort().values)
        from regrow.core.units import Units, fitting_unit  # which not every revision has

        unit = fitting_unit((self.shape.outputs, self.shape.inputs), self.block)
        units = Units(self.shape.weight_shape, unit)
        chosen = torch.randperm(units.count, generator=_generator(0))[: max(1, round(self.density * units.count))]
        return Pattern(self.shape.weight_shape, units.positions_of(chosen).sort().values, unit)

    @cached_property
    def values(self) -> Tensor:
        """The weights that exist."""
        return torch.randn(len(self.pattern.positions), generator=_generator(1))

    @cached_property
    def weight(self) -> Tensor:
        """The dense weight."""
        dense = torch.zeros(prod(self.shape.weight_shape))
        dense[self.pattern.positions] = self.values
        return dense.view(self.shape.weight_shape)

    @cached_property
    def x(self) -> Tensor:
        """The input, in PyTorch's own order."""
        plane = () if self.shape.kernel is None else (self.shape.plane,) * 2
        return torch.randn(self.shape.batch, self.shape.inputs, *plane, generator=_generator(2))

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of the output, in PyTorch's own order."""
        plane = () if self.shape.kernel is None else (self.shape.output_plane,) * 2
        return torch.randn(self.shape.batch, self.shape.outputs, *plane, generator=_generator(3))

    def dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the layer with a dense weight."""
        shape = self.shape
        return F.linear(x, weight) if shape.kernel is None else F.conv2d(x, weight, None, shape.stride, shape.padding)

    def sparse(self, x: Tensor, values: Tensor) -> Tensor:
        """Apply the layer with the weights that exist."""
        if self.shape.kernel is None:
            return sparse_linear(x, values, None, self.pattern)
        stride, padding = (self.shape.stride,) * 2, (self.shape.padding,) * 2
        return sparse_conv2d(x, values, None, self.pattern, stride, padding)


def separate_passes(forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, gradient: Tensor) -> Passes:
    """Return each pass alone: by a graph in which only the input, or only the weight, wants a gradient.

    Args:
        forward: the layer.
        x: its input, in the layout that it is to get.
        weight: its weight in the form that it takes.
        gradient: the gradient of the output; it gets the layout of the output.
    """

    def backward(x: Tensor, weight: Tensor, wanted: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        y = forward(x, weight)
        given = torch.empty_like(y).copy_(gradient)
        return lambda: torch.autograd.grad(y, wanted, given, retain_graph=True)

    x_wanted, weight_wanted = (tensor.detach().requires_grad_() for tensor in (x, weight))
    return {
        "forward": lambda: (forward(x, weight),),
        "input": backward(x_wanted, weight, x_wanted),
        "weight": backward(x, weight_wanted, weight_wanted),
    }


def sparse_passes(problem: Problem) -> Passes:
    """Return the passes of the sparse kernels; the input has the batch innermost, as a sparse layer leaves it."""
    return separate_passes(problem.sparse, innermost(problem.x), problem.values, problem.gradient)


def innermost(x: Tensor) -> Tensor:
    """Return `x` with its first dimension innermost in memory."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def dense_passes(problem: Problem) -> Passes:
    """Return the passes of PyTorch's dense layer in float32, convolutions in channels-last."""
    x, weight = channels_last(problem.x), channels_last(problem.weight)
    return separate_passes(problem.dense, x, weight, problem.gradient)


def channels_last(x: Tensor) -> Tensor:
    """Return a plane or a kernel with its channels innermost, anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest number expected; NaN counts as infinite."""
    scale = float(expected.abs().max()) or 1.0
    error = float((actual - expected).abs().max()) / scale
    return error if error == error else float("inf")


def values_at(problem: Problem, dense: Tensor) -> Tensor:
    """Return the numbers of a dense weight, or of its gradient, where weights exist."""
    return dense.reshape(-1)[problem.pattern.positions]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _serve() -> None:
    """Answer requests, one JSON object a line: take a problem and check it, or time one pass of it."""
    import regrow

    passes: Passes = {}
    answer: Any
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "threads" in request:
            torch.set_num_threads(request["threads"])
            answer = {"path": regrow.__file__}
        elif "shape" in request:
            problem = Problem(Shape(**request["shape"]), request["density"])
            passes, dense = sparse_passes(problem), dense_passes(problem)
            answer = {}
            for name in PASSES:
                (actual,), (expected,) = passes[name](), dense[name]()
                expected = values_at(problem, expected) if name == "weight" else expected
                answer[name] = relative_error(actual, expected)
        else:
            start = perf_counter()
            passes[request["pass"]]()
            answer = (perf_counter() - start) * 1e3
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
