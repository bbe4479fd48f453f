"""What a file holds into a model, its optimizer and its topology: all of it, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.convert.eligible import slots_of
from regrow.convert.sparsify import sparsify
from regrow.files.names import Held, held
from regrow.files.optimizer import check_numbers, covered, in_order_of, is_transposed, move, parameter_names
from regrow.files.stored import Stored
from regrow.storage import Storage

__all__ = ["load_into"]

# What a state of other make than a state dict's makes PyTorch raise.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def load_into(
    stored: Stored, path: str, model: nn.Module, optimizer: torch.optim.Optimizer | None, topology: Any
) -> None:
    """Load what a file holds.

    Raises:
        ValueError: if it does not fit; all is as it was then.
    """
    own = held(model)
    _check_model(stored, own, path)
    _check_parts(stored, own, path, optimizer, topology)
    state = _model_state(stored, own)
    try:
        topology_state = _topology_state(stored, own, topology)
        optimizer_state = None if optimizer is None else _optimizer_state(stored, own, model, optimizer, topology_state)
    except _FAULTS as error:
        raise ValueError(f"{path} does not fit this optimizer: {error}") from error
    before = [(each, copy.deepcopy(each.state_dict())) for each in (model, optimizer, topology) if each is not None]
    try:
        model.load_state_dict(state)
        if optimizer is not None:
            optimizer.load_state_dict(optimizer_state)  # type: ignore[arg-type]
        if topology is not None:
            topology.load_state_dict(topology_state)
        if stored.layers and not own.weights:
            masks = {name: layer.mask() for name, layer in stored.layers.items()}
            sparsify(model, masks=masks, block=_block(stored, model))
    except _FAULTS as error:
        for each, earlier in before:
            each.load_state_dict(earlier)
        raise ValueError(f"{path} cannot be loaded, and all is as it was: {error}") from error


def _check_model(stored: Stored, own: Held, path: str) -> None:
    """Raise a ValueError unless the model's state has the names, shapes and sparse weights that the file has."""
    mend = "build the model that was saved"
    if stored.names != own.names:
        differ = stored.names ^ own.names
        name = min(differ)
        where = "the file has no" if name in own.names else "the model has no"
        raise ValueError(f"{path} is of another model, {where} {name!r} ({len(differ)} names differ): {mend}")
    if stored.shared != own.shared:
        name = min(dict(stored.shared.items() ^ own.shared.items()))
        raise ValueError(f"{path} is of another model, for {name!r} is shared in one of the two alone: {mend}")
    if own.weights and stored.layers.keys() != own.weights.keys():
        name = min(stored.layers.keys() ^ own.weights.keys())
        one, other = ("the file", "the model") if name in stored.layers else ("the model", "the file")
        raise ValueError(f"{path} does not fit this model: {name!r} is sparse in {one} and dense in {other}")
    for name, value in stored.rest.items():
        ours = own.rest[name]
        if isinstance(value, Tensor) is not isinstance(ours, Tensor) or (
            isinstance(value, Tensor) and value.shape != ours.shape
        ):
            shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (value, ours)]
            raise ValueError(f"{path} is of another model: {name!r} is {shapes[0]} there and {shapes[1]} here: {mend}")
    for name, weight in own.weights.items():
        try:
            weight.units.numbers_of(stored.layers[name].index)
        except ValueError as error:
            raise ValueError(f"{path} does not fit the block of {name!r}: {error}") from error


def _check_parts(stored: Stored, own: Held, path: str, optimizer: torch.optim.Optimizer | None, topology: Any) -> None:
    """Raise a ValueError where an optimizer or a topology is given, and there is none in the file or can be none."""
    for given, part, name in ((optimizer, stored.optimizer, "optimizer"), (topology, stored.topology, "topology")):
        if given is not None and part is None:
            raise ValueError(f"{path} has no state of the {name}: save it with regrow.save(..., {name}={name})")
        if given is not None and stored.layers and not own.weights:
            raise ValueError(
                f"this model is dense, and the {name} would lose its parameters when it is made sparse: make it sparse "
                "first (regrow.sparsify, or regrow.load without optimizer and topology), then optimizer and topology"
            )


def _model_state(stored: Stored, own: Held) -> dict[str, Any]:
    """Return a state dict that the model loads, in the form of its own storage."""
    state: dict[str, Any] = {}
    for name in stored.names:
        first = stored.shared.get(name, name)
        layer, weight = stored.layers.get(first), own.places.get(name)
        if layer is None:
            state[name] = stored.rest[first]
        elif weight is None:
            state[name] = layer.dense()
        elif is_transposed(weight):  # its positions are others: it finds them for a dense weight
            state[name], state[f"{name}_mask"] = layer.state(Storage.MASKED)
        else:
            state.update(zip(weight.state_keys, layer.state(weight.storage), strict=True))
    return state


def _topology_state(stored: Stored, own: Held, topology: Any) -> dict[str, Any] | None:
    """Return the state of the topology; from masked storage to sparse one, growth begins with all that is known."""
    if topology is None or stored.topology is None:
        return None
    state = dict(stored.topology)
    recipe = getattr(topology, "recipe", None)
    if "growth" in state and recipe is not None and recipe.needs_of_absent:
        known = {
            name: {"candidates": None, "begun_at": 0.0}
            for name, weight in own.weights.items()
            if weight.storage is Storage.SPARSE
            and stored.layers[name].storage is Storage.MASKED
            and state["growth"].get(name) is None
        }
        state["growth"] = {**state["growth"], **known}
    return state


def _optimizer_state(
    stored: Stored,
    own: Held,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    topology: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the state of the optimizer, its numbers at the positions that the parameters will cover."""
    assert stored.optimizer is not None
    state, names = dict(stored.optimizer["state"]), stored.optimizer["names"]
    ours = parameter_names(model, optimizer, own.weights)
    if names != ours:
        raise ValueError("its parameters are others, or in another order or other groups")
    saved = (stored.topology or {}).get("growth", {}) if stored.optimizer["whole"] else {}
    wanted = (topology or {}).get("growth", {})
    moved = dict(state["state"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for (number, name), parameter in zip(names.items(), parameters, strict=True):
        if number not in moved:
            continue
        shape = tuple(parameter.shape)
        if name in own.weights:
            layer, weight = stored.layers[name], own.weights[name]
            source = covered(layer.storage, layer.index, layer.units, saved.get(name))
            target = covered(weight.storage, layer.index, layer.units, wanted.get(name))
            shape = weight.shape if weight.storage is Storage.MASKED else (target[0],)
            moved[number] = move(moved[number], source, in_order_of(weight, target), shape)
        check_numbers(name, moved[number], shape)
    return {**state, "state": moved}


def _block(stored: Stored, model: nn.Module) -> tuple[int, int]:
    """Return the block that gives every weight its units: the largest, which those of others fit into."""
    slots = {slot.name: slot for slot in slots_of(model)}
    rows, columns = 1, 1
    for name, layer in stored.layers.items():
        first, second = layer.units.unit
        outputs, inputs = (second, first) if slots[name].inputs_first else (first, second)
        rows, columns = max(rows, outputs), max(columns, inputs)
    return rows, columns
