"""Static: the random initial topology, kept."""

from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["static"]


def static(every: int = 1, steps: int = 1, *, growth: Growth | None = None) -> Recipe:  # noqa: ARG001 - every factory can be called alike
    """Static sparse training: the initial random topology stays.

    **What it does.** Nothing: weights that are absent at the start stay absent.

    **When to use it.** As the lower bound in a comparison, or for given masks (`regrow.sparsify(model, masks=...)`,
    for instance a lottery ticket). It works with any optimizer.

    **Watch for.** Accuracy falls well behind every dynamic method below 10 % of the weights.

    **Credit.** The baseline "static" of Evci et al. 2020, arXiv:1911.11134.

    Args:
        every: accepted so that all factories can be called alike; without effect.
        steps: likewise.
        growth: likewise.

    Example:
        >>> any(static().update_at(step) for step in range(1000))
        False
    """
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=score.random,
        fraction=schedule.constant(0.0),
        update_at=schedule.never(),
        growth=growth,
    )
