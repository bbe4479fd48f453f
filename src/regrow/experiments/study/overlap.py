"""Runs that count how much of what they grow exact growth would have grown too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.core.positions import absent
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import override
from regrow.experiments.train.methods import make_recipe
from regrow.experiments.train.run import Metrics, Run
from regrow.storage import sparse_weights
from regrow.topology.optimizer_state import groups_of, momentum
from regrow.topology.updater import OnUpdate

__all__ = ["ComparedRun", "ComparedUpdater"]


class ComparedUpdater(regrow.TopologyUpdater):
    """An updater that also counts how much of what it grows sparse momentum with exact growth would have grown.

    Counted are positions that were absent before the update: a weight that returns at once is no choice of growth.

    Args:
        model: a model in masked storage.
        optimizer: the optimizer of its parameters, which keeps momentum.
        recipe: what to do and when.
        reference: what to compare with.
        seed: seed of random growth.
        on_update: called after each update.

    Attributes:
        grown: positions grown so far, by layer.
        in_common: how many of those `reference` would have grown at the same update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: regrow.Recipe,
        reference: regrow.Recipe,
        seed: int,
        on_update: OnUpdate | None = None,
    ) -> None:
        self._model = model
        self._reference = reference
        self._compared_optimizer = optimizer
        self.grown = dict.fromkeys(regrow.masks(model), 0)
        self.in_common = dict.fromkeys(regrow.masks(model), 0)
        super().__init__(model, optimizer, recipe, seed=seed, on_update=on_update)

    @torch.no_grad()
    def _carry_out(self, due: int) -> None:
        """Update the topology, and count."""
        before = regrow.masks(self._model)
        expected = regrow.update(self._reference, self._layers(), due, torch.Generator())
        super()._carry_out(due)
        for name, after in regrow.masks(self._model).items():
            grown = (after & ~before[name]).flatten()
            self.grown[name] += int(grown.sum())
            self.in_common[name] += int(grown[expected[name].grow].sum())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the updater with the counts."""
        return {**super().state_dict(), "grown": dict(self.grown), "in_common": dict(self.in_common)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.grown, self.in_common = dict(state["grown"]), dict(state["in_common"])

    def _layers(self) -> dict[str, regrow.LayerState]:
        """Return every layer with the momentum of all its absent weights."""
        groups = groups_of(self._compared_optimizer)
        costs, layers = self._costs(), {}
        for name, weight in sparse_weights(self._model).items():
            numbers = momentum(self._compared_optimizer, weight.weight, groups[id(weight.weight)])
            parameter, index = weight.weight.detach(), weight.index()
            positions = absent(index, weight.numel)

            def entries(at: Tensor, of: Tensor = parameter, numbers: Tensor = numbers) -> regrow.Entries:
                return regrow.Entries(at, of.reshape(-1)[at], momentum=numbers.reshape(-1)[at])

            both, cost = (entries(index), entries(positions)), costs.get(name)
            layers[name] = regrow.LayerState(*both, weight.numel, weight.shape, cost=cost)
        return layers


class ComparedRun(Run):
    """A run whose metrics say how much was grown, and how much of it exact growth would have grown too."""

    def finish_epoch(self) -> Metrics:
        """Evaluate, write down the epoch's metrics with the counts so far, and return them."""
        row = super().finish_epoch()
        if isinstance(self.topology, ComparedUpdater):
            row["grown_by_layer"] = dict(self.topology.grown)
            row["in_common_by_layer"] = dict(self.topology.in_common)
        return row

    def _make_topology(
        self, optimizer: torch.optim.Optimizer, method: regrow.Recipe | regrow.StepRule
    ) -> regrow.TopologyUpdater:
        if not isinstance(method, regrow.Recipe):
            raise UserError(f"{self.config.method} is no recipe, so it has no growth to compare: name another method")
        exact = override(self.config, {"method": "sparse-momentum", "growth": "exact"})
        reference = replace(make_recipe(exact, self.steps_per_epoch), keep_returning=False)
        return ComparedUpdater(self.model, optimizer, method, reference, self.config.seed, self._count_changes)
