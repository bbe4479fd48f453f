"""Sparse momentum: drop by magnitude, redistribute and grow by momentum."""

from regrow.core import redistribute, schedule, score
from regrow.core.recipe import Recipe

__all__ = ["sparse_momentum"]


def sparse_momentum(every: int, steps: int, *, prune_rate: float = 0.5) -> Recipe:
    """Sparse momentum: grow where the momentum of absent weights is largest.

    **What it does.** After every `every` steps each layer drops the `ceil(p * nonzeros)` weights of smallest
    magnitude. The dropped weights of all layers are pooled and shared in proportion to each layer's mean
    |momentum| over its active weights. Each layer grows the absent weights of largest |momentum|, at zero; they
    keep the momentum that made them grow. The prune rate p falls along a cosine from `prune_rate` to 0.005.

    **When to use it.** The default of this library: the only method here that moves weights between layers, so
    the initial distribution matters little. It needs an optimizer with momentum: SGD's `momentum_buffer`, or for
    the Adam family `exp_avg / (sqrt(exp_avg_sq) + eps)`, bias-corrected.

    **Settings.** An update an epoch, uniform initial density, prune rate 0.5 (MNIST, CIFAR-10) or 0.2 (ImageNet).
    The paper finds rates from 0.2 to 0.7 and a linear decay much alike:
    `dataclasses.replace(recipe, fraction=regrow.schedule.linear(0.5, steps))`.

    **Watch for.** Momentum factors of 0.99 and above made dense and sparse networks alike fail in the paper. A small
    layer whose share fills it loses the same part of its weights at every update and gets them back at zero; where that
    makes a training diverge, `dataclasses.replace(recipe, keep_returning=True)` leaves such weights as they were.

    **Credit.** Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch: Faster Training without Losing
    Performance", arXiv:1907.04840.

    Args:
        every: optimizer steps between updates, usually an epoch.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that the first update would drop.

    Example:
        >>> recipe = sparse_momentum(every=540, steps=54_000)
        >>> recipe.fraction(0), recipe.fraction(54_000)
        (0.5, 0.005)
    """
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.by_mean(score.momentum),
        grow=score.momentum,
        fraction=schedule.cosine(prune_rate, steps, end=min(0.005, prune_rate)),
        update_at=schedule.every(every, until=steps),
    )
