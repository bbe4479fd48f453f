"""Which sparse weights an updater keeps."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from regrow.storage import Weight, sparse_weights
from regrow.storage.sharded import group_of

__all__ = ["selected"]


def selected(model: nn.Module, names: Sequence[str] | None) -> list[Weight]:
    """Return the sparse weights of a model whose names match one of the globs; None matches all.

    Raises:
        ValueError: if there are none, a glob matches none, or one is stored sparsely and split over processes.
    """
    weights = sparse_weights(model)
    if not weights:
        raise ValueError("the model has no sparse weights: call regrow.sparsify(model, density) first")
    for glob in names or ():
        if not any(fnmatchcase(name, glob) for name in weights):
            raise ValueError(f"weights: {glob!r} matches no sparse weight; there are {', '.join(weights)}")
    chosen = [each for name, each in weights.items() if names is None or any(fnmatchcase(name, g) for g in names)]
    if not chosen:
        raise ValueError("weights: give at least one glob, or None for all sparse weights")
    for weight in chosen:
        if not weight.holds_absent and group_of(weight.weight) is not None:
            raise ValueError(
                f"{weight.name!r} is stored sparsely and split over processes, as by fully_shard, and its size changes "
                'with the topology: make the model by regrow.sparsify(..., backend="masked")'
            )
    return chosen
