"""The state of an updater travels in the state dict of its optimizer: whatever saves that saves the topology too."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from regrow.storage import Weight

__all__ = ["KEY", "Carried", "has_topology"]

KEY = "regrow"
"""The entry of an optimizer's state dict that holds the states of its updaters."""


class _Updater(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Carried:
    """Let the state dict of an optimizer carry the state of an updater, by PyTorch's own hooks.

    `optimizer.state_dict()` gets one entry more, a list with the state of each of its updaters. An optimizer without an
    updater ignores it, as PyTorch ignores entries that it does not know. `optimizer.load_state_dict` hands it to the
    updater. Where it has none of these weights, or the model's positions are others than those it was saved beside, the
    updater stays as it is, and the next step raises: the schedule would begin anew, unseen. A call of the updater's own
    `load_state_dict` settles that.

    Args:
        updater: whose state is carried.
        optimizer: the optimizer that it hangs on.
        weights: the weights that it keeps.
    """

    def __init__(self, updater: _Updater, optimizer: torch.optim.Optimizer, weights: Sequence[Weight]) -> None:
        self._updater, self._weights = updater, weights
        self._found: dict[str, Any] | None = None
        self._unsettled: str | None = None
        self._hooks = (
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._find),
            optimizer.register_load_state_dict_post_hook(self._load),
            optimizer.register_step_pre_hook(self._check),
        )

    def settle(self) -> None:
        """Note that the updater was given a state."""
        self._unsettled = None

    def close(self) -> None:
        """Carry no more."""
        for hook in self._hooks:
            hook.remove()

    def _save(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        entry = {"positions": _positions(self._weights), "state": self._updater.state_dict()}
        state[KEY] = [*state.get(KEY, ()), entry]

    def _find(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        names = {weight.name for weight in self._weights}
        self._found = next((entry for entry in state.get(KEY, ()) if entry["positions"].keys() == names), None)

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        found, self._found = self._found, None
        if found is None:
            self._unsettled = "without that of its topology"
        elif found["positions"] != _positions(self._weights):
            self._unsettled = "beside a model with other positions, so load the model's state before it, or"
        else:
            self._updater.load_state_dict(found["state"])

    def _check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._unsettled is not None:
            raise RuntimeError(
                f"the optimizer's state was loaded {self._unsettled} and the schedule would begin anew: give "
                f"load_state_dict() of the {type(self._updater).__name__} the state that was saved with it, or its own "
                "state_dict() to begin anew"
            )


def has_topology(state: Mapping[str, Any]) -> bool:
    """Return whether the state dict of an optimizer holds the state of an updater.

    Example:
        >>> has_topology(torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict())
        False
    """
    return bool(state.get(KEY))


def _positions(weights: Sequence[Weight]) -> dict[str, int]:
    """Return a checksum of each weight's positions."""
    return {weight.name: zlib.crc32(weight.index().cpu().numpy().data) for weight in weights}
