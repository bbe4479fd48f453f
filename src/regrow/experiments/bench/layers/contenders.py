"""Who computes a layer: the sparse kernels, PyTorch's dense layers, and `torch.sparse`.

Each gets its input in the layout that a network of its own layers would hand it, and allocates its outputs as it does
for users. Biases are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.experiments.bench.common.options import block_name
from regrow.experiments.bench.layers.problem import (
    Passes,
    Problem,
    channels_last,
    dense_passes,
    innermost,
    separate_passes,
    sparse_passes,
    values_at,
)

__all__ = ["BFLOAT16", "CSR", "DENSE", "SPARSE", "Contender", "NotApplicableError", "Prepared", "units"]

_LARGEST_UNFOLDED = 1 << 30  # bytes


class NotApplicableError(Exception):
    """A contender cannot compute this layer; the message says why."""


@dataclass(frozen=True)
class Prepared:
    """A contender ready to run one problem.

    Attributes:
        passes: what it computes; either `input` and `weight`, or `backward` where it computes both at once.
        values: takes its gradient of the weight to the order of the pattern's positions.
    """

    passes: Passes
    values: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """Something that computes layers.

    Attributes:
        name: name in the tables.
        prepare: makes a problem ready to run.
        tolerance: largest relative error that its numbers may have.
        pause: seconds to wait after it ran, where its own idle threads would disturb the next.
        block: outputs and inputs of a unit of the weight that it computes with.
        own: whether it is regrow's: then wrong results are an error, and it takes part in every round.
    """

    name: str
    prepare: Callable[[Problem], Prepared]
    tolerance: float = 1e-4
    pause: float = 0.0
    block: tuple[int, int] = (1, 1)
    own: bool = False


def _dense(problem: Problem) -> Prepared:
    return Prepared(dense_passes(problem), lambda gradient: values_at(problem, gradient))


def _sparse(problem: Problem) -> Prepared:
    return Prepared(sparse_passes(problem), lambda gradient: gradient)


def _bfloat16(problem: Problem) -> Prepared:
    # Between layers under autocast activations are bfloat16 already; the weight is cast in every step.
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return problem.dense(x, weight)

    x, weight = channels_last(problem.x.bfloat16()), channels_last(problem.weight)
    passes = separate_passes(forward, x, weight, problem.gradient)
    return Prepared(passes, lambda gradient: values_at(problem, gradient))


def _csr(problem: Problem) -> Prepared:
    """`torch.sparse.mm`; a convolution as its product with the unfolded input."""
    shape = problem.shape
    unfolded = 4 * shape.batch * shape.output_plane**2 * prod(shape.weight_shape[1:])
    if shape.kernel is not None and unfolded > _LARGEST_UNFOLDED:
        raise NotApplicableError(f"torch.sparse has no convolution, and the unfolded input takes {unfolded >> 20} MiB")

    def columns(x: Tensor) -> Tensor:
        """Return the matrix that the weight multiplies, one row for each of its columns."""
        if shape.kernel is None:
            return x.t()
        if shape.kernel == 1 and not shape.padding:
            return x[:, :, :: shape.stride, :: shape.stride].movedim(0, -1).flatten(1)
        return F.unfold(x, shape.kernel, padding=shape.padding, stride=shape.stride).movedim(0, -1).flatten(1)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = torch.sparse.mm(weight, columns(x))
        plane = () if shape.kernel is None else (shape.output_plane,) * 2
        return product.view(shape.outputs, *plane, shape.batch).movedim(-1, 0)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        weight = problem.weight.flatten(1).to_sparse_csr()
    passes = separate_passes(forward, innermost(problem.x), weight, problem.gradient)
    return Prepared(passes, lambda gradient: gradient.values())


DENSE = Contender("dense", _dense)
SPARSE = Contender("regrow", _sparse, own=True)
BFLOAT16 = Contender("bfloat16", _bfloat16, tolerance=2e-2)
CSR = Contender("torch.sparse", _csr)


def units(block: tuple[int, int]) -> Contender:
    """Return the sparse kernels on a weight of as many units as make the density.

    Args:
        block: outputs and inputs of a unit.
    """
    return Contender(block_name(block), _sparse, block=block, own=True)
