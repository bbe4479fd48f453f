"""The modes of `Masking` by their names, as parts of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regrow.core import pick, ranking, redistribute, schedule, score
from regrow.core.recipe import Recipe

__all__ = ["GROWTH", "PRUNE", "REDISTRIBUTION", "recipe_of"]

_Parts = Mapping[str, Any]

PRUNE: Mapping[str, _Parts] = {
    "magnitude": {"drop": score.magnitude},
    "SET": {"drop": score.magnitude_by_sign},
    "global_magnitude": {"drop": score.magnitude, "drops": ranking.lowest_of_all(score.magnitude), "rates": None},
}

GROWTH: Mapping[str, _Parts] = {
    "momentum": {"grow": score.momentum},
    "random": {"grow": score.random},
    "momentum_neuron": {"grow": score.momentum, "pick": pick.per_output},
    "global_momentum_growth": {"grow": score.momentum, "redistribute": ranking.by_rank(score.momentum)},
}

REDISTRIBUTION: Mapping[str, redistribute.Share] = {
    "momentum": redistribute.mean_of(score.momentum),
    "magnitude": redistribute.mean_of(score.magnitude),
    "nonzeros": redistribute.nonzeros,
    "none": redistribute.weights,
}

_ALSO = {"nonzero": "nonzeros"}  # the table of their code has the one, its help the other


def recipe_of(prune: str, growth: str, redistribution: str, rate: Callable[[], float]) -> Recipe:
    """Return the recipe of three modes, whose updates are asked for and never due by themselves.

    Full layers, small ones and weights that return are treated as in `regrow.sparse_momentum`.

    Args:
        prune: a name of `PRUNE`.
        growth: a name of `GROWTH`.
        redistribution: a name of `REDISTRIBUTION`, or "nonzero".
        rate: returns the prune rate of an update.

    Raises:
        ValueError: if there is no such mode.
        TypeError: if a mode is no name.

    Example:
        >>> recipe_of("magnitude", "random", "nonzero", rate=lambda: 0.5).needs
        ()
    """
    share = _named(REDISTRIBUTION, "redistribution_mode", redistribution)
    parts = {
        "redistribute": redistribute.by_share(share, at_least=1, fill=0.99, overflow="equal"),
        "rates": redistribute.spare_full_by(share),
        **_named(PRUNE, "prune_mode", prune),
        **_named(GROWTH, "growth_mode", growth),
    }
    return Recipe(fraction=lambda step: rate(), update_at=schedule.never(), keep_returning=True, **parts)


def _named(modes: Mapping[str, Any], argument: str, name: str) -> Any:
    if not isinstance(name, str):
        raise TypeError(
            f"{argument} is a {type(name).__name__}: regrow's own rules look different from functions of `masking`, "
            "and are parts of a regrow.Recipe; docs/writing-a-method.md shows how to write one"
        )
    name = _ALSO.get(name, name)
    if name not in modes:
        raise ValueError(f"there is no {argument} {name!r}: choose among {', '.join(modes)}")
    return modes[name]
