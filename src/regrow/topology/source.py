"""Where what an update knows of one weight comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from regrow.core.entries import Change, Entries, LayerState
from regrow.storage import Weight
from regrow.storage.sharded import own

__all__ = ["Source", "layer_state"]


class Source(Protocol):
    """What an update reads of one weight, active and absent, and how it carries a change over to the optimizer."""

    @property
    def weight(self) -> Weight:
        """The weight."""

    def look_ahead(self, step: int) -> None:
        """Begin or end to gather, as the steps after `step` want; call it after every step and every update."""

    def looks_at(self, step: int) -> int | None:
        """Return at how many absent weights the gradient of the step after `step` is read; None for all."""

    def recover(self) -> None:
        """Undo what a step of the optimizer that failed has left; call it before any other step."""

    def before_step(self, group: dict[str, Any] | None) -> None:
        """Be told that the optimizer is about to step on the gradients that are there.

        Args:
            group: parameter group of the parameter; None where the optimizer has none.
        """

    def after_step(self) -> None:
        """Set to zero what the optimizer's step has made of absent weights."""

    def layer_state(self, gradient: Tensor | None, group: dict[str, Any], step: int) -> LayerState:
        """Return the weight as the update sees it.

        Args:
            gradient: of the parameter, in its shape; None where the recipe does not need it.
            group: parameter group of the parameter.
            step: optimizer steps taken.

        Raises:
            RuntimeError: if nothing is known of absent weights at this step.
        """

    def carry(self, change: Change, group: dict[str, Any], step: int) -> None:
        """Carry out a change on the weight and on its optimizer state."""

    def leave(self) -> None:
        """Take no part in the steps to come, as of a frozen layer."""

    def close(self) -> None:
        """Gather no more."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return what it knows beside the optimizer's state; None if that is nothing."""

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a `state_dict`; the states of model and optimizer are those saved beside it."""


def layer_state(
    weight: Weight,
    active: Mapping[str, Tensor],
    absent: Mapping[str, Callable[[], Tensor]],
    candidates: Tensor | None,
) -> LayerState:
    """Return a weight as the update sees it.

    Args:
        weight: the weight.
        active: by name ("grad", "momentum") a tensor in the parameter's shape, read at active weights.
        absent: by name a function that returns a tensor in the parameter's shape, read at absent ones.
        candidates: sorted numbers of the absent units that may be grown; None for all.
    """
    units, index, parameter = weight.units, weight.index(), weight.weight.detach()
    zero = own(parameter).new_zeros(())
    numbers = units.numbers_of(index)
    positions = units.positions_of(numbers)

    def existing(tensor: Tensor) -> Tensor:
        return weight.existing(tensor) if units.size == 1 else weight.at(tensor, positions)

    held = {name: existing(tensor) for name, tensor in active.items()}
    entries = Entries(positions, existing(parameter), held.get("grad"), held.get("momentum"))
    if candidates is None:
        everywhere = {name: _everywhere(weight, read) for name, read in absent.items()}
        others = Entries.absent(units, numbers, zero, everywhere.get("grad"), everywhere.get("momentum"))
    else:
        at = units.positions_of(candidates)
        found = {name: weight.at(read(), at) for name, read in absent.items()}
        others = Entries(at, zero.expand(len(at)), found.get("grad"), found.get("momentum"))
    return LayerState(entries, others, weight.numel, weight.shape, units.unit)


def _everywhere(weight: Weight, read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: weight.everywhere(read())
