"""Memory that training one linear layer takes: counted in tensors, and seen from outside in a process of its own."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

import regrow
from regrow.core.positions import draw_absent
from regrow.experiments.bench.common.machine import Machine, describe
from regrow.experiments.bench.common.process_memory import held, peak
from regrow.experiments.bench.common.processes import ProcessError, answer, in_process
from regrow.experiments.bench.common.tables import Table, mib
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.train.growth import parse_growth

__all__ = ["KINDS", "Memory", "Problem", "bench_memory", "measure", "table"]

KINDS = ("dense", "masked", "static", "candidates:2:1", "candidates:2:3", "window:2")
"""Dense training, masked storage, and sparse storage with no growth or with a source of growth."""

# An update comes after the fourth step, and growth looks at absent weights in the two before.
_EVERY, _STEPS = 4, 9


@dataclass(frozen=True)
class Problem:
    """One layer and how it is trained, with SGD and momentum in float32.

    Attributes:
        size: inputs and outputs of the layer.
        density: share of its weights that exist.
        batch: samples of a step.
    """

    size: int
    density: float
    batch: int


@dataclass(frozen=True)
class Memory:
    """What one kind of training takes, in bytes.

    Attributes:
        kind: one of `KINDS`, or another source of growth.
        weights: the weights, with the masks of masked storage.
        index: positions and the index structures of the kernels.
        gradients: gradients of the weights.
        momentum: state of the optimizer.
        while_growth_looks: what a window before an update holds beyond that.
        peak: the most that the process held beyond what it held before the layer was made; activations are in it.
        largest: the largest single piece of memory that PyTorch took.
    """

    kind: str
    weights: int
    index: int
    gradients: int
    momentum: int
    while_growth_looks: int
    peak: int
    largest: int

    @property
    def state(self) -> int:
        """The training state: weights, index structures, gradients, momentum."""
        return self.weights + self.index + self.gradients + self.momentum


def bench_memory(problem: Problem, kinds: Sequence[str], out: Path | None = None) -> Table:
    """Measure each kind of training in two fresh processes, one of them profiled, and return the table.

    Args:
        problem: the layer.
        kinds: what to measure; dense comes first whether it is named or not.
        out: JSON file for all figures.

    Raises:
        UserError: if a kind is unknown, or a measurement fails.
    """
    for kind in kinds:
        if kind not in KINDS:
            try:
                parse_growth(kind)
            except ValueError as error:
                raise UserError(f"{error}; or {', '.join(KINDS[:3])}") from None
    machine = describe(())
    rows = [_in_processes(problem, kind) for kind in dict.fromkeys(("dense", *kinds))]
    if out is not None:
        write_text(out, json.dumps(_report(machine, problem, rows), indent=1) + "\n")
    return table(problem, rows)


def table(problem: Problem, rows: Sequence[Memory]) -> Table:
    """Return the figures in MiB, and their ratios to dense training, which is the first row."""
    dense = rows[0]
    columns = (
        *("training", "weights", "index", "gradients", "momentum", "state", "of dense"),
        *("while growth looks", "peak", "of dense", "largest piece"),
    )
    lines = []
    for row in rows:
        parts = (row.weights, row.index, row.gradients, row.momentum, row.state)
        texts = [*map(mib, parts), f"{row.state / dense.state:.1%}", mib(row.while_growth_looks), mib(row.peak)]
        # A tiny layer fits in memory that the process held already.
        share = f"{row.peak / dense.peak:.1%}" if dense.peak else "-"
        lines.append((row.kind, *texts, share, mib(row.largest)))
    title = f"linear {problem.size}x{problem.size} at {problem.density:.0%}, batch {problem.batch}, SGD, MiB"
    return Table(title, columns, tuple(lines))


def measure(problem: Problem, kind: str, profiled: bool) -> Memory:
    """Train for a few steps with an update among them, and return what it took.

    Args:
        problem: the layer.
        kind: one of `KINDS`, or another source of growth.
        profiled: whether to find the largest piece; the profiler takes memory itself, so `peak` is no figure then.
    """
    _train(Problem(64, problem.density, 8), kind)  # code and caches that any training loads
    before = held()
    if not profiled:
        return replace(_train(problem, kind), peak=peak() - before)
    with torch.profiler.profile(profile_memory=True) as profile:
        memory = _train(problem, kind)
    return replace(memory, largest=_largest(profile))


def _train(problem: Problem, kind: str) -> Memory:
    model = _model(problem, kind)
    layer = model[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    topology = None if kind == "dense" else regrow.TopologyUpdater(model, optimizer, _recipe(kind))
    x = torch.randn(problem.batch, problem.size, generator=torch.Generator().manual_seed(1))
    memory, quiet = None, 0
    for step in range(_STEPS):
        optimizer.zero_grad()
        # The input wants its gradient, as that of a layer within a network does.
        model(x.detach().requires_grad_()).square().mean().backward()
        if step == _EVERY + 1:  # between two windows: steps _EVERY + 1 and 2 * _EVERY + 1 carry out updates
            quiet, memory = _alive(), _memory(kind, layer, optimizer)
        if memory is not None and step == 2 * _EVERY:
            memory = replace(memory, while_growth_looks=_alive() - quiet)
        optimizer.step()
    assert memory is not None
    if topology is not None:
        topology.remove()
    return memory


def _model(problem: Problem, kind: str) -> nn.Sequential:
    size = problem.size
    if kind in ("dense", "masked"):
        model = nn.Sequential(nn.Linear(size, size, bias=False))
        return model if kind == "dense" else regrow.sparsify(model, problem.density, backend="masked")
    # Made by nonzero: at no time is there a dense weight.
    generator = torch.Generator().manual_seed(0)
    nothing, count = torch.empty(0, dtype=torch.int64), round(problem.density * size * size)
    index = draw_absent(nothing, size * size, count, generator).int()
    values = torch.empty(count).uniform_(-(size**-0.5), size**-0.5, generator=generator).requires_grad_()
    return nn.Sequential(regrow.SparseLinear(size, size, values, index))


def _recipe(kind: str) -> regrow.Recipe:
    if kind == "static":
        return regrow.static()
    recipe = regrow.sparse_momentum(every=_EVERY, steps=10 * _EVERY)
    return recipe if kind == "masked" else replace(recipe, growth=parse_growth(kind))


def _memory(kind: str, layer: nn.Module, optimizer: torch.optim.Optimizer) -> Memory:
    weights = list(layer.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    momentum = [state for weight in weights for state in optimizer.state[weight].values() if isinstance(state, Tensor)]
    masks = [] if isinstance(layer, regrow.SparseLinear) else layer.buffers()
    index = layer.pattern.nbytes if isinstance(layer, regrow.SparseLinear) else 0
    return Memory(kind, _bytes(weights) + _bytes(masks), index, _bytes(gradients), _bytes(momentum), 0, 0, 0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _alive() -> int:
    """Return the bytes of all tensors that exist."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                # a fake tensor, which compilers leave behind, stands for memory and holds none
                if tensor is not None and not is_fake(tensor):
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _largest(profile: torch.profiler.profile) -> int:
    events, largest = list(profile.profiler.kineto_results.experimental_event_tree()), 0  # type: ignore[union-attr]
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            largest = max(largest, event.extra_fields.alloc_size)
    return largest


def _in_processes(problem: Problem, kind: str) -> Memory:
    plain, profiled = (_in_process(problem, kind, profiled) for profiled in (False, True))
    return replace(plain, largest=profiled.largest)


def _in_process(problem: Problem, kind: str, profiled: bool) -> Memory:
    try:
        found = in_process(__name__, {"problem": asdict(problem), "kind": kind, "profiled": profiled})
    except ProcessError as error:
        raise UserError(f"{kind} at {problem.size} {error}") from None
    return Memory(**found)


def _report(machine: Machine, problem: Problem, rows: Sequence[Memory]) -> dict[str, object]:
    figures = [{**asdict(row), "state": row.state} for row in rows]
    return {"machine": asdict(machine), "problem": asdict(problem), "memory": figures}


def _answer(problem: dict[str, Any], kind: str, profiled: bool) -> dict[str, Any]:
    return asdict(measure(Problem(**problem), kind, profiled))


if __name__ == "__main__":
    answer(_answer)
