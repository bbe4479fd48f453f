"""What the parts of a recipe read of gradient, momentum and costs, found by trying them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regrow.core.entries import Entries, LayerState
from regrow.core.pick import Pick
from regrow.core.ranking import Drops
from regrow.core.redistribute import Rates, Redistribute
from regrow.core.rewire import Moves, Rewire
from regrow.core.score import Score

__all__ = ["what_is_read"]

_SHAPE, _ACTIVE, _DROPPED = (8, 8), 24, 8


def what_is_read(
    drop: Score,
    redistribute: Redistribute,
    grow: Score,
    rates: Rates | None = None,
    drops: Drops | None = None,
    pick: Pick | None = None,
    rewire: Rewire | None = None,
) -> tuple[set[str], set[str]]:
    """Return what is read of any weight and what is read of absent weights: "gradient", "momentum", "cost".

    Args:
        drop: the score of the active weights, as in a `Recipe`, and likewise the others.
        redistribute: how many weights each layer grows.
        grow: the score of the absent weights.
        rates: the share that each layer drops.
        drops: how many weights each layer drops.
        pick: which absent weights grow.
        rewire: which weights leave and join.

    Raises:
        ValueError: if one of them fails.
    """
    everywhere: set[str] = set()
    of_absent: set[str] = set()
    # Scores may draw numbers of their own: the trial must not move the generator that the training uses.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        layers: dict[str, LayerState] = {
            f"{number}.weight": _layer(generator, everywhere, of_absent, cost) for number, cost in enumerate((9.0, 1.0))
        }
        try:
            if rates is not None:
                rates(layers, 0.5)
            if drops is not None:
                drops(layers, 0.5, 0)
            for layer in layers.values():
                # by `replace` the cost would be read
                object.__setattr__(layer, "absent", layer.candidates.join(layer.active.select(torch.arange(_DROPPED))))
            redistribute(layers, dict.fromkeys(layers, _DROPPED), _DROPPED * len(layers))
            for layer in layers.values():
                drop(layer.active)
                assert layer.absent is not None
                if rewire is not None:
                    rewire(layer, drop, grow, Moves(_DROPPED, _DROPPED))
                elif pick is not None:
                    pick(layer, grow, _DROPPED)
                else:
                    grow(layer.absent)
        except Exception as error:  # whatever a user's own code raises
            raise ValueError(
                f"the trial that finds what this recipe reads failed with {type(error).__name__}: {error}; "
                "name what it reads in `needs`, and there is no trial"
            ) from error
    return everywhere | of_absent, of_absent


@dataclass(frozen=True)
class _Noting(LayerState):
    """A layer that notes when its cost is read."""

    noted: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        if name == "cost":
            object.__getattribute__(self, "noted").add("cost")
        return object.__getattribute__(self, name)


def _layer(generator: torch.Generator, active: set[str], absent: set[str], cost: float) -> LayerState:
    numel = _SHAPE[0] * _SHAPE[1]
    order = torch.randperm(numel, generator=generator)

    def entries(index: Tensor, weight: Tensor, read: set[str]) -> Entries:
        def numbers(name: str) -> Callable[[], Tensor]:
            def make() -> Tensor:
                read.add(name)
                return torch.randn(len(index))

            return make

        return Entries(index, weight, numbers("gradient"), numbers("momentum"), generator)

    exists, free = order[:_ACTIVE].sort().values, order[_ACTIVE:].sort().values
    return _Noting(
        entries(exists, torch.randn(len(exists)), active),
        entries(free, torch.zeros(len(free)), absent),
        numel,
        _SHAPE,
        cost=cost,
        noted=active,
    )
