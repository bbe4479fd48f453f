"""The source of growth where gradient and optimizer state are dense: all that is wanted of absent weights is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regrow.core.entries import Change, LayerState
from regrow.core.recipe import Recipe
from regrow.storage import Weight
from regrow.topology.optimizer_state import apply_change, momentum
from regrow.topology.source import layer_state

__all__ = ["Dense"]


class Dense:
    """Read gradient and momentum of every absent weight off the parameter's own, dense ones.

    Args:
        weight: a weight whose parameter covers every position.
        optimizer: the optimizer of its parameter.
        recipe: what is carried out.
    """

    def __init__(self, weight: Weight, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
        self.weight = weight
        self._optimizer, self._recipe = optimizer, recipe

    def look_ahead(self, step: int) -> None:
        """Do nothing: there is nothing to gather."""

    def looks_at(self, step: int) -> int | None:
        """Return None where momentum counts, or the gradient of a step that carries out an update; else 0."""
        of_absent = self._recipe.needs_of_absent
        reads = "momentum" in of_absent or ("gradient" in of_absent and self._recipe.updates_in(step + 1))
        return None if reads else 0

    def recover(self) -> None:
        """Do nothing: a step leaves nothing undone."""

    def before_step(self, group: dict[str, Any] | None) -> None:
        """Do nothing: the optimizer steps all weights at once."""

    def after_step(self) -> None:
        """Do nothing: all weights that cover every position are set to zero at once."""

    def layer_state(self, gradient: Tensor | None, group: dict[str, Any], step: int) -> LayerState:
        """Return the weight as the update sees it."""
        numbers: dict[str, Tensor] = {}
        if gradient is not None:
            numbers["grad"] = gradient
        if "momentum" in self._recipe.needs:
            numbers["momentum"] = momentum(self._optimizer, self.weight.weight, group)
        return layer_state(self.weight, numbers, {name: of.detach for name, of in numbers.items()}, None)

    def carry(self, change: Change, group: dict[str, Any], step: int) -> None:
        """Carry out a change: numbers of optimizer state stay with their positions, or start at zero."""
        state = self._optimizer.state.get(self.weight.weight, {})
        state.update(apply_change(self.weight, change, state, self._recipe.reset_state))

    def leave(self) -> None:
        """Do nothing: nothing is gathered."""

    def close(self) -> None:
        """Do nothing: nothing is gathered."""

    def state_dict(self) -> None:
        """Return nothing: the optimizer's state holds all."""
        return

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Do nothing: the optimizer's state holds all."""
