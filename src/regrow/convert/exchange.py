"""Swap layers of a model between their ordinary and their sparsely stored form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from regrow.convert.eligible import Slot, slots_of
from regrow.core.units import Units
from regrow.nn.kinds import is_inputs_first_linear
from regrow.nn.sparse_conv import SparseConv1d, SparseConv2d
from regrow.nn.sparse_inputs_first import SparseInputsFirstLinear
from regrow.nn.sparse_layer import SparseLayer
from regrow.nn.sparse_linear import SparseLinear
from regrow.ops.select import storage_obstacle

__all__ = ["check_storable", "has_hooks", "obstacles", "replace_modules", "sparse_form", "store_sparsely", "unserved"]

# Exactly these types: a subclass may use its weight in other ways.
_Form = Callable[[Any, Tensor, tuple[int, int]], SparseLayer]
_SPARSE_FORMS: dict[type[nn.Module], _Form] = {
    nn.Linear: SparseLinear.from_dense,
    nn.Conv1d: SparseConv1d.from_dense,
    nn.Conv2d: SparseConv2d.from_dense,
}
_IS_THE_MODEL = "the model itself is the layer to be stored sparsely, so nothing can hold its replacement"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def store_sparsely(
    model: nn.Module,
    slots: Sequence[Slot],
    positions: Mapping[str, Tensor],
    units: Mapping[str, Units] | None = None,
) -> None:
    """Replace the layers that own the weights in `slots` by sparsely stored ones, in place.

    Args:
        model: the model; each layer is replaced wherever it stands.
        slots: the weights.
        positions: for each weight by name a bool tensor in its shape, true where the weight exists.
        units: for each weight by name its units; None for single weights.

    Raises:
        ValueError: if sparse storage cannot hold one of the weights; nothing is replaced then.
    """
    check_storable(model, slots)
    replaced: dict[nn.Module, nn.Module] = {}
    for slot in slots:
        index = positions[slot.name].reshape(-1).nonzero().squeeze(1).to(slot.weight.device)
        sparse = sparse_form(slot.module, index, (1, 1) if units is None else units[slot.name].unit)
        replaced[slot.module] = sparse.train(slot.module.training)
    replace_modules(model, replaced)


def check_storable(model: nn.Module, slots: Sequence[Slot]) -> None:
    """Raise a ValueError that names all weights that sparse storage cannot hold, with the reasons, and what to do."""
    found = obstacles(model, slots)
    if not found:
        return
    if set(found.values()) == {_IS_THE_MODEL}:
        raise ValueError(f"{_IS_THE_MODEL}: wrap it in nn.Sequential first")
    names: dict[str, list[str]] = {}
    for name, obstacle in found.items():
        names.setdefault(obstacle, []).append(repr(name))
    reasons = "; ".join(f"{', '.join(each)}: {obstacle}" for obstacle, each in names.items())
    raise ValueError(
        f"sparse storage cannot hold {len(found)} of {len(slots)} weights: {reasons}. Name them in keep_dense, take "
        'backend="auto", which masks what cannot be stored sparsely, or backend="masked"'
    )


def unserved(model: nn.Module, slots: Sequence[Slot]) -> dict[str, str]:
    """Return the weights that sparse storage cannot hold or has no kernels for, by name, with the reason."""
    found = obstacles(model, slots)
    for slot in slots:
        obstacle = storage_obstacle(_computed_as(slot.module), slot.weight)
        if obstacle is not None:
            found.setdefault(slot.name, obstacle)
    return found


def obstacles(model: nn.Module, slots: Sequence[Slot]) -> dict[str, str]:
    """Return the weights that sparse storage cannot hold, by name, with the reason."""
    places: dict[int, list[str]] = {}
    for slot in slots_of(model):
        places.setdefault(id(slot.weight), []).append(slot.name)
    found = {}
    for slot in slots:
        obstacle = _obstacle(slot, places[id(slot.weight)])
        if obstacle is None and slot.module is model:
            obstacle = _IS_THE_MODEL
        if obstacle is not None:
            found[slot.name] = obstacle
    return found


def sparse_form(layer: nn.Module, index: Tensor, unit: tuple[int, int] = (1, 1)) -> SparseLayer:
    """Return the sparse form of a layer that has one, with the weights at the flat positions `index`."""
    form = _form_of(layer)
    assert form is not None
    return form(layer, index, unit)


def _form_of(layer: nn.Module) -> _Form | None:
    """Return what makes the sparse form of a layer: index and unit are those of its own weight."""
    if type(layer).__name__ == "Conv1D" and is_inputs_first_linear(layer):
        return SparseInputsFirstLinear.from_inputs_first
    return _SPARSE_FORMS.get(type(layer))


def _computed_as(layer: nn.Module) -> type[nn.Module]:
    """Return the type of layer whose kernels compute the sparse form of a layer."""
    return nn.Linear if is_inputs_first_linear(layer) else type(layer)


def _obstacle(slot: Slot, places: Sequence[str]) -> str | None:
    """Return why sparse storage cannot hold a weight, or None."""
    if _form_of(slot.module) is None or slot.parameter != "weight":
        form = f"{type(slot.module).__name__}.{slot.parameter}"
        if isinstance(slot.module, nn.MultiheadAttention | NonDynamicallyQuantizableLinear):
            return (
                f"{form} has none: nn.MultiheadAttention multiplies by it itself, past any layer that could be replaced"
            )
        return f"only the weights of nn.Linear, nn.Conv1d and nn.Conv2d have a sparse form, {form} has none"
    unserved = storage_obstacle(_computed_as(slot.module), slot.weight, any_dtype=True)
    if unserved is not None:
        return unserved
    if len(places) > 1:
        return f"it is tied to {', '.join(repr(name) for name in places if name != slot.name)}"
    if getattr(slot.module, "padding_mode", "zeros") != "zeros":
        return f"its padding mode is {slot.module.padding_mode!r}, not 'zeros'"
    if has_hooks(slot.module):
        return "its layer has hooks, which would be lost: register them after regrow.sparsify"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks: its replacement would not."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def replace_modules(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules below `model` wherever they stand, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replaced:
                setattr(parent, name, replaced[child])
