"""What a model holds, by the names of the ordinary model, whichever storage its sparse weights have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regrow.storage import Weight, sparse_weights, weights_of

__all__ = ["Held", "held"]


@dataclass(frozen=True)
class Held:
    """What a model holds.

    Attributes:
        weights: its sparse weights, each by its first name.
        places: the sparse weights at all names that the modules which own them have in the model.
        rest: everything else in its state, by name.
        shared: names of what stands in the state under an earlier name already, with that name.
    """

    weights: dict[str, Weight]
    places: dict[str, Weight]
    rest: dict[str, Any]
    shared: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The dense shape of every tensor by all of its names."""
        shapes = {name: tuple(value.shape) for name, value in self.rest.items() if isinstance(value, Tensor)}
        shapes.update((name, weight.shape) for name, weight in self.weights.items())
        shapes.update((name, shapes[first]) for name, first in self.shared.items() if first in shapes)
        return shapes

    @property
    def names(self) -> set[str]:
        """All names."""
        return {*self.weights, *self.rest, *self.shared}


def held(model: nn.Module) -> Held:
    """Return what a model holds, nothing copied."""
    places: dict[str, Weight] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.update(weights_of(module, path))
    weights, rest, shared = sparse_weights(model), {}, {}
    first: dict[object, str] = {}
    keys = {key: (name, key == weight.state_keys[0]) for name, weight in places.items() for key in weight.state_keys}
    for key, value in model.state_dict().items():
        name, holds_numbers = keys.get(key, (key, True))
        if not holds_numbers:
            continue
        tensor = places[name].weight.detach() if name in places else value
        identity = _identity(tensor)
        if identity in first:
            shared[name] = first[identity]
            continue
        if identity is not None:
            first[identity] = name
        if name not in places:
            rest[name] = value
    return Held(weights, places, rest, shared)


def _identity(value: Any) -> object:
    """Return what two names of one tensor have in common; None for what is no tensor, or has no numbers."""
    if not isinstance(value, Tensor) or not value.numel():
        return None
    return value.data_ptr(), value.dtype, tuple(value.shape), value.stride()
