"""The state of an optimizer in a file, and how its numbers move to a model in another storage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.positions import lookup
from regrow.core.transposed import transposed
from regrow.core.units import Units
from regrow.storage import Storage, Weight

__all__ = ["check_numbers", "covered", "in_order_of", "is_transposed", "move", "optimizer_part", "parameter_names"]

# What PyTorch's optimizers keep a number of for each element of a parameter; fused ones believe that they have it.
_OF_EACH_ELEMENT = (
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),
    *("sum", "square_avg", "grad_avg", "acc_delta", "prev", "step_size", "ax"),
)


def optimizer_part(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Weight],
    topology: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the state of an optimizer with the names of its parameters.

    Args:
        model: the model.
        optimizer: the optimizer.
        weights: the sparse weights of the model.
        topology: the state of the topology that goes along. Without it nothing is kept of absent weights that growth
            looks at, for nobody would know which those are.
    """
    state, names = optimizer.state_dict(), parameter_names(model, optimizer, weights)
    moved, growth = dict(state["state"]), (topology or {}).get("growth", {})
    for number, name in names.items():
        weight = weights.get(name or "")
        if weight is not None and not weight.holds_absent and number in moved:
            _, positions = covered(weight.storage, weight.index(), weight.units, growth.get(name))
            shape = weight.weight.shape
            moved[number] = {
                key: _at(weight, value, positions) if isinstance(value, Tensor) and value.shape == shape else value
                for key, value in moved[number].items()
            }
    return {"names": names, "whole": topology is not None, "state": {**state, "state": moved}}


def _at(weight: Weight, numbers: Tensor, positions: Tensor | None) -> Tensor:
    return weight.everywhere(numbers) if positions is None else weight.at(numbers, positions)


def parameter_names(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: Mapping[str, Weight]
) -> dict[int, str | None]:
    """Return the name of each parameter of an optimizer by its number in the optimizer's state.

    Sparse weights have the name that they have in the ordinary model; what is no parameter of the model has None.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    name_of.update((id(weight.weight), name) for name, weight in weights.items())
    packed = optimizer.state_dict()["param_groups"]
    return {
        number: name_of.get(id(parameter))
        for group, state in zip(optimizer.param_groups, packed, strict=True)
        for parameter, number in zip(group["params"], state["params"], strict=True)
    }


def covered(
    storage: Storage, index: Tensor, units: Units, gathered: Mapping[str, Any] | None
) -> tuple[int, Tensor | None]:
    """Return how many positions a parameter covers, and which, sorted int64; None for all.

    Args:
        storage: how the weight is stored.
        index: flat positions of the active weights.
        units: of the weight.
        gathered: what the state of the topology says of it: None, or more, as which absent units growth looks at.
    """
    if storage is Storage.MASKED:
        return units.numel, None
    if gathered is None or "candidates" not in gathered:
        return len(index), index
    candidates = gathered["candidates"]
    if candidates is None:
        return units.numel, None
    if not isinstance(candidates, Tensor):
        raise TypeError(f"candidates are a tensor, not a {type(candidates).__name__}")
    positions = torch.cat((index, units.positions_of(candidates))).sort().values
    return len(positions), positions


def is_transposed(weight: Weight) -> bool:
    """Return whether the parameter has its numbers in the order of the transpose, as a sparsely stored `Conv1D` has."""
    return bool(getattr(weight.module, "inputs_first", False))


def in_order_of(weight: Weight, target: tuple[int, Tensor | None]) -> tuple[int, Tensor | None]:
    """Return the positions that the parameter of a weight is to cover, as from `covered`, in its own order."""
    count, positions = target
    if not is_transposed(weight):
        return target
    inputs, outputs = weight.shape
    positions = torch.arange(count) if positions is None else positions
    return count, positions[transposed(positions, (inputs, outputs)).argsort()]


def move(
    state: Mapping[str, Any],
    source: tuple[int, Tensor | None],
    target: tuple[int, Tensor | None],
    shape: tuple[int, ...],
) -> dict[str, Any]:
    """Return an optimizer's state of one parameter for other covered positions; what is not known there is zero.

    Args:
        state: the state.
        source: the positions that its numbers belong to, as from `covered`.
        target: those that are wanted, in the order of that parameter.
        shape: of the parameter to which they go.

    Example:
        >>> active, everywhere = (2, torch.tensor([1, 3])), (4, None)
        >>> move({"step": 5, "momentum_buffer": torch.tensor([7.0, 8.0])}, active, everywhere, (2, 2))
        {'step': 5, 'momentum_buffer': tensor([[0., 7.],
                [0., 8.]])}
    """
    (count, before), (_, after) = source, target

    def moved(numbers: Tensor) -> Tensor:
        flat = numbers.reshape(-1)
        if after is None:
            if before is None:
                return flat.reshape(shape)
            everywhere = flat.new_zeros(target[0])
            everywhere[before] = flat
            return everywhere.reshape(shape)
        return flat[after] if before is None else lookup(after, before, flat)

    return {
        key: moved(value) if isinstance(value, Tensor) and value.dim() and value.numel() == count else copy.copy(value)
        for key, value in state.items()
    }


def check_numbers(name: str | None, state: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless what an optimizer keeps for each element of a parameter has the parameter's shape."""
    for key, value in state.items():
        if key in _OF_EACH_ELEMENT and value is not None and tuple(value.shape) != shape:
            raise ValueError(f"its {key} of {name!r} has shape {tuple(value.shape)}, not {shape}")
