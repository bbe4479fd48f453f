"""Which weights of a model are worth storing sparsely: measured, layer by layer and then as a whole.

A layer's time depends on its shape, its density, the batch, the processor and what its neighbours hand it. With an
example input it is not left to a rule. Every layer is timed alone, as its ordinary and as its sparse form, on inputs of
the shape and the layout that the example input gives it, with the gradient of its output in the layout that the
ordinary layer would get. Then the model with all the layers that gained is timed beside the dense one: what a change of
layout costs the layers between shows only there. As long as the whole is not faster, the half of the layers that saves
least goes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.convert.choice import Choice
from regrow.convert.eligible import Slot, slots_of
from regrow.convert.exchange import sparse_form, store_sparsely, unserved
from regrow.convert.follow_layout import follow_layout
from regrow.core.units import Units
from regrow.nn.modes import modes_kept
from regrow.storage import Storage

__all__ = ["LAYER_GAIN", "MODEL_GAIN", "choose_by_time"]

# What a layer alone must gain to be stored sparsely: topology updates make some layers denser than they start.
LAYER_GAIN = 1.2
# What the whole model must gain.
MODEL_GAIN = 1.03
_ROUNDS = (3, 15)
_SECONDS_LAYER = 0.25
_SECONDS_MODEL = 2.0


@dataclass(frozen=True)
class _Call:
    """How a layer is called: shape, strides and type of its input, and whether that wants a gradient."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def input(self) -> Tensor:
        x = torch.empty_strided(self.shape, self.stride, dtype=self.dtype).normal_(
            generator=torch.Generator().manual_seed(0)
        )
        return x.requires_grad_(self.requires_grad)


@dataclass(frozen=True)
class _Times:
    """Milliseconds of a dense and of a sparse form."""

    dense: float
    sparse: float

    @property
    def gain(self) -> float:
        return self.dense / self.sparse

    @property
    def saved(self) -> float:
        return self.dense - self.sparse

    def __str__(self) -> str:
        return f"{self.dense:.3g} ms dense, {self.sparse:.3g} ms sparse"


def choose_by_time(
    model: nn.Module,
    slots: Sequence[Slot],
    positions: Mapping[str, Tensor],
    units: Mapping[str, Units],
    example: Any,
    *,
    batch_last: bool = True,
) -> dict[str, Choice]:
    """Choose a storage for every weight; the model, its gradients and random generators stay as they are.

    Args:
        model: the model, still dense, in the mode and on the device in which it is to be used.
        slots: the weights that are to be sparse.
        positions: for each by name a bool tensor in its shape, true where the weight exists.
        units: for each by name the units in which its topology changes.
        example: a batch as the model takes it: a tensor, or a tuple of arguments.
        batch_last: whether norms and pools between sparse convolutions are to follow their layout.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    unfit = unserved(model, slots)
    choices = {name: Choice(Storage.MASKED, reason) for name, reason in unfit.items()}
    candidates = [slot for slot in slots if slot.name not in unfit]
    with torch.random.fork_rng(devices=[]):
        calls = _observe(model, [slot.module for slot in candidates], arguments)
        times = {}
        seen: dict[object, _Times] = {}
        for slot in candidates:
            if not calls[slot.module]:
                choices[slot.name] = Choice(Storage.MASKED, "the example input does not reach it")
                continue
            index = positions[slot.name].reshape(-1).nonzero().squeeze(1)
            unit = units[slot.name].unit
            key = (repr(slot.module), len(index), unit, tuple(calls[slot.module]))
            if key not in seen:
                seen[key] = _time_layer(slot.module, index, unit, calls[slot.module])
            times[slot.name] = seen[key]
        gaining = [name for name, each in times.items() if each.gain >= LAYER_GAIN]
        kept = _keep_what_pays(model, gaining, times, positions, units, arguments, batch_last)
    for name, each in times.items():
        storage = Storage.SPARSE if name in kept else Storage.MASKED
        why = "" if name in kept or name not in gaining else "; but the whole model gains more without"
        choices[name] = Choice(storage, f"{each}{why}", each.gain)
    return {slot.name: choices[slot.name] for slot in slots}


def _observe(
    model: nn.Module, modules: Sequence[nn.Module], arguments: tuple[Any, ...]
) -> dict[nn.Module, list[_Call]]:
    """Run the model once, in evaluation mode so that it keeps its state, and note how modules are called."""
    calls: dict[nn.Module, list[_Call]] = {module: [] for module in modules}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0] if inputs else None
        if isinstance(x, Tensor):
            calls[module].append(_Call(tuple(x.shape), x.stride(), x.dtype, x.requires_grad))

    hooks = [module.register_forward_pre_hook(note) for module in calls]
    try:
        with modes_kept(model), torch.enable_grad():
            model.eval()
            model(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _time_layer(module: nn.Module, index: Tensor, unit: tuple[int, int], calls: Sequence[_Call]) -> _Times:
    """Time all calls of one layer in a step, in both forms."""
    dense = deepcopy(module)
    sparse = sparse_form(module, index, unit)
    for parameter in (*dense.parameters(), *sparse.parameters()):
        parameter.grad = None
    total = _Times(0.0, 0.0)
    for call in dict.fromkeys(calls):
        x = call.input()
        gradient = torch.randn_like(dense(x))
        times = _time_pair(_layer_step(dense, x, gradient), _layer_step(sparse, x, gradient), _SECONDS_LAYER)
        count = calls.count(call)
        total = _Times(total.dense + count * times.dense, total.sparse + count * times.sparse)
    return total


def _layer_step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    wanted = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]

    def step() -> object:
        output = layer(x)
        return torch.autograd.grad(output, wanted, gradient) if wanted else output

    return step


def _keep_what_pays(
    model: nn.Module,
    names: Sequence[str],
    times: Mapping[str, _Times],
    positions: Mapping[str, Tensor],
    units: Mapping[str, Units],
    arguments: tuple[Any, ...],
    batch_last: bool,
) -> list[str]:
    """Return as many of the layers, those that save most first, as make the whole model faster."""
    kept = sorted(names, key=lambda name: -times[name].saved)
    dense = deepcopy(model) if kept else model
    while kept:
        sparse = deepcopy(model)
        slots = {slot.name: slot for slot in slots_of(sparse)}
        store_sparsely(sparse, [slots[name] for name in kept], positions, units)
        if batch_last:
            follow_layout(sparse)
        step = _time_pair(_model_step(dense, arguments), _model_step(sparse, arguments), _SECONDS_MODEL)
        if step.gain >= MODEL_GAIN:
            break
        kept = kept[: len(kept) // 2]
    return kept


def _model_step(model: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> object:
        output = model(*arguments)
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        loss = sum(leaf.square().sum() for leaf in leaves)
        return torch.autograd.grad(loss, wanted, allow_unused=True) if isinstance(loss, Tensor) else output

    return step


def _time_pair(dense: Callable[[], object], sparse: Callable[[], object], seconds: float) -> _Times:
    """Time two things in turn, in alternating order; return the medians."""
    runs = (dense, sparse)
    times: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        run()
    fewest, most = _ROUNDS
    start = time.perf_counter()
    for number in range(most):
        if number >= fewest and time.perf_counter() - start > seconds:
            break
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            began = time.perf_counter()
            result = runs[which]()
            times[which].append((time.perf_counter() - began) * 1e3)
            del result
    return _Times(median(times[0]), median(times[1]))
