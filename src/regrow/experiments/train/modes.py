"""Modes: rules of dropping, growing and redistribution by name, each put in the place of a method's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from regrow.core import pick, ranking, redistribute, score
from regrow.core.budget import within
from regrow.core.recipe import Recipe, ResetState
from regrow.experiments.errors import UserError

__all__ = ["GROW", "MODES", "PRUNE", "REDISTRIBUTE", "Mode", "with_modes"]


@dataclass(frozen=True)
class Mode:
    """A rule by its name.

    Attributes:
        about: what it does, in a line.
        put: returns a recipe with this rule in the place of its own.
    """

    about: str
    put: Callable[[Recipe], Recipe]


def _prune(about: str, drop: score.Score, drops: ranking.Drops | None = None) -> Mode:
    def put(recipe: Recipe) -> Recipe:
        return replace(recipe, drop=drop, drops=drops, rates=None if drops else recipe.rates)

    return Mode(about, put)


def _grow(about: str, grow: score.Score, how: pick.Pick | None = None, *, everywhere: bool = False) -> Mode:
    # without the momentum that made it grow, a new weight starts as one of SET and RigL does
    reset: ResetState = "keep" if grow is score.momentum else "warm"

    def put(recipe: Recipe) -> Recipe:
        share = ranking.by_rank(grow) if everywhere else recipe.redistribute
        rewire = None if how else recipe.rewire
        return replace(recipe, grow=grow, pick=how, rewire=rewire, reset_state=reset, redistribute=share)

    return Mode(about, put)


def _share(about: str, share: redistribute.Share) -> Mode:
    """Return a mode that shares by a number of each layer, small and full ones as in the code of arXiv:1907.04840."""
    rule = redistribute.by_share(share, at_least=1, fill=0.99, overflow="equal")
    return Mode(about, lambda recipe: replace(recipe, redistribute=rule))


PRUNE: Mapping[str, Mode] = {
    "magnitude": _prune("The smallest |weight| of each layer.", score.magnitude),
    "global-magnitude": _prune(
        "The smallest |weight| of all layers together, at least one unit of each left.",
        score.magnitude,
        ranking.lowest_of_all(score.magnitude),
    ),
    "set": _prune("The smallest positive and the largest negative ones of each layer.", score.magnitude_by_sign),
}
"""What is dropped."""

GROW: Mapping[str, Mode] = {
    "momentum": _grow("The largest |momentum| of each layer.", score.momentum),
    "gradient": _grow("The largest |gradient| of each layer.", score.gradient),
    "random": _grow("At random in each layer.", score.random),
    "momentum-neuron": _grow(
        "Shared among the outputs of a layer by their mean |momentum|; in each the largest.",
        score.momentum,
        pick.per_output,
    ),
    "global-momentum": _grow(
        "The largest |momentum| of all layers together, whatever each dropped.", score.momentum, everywhere=True
    ),
}
"""What grows."""

REDISTRIBUTE: Mapping[str, Mode] = {
    "momentum": _share("By the mean |momentum| of a layer.", redistribute.mean_of(score.momentum)),
    "magnitude": _share("By the mean |weight| of a layer.", redistribute.mean_of(score.magnitude)),
    "nonzeros": _share("By the number of weights of a layer.", redistribute.nonzeros),
    "none": _share("By the size of a layer, which pulls all to one density.", redistribute.weights),
    "keep": Mode(
        "Each layer grows as many as it dropped.", lambda recipe: replace(recipe, redistribute=redistribute.keep)
    ),
    "compute": _share(
        "By mean |momentum|, within the multiply-adds of a uniform spread, or as many times those as `compute` says.",
        redistribute.mean_of(score.momentum),
    ),
}
"""What each layer grows of all that was dropped."""

MODES: Mapping[str, Mapping[str, Mode]] = {"prune": PRUNE, "grow": GROW, "redistribute": REDISTRIBUTE}
"""The modes by the setting that names them."""


def with_modes(
    recipe: Recipe, *, prune: str | None, grow: str | None, redistribute: str, compute: float | None
) -> Recipe:
    """Return a recipe with the rules that settings name in the place of its own.

    Args:
        recipe: the recipe.
        prune: a name of `PRUNE`; None for the recipe's own rule.
        grow: a name of `GROW`; likewise.
        redistribute: a name of `REDISTRIBUTE`; "method" likewise.
        compute: the bound on multiply-adds that a new redistribution gets; None for none.

    Raises:
        UserError: if growth over all layers together and a redistribution are both asked for.
    """
    own = recipe.redistribute
    if prune is not None:
        recipe = PRUNE[prune].put(recipe)
    if grow is not None:
        recipe = GROW[grow].put(recipe)
    if redistribute != "method":
        if recipe.redistribute is not own:
            raise UserError(f"grow = {grow} says how many weights each layer grows: leave redistribute out")
        recipe = REDISTRIBUTE[redistribute].put(recipe)
    bound = 1.0 if redistribute == "compute" and compute is None else compute
    if bound is not None and recipe.redistribute is not own:
        recipe = replace(recipe, redistribute=within(bound, recipe.redistribute))
    return recipe
