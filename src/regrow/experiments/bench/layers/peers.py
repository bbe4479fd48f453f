"""Other libraries of sparse layers for CPUs: sparseprop and sparselab, both from PyPI.

Both compute the two gradients of a backward pass at once, so they have no separate times of them. What was seen:
sparseprop 0.1.14 is compiled from its source when it is installed, for which pybind11 must be there, and its
convolutions are wrong for batches that are no multiple of 8; sparselab 0.2.2 has linear layers only, and brings an
OpenMP runtime of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from regrow.experiments.bench.common.correctness import too_large
from regrow.experiments.bench.layers.contenders import Contender, NotApplicableError, Prepared
from regrow.experiments.bench.layers.problem import Passes, Problem, dense_passes, innermost, relative_error

__all__ = ["INSTALL", "peers"]

INSTALL = {
    "sparseprop": "pip install pybind11 wheel, then pip install --no-build-isolation sparseprop",
    "sparselab": "pip install sparselab",
}
"""How each library is installed."""

# The threads of an OpenMP runtime spin for some milliseconds after their work; this lets them fall asleep.
_PAUSE = 0.02
_TOLERANCE = 1e-4


def peers() -> tuple[list[Contender], dict[str, str]]:
    """Return the libraries that are installed, and for the others why they are not there.

    `torch.set_num_threads` must have been called: a library with an OpenMP runtime of its own is told then.
    """
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    found, missing = [], {}
    for name, make in (("sparseprop", _sparseprop), ("sparselab", _sparselab)):
        try:
            found.append(make())
        except ImportError as error:
            missing[name] = f"cannot be imported ({error}): {INSTALL[name]}"
    return found, missing


def _joint_passes(forward: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, gradient: Tensor) -> Passes:
    """Return a forward pass, and a backward pass that gives both gradients."""
    wanted = x.detach().requires_grad_()
    y = forward(wanted)
    given = torch.empty_like(y).copy_(gradient)
    constant = x.detach()
    return {
        "forward": lambda: (_without_graph(forward, constant),),
        "backward": lambda: torch.autograd.grad(y, (wanted, weight), given, retain_graph=True),
    }


def _without_graph(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(x)


def _sparseprop() -> Contender:
    modules = import_module("sparseprop.modules")
    formats = import_module("sparseprop.modules.utils")

    def linear(problem: Problem) -> Prepared:
        layer = modules.SparseLinear(problem.weight)
        _check_count(problem, layer.W_val)
        # Its layers take and give contiguous activations.
        return Prepared(_joint_passes(layer, problem.x, layer.W_val, problem.gradient), lambda gradient: gradient)

    def convolution(problem: Problem) -> Prepared:
        """The faster of its two ways, as its own `sparsify_conv2d_auto` chooses; here the best of two runs counts."""
        shape = problem.shape
        if shape.stride > 2:
            raise NotApplicableError("it has strides of 1 and 2 only")
        choices = []
        for over_width in (False, True):
            layer = modules.SparseConv2d(
                problem.weight, padding=shape.padding, stride=shape.stride, vectorizing_over_on=over_width
            )
            _check_count(problem, layer.W_val)
            x = problem.x if over_width else innermost(problem.x)
            passes = _joint_passes(layer, x, layer.W_val, problem.gradient)
            if _is_right(passes, dense_passes(problem)):
                choices.append((min(_seconds(passes) for _ in range(2)), layer, passes))
        if not choices:
            raise NotApplicableError("its results are wrong for this shape")
        _, layer, passes = min(choices, key=lambda choice: choice[0])

        def values(gradient: Tensor) -> Tensor:
            dense: Tensor = formats.from_sparse_format_conv2d(gradient, layer.W_idx, shape=shape.weight_shape)
            return dense.reshape(-1)[problem.pattern.positions]

        return Prepared(passes, values)

    return Contender("sparseprop", lambda problem: (linear if problem.shape.kernel is None else convolution)(problem))


def _sparselab() -> Contender:
    library = import_module("sparselab")

    def prepare(problem: Problem) -> Prepared:
        if problem.shape.kernel is not None:
            raise NotApplicableError("it has linear layers only")
        layer = library.SparseLinear(problem.shape.inputs, problem.shape.outputs, bias=False, sparsity=0.5)
        # Its constructor draws its own weights; these two attributes are what it makes of them.
        matrix = library.PaddedCSR.from_dense(problem.weight)
        layer._csr, layer._values = matrix, torch.nn.Parameter(torch.from_numpy(np.asarray(matrix.values)))
        passes = _joint_passes(layer, innermost(problem.x), layer._values, problem.gradient)
        starts, lengths = np.asarray(matrix.row_start), np.asarray(matrix.row_nnz)
        used = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
        slots = torch.from_numpy(used)
        return Prepared(passes, lambda gradient: gradient[slots])

    return Contender("sparselab", prepare, pause=_PAUSE)


def _check_count(problem: Problem, values: Tensor) -> None:
    if values.numel() != problem.pattern.nonzeros:
        raise NotApplicableError(f"it stores {values.numel()} weights of {problem.pattern.nonzeros}")


def _is_right(passes: Passes, dense: Passes) -> bool:
    """Return whether output and input gradient are dense's; the weights' gradient is compared with all others'."""
    pairs = {"forward": "forward", "backward": "input"}
    errors = {name: relative_error(passes[name]()[0], dense[expected]()[0]) for name, expected in pairs.items()}
    return not too_large(errors, _TOLERANCE)


def _seconds(passes: Passes) -> float:
    start = perf_counter()
    for run in passes.values():
        run()
    return perf_counter() - start
