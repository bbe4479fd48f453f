"""Sparse momentum: drop by magnitude, redistribute and grow by momentum."""

from regrow.core import budget, redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["sparse_momentum"]

_FILL = 0.99


def sparse_momentum(
    every: int,
    steps: int,
    *,
    prune_rate: float = 0.5,
    compute: float | None = None,
    growth: Growth | None = None,
) -> Recipe:
    """Sparse momentum: grow where the momentum of absent weights is largest.

    **What it does.** Every `every` steps each layer drops the `ceil(p * nonzeros)` weights of smallest
    magnitude. The dropped weights of all layers are pooled and shared in proportion to each layer's mean
    |momentum| over its active weights. Each layer grows the absent weights of largest |momentum|, at zero; they
    keep the momentum that made them grow. The prune rate p falls along a cosine from `prune_rate` to 0.005.

    Four rules are those of the authors' code, not of the paper's text. A layer of density above 0.8 whose share is
    above the average drops no more than the part it has free. A layer of positive share, or without weights, grows at
    least one. No layer is filled beyond 0.99 of its room, and what is above is shared in equal parts. A weight that is
    dropped and grown in the same update stays as it was. Unlike there, the number of weights stays exact. Without them:
    `dataclasses.replace(recipe, rates=None, keep_returning=False,
    redistribute=regrow.redistribute.by_mean(regrow.score.momentum))`.

    **When to use it.** The default of this library: the only method here that moves weights between layers, so
    the initial distribution matters little, unless it leaves a small layer next to nothing: at half a percent start
    from Erdős-Rényi. It needs an optimizer with momentum: SGD's `momentum_buffer`, or for the Adam family
    `exp_avg / (sqrt(exp_avg_sq) + eps)`, bias-corrected.

    **Settings.** An update an epoch, uniform initial density, prune rate 0.5 (MNIST, CIFAR-10) or 0.2 (ImageNet).
    The paper finds rates from 0.2 to 0.7 and a linear decay much alike:
    `dataclasses.replace(recipe, fraction=regrow.schedule.linear(0.5, steps))`. Momentum moves weights to early
    layers, where each takes more multiply-adds: several times a uniform spread's in a network that narrows its planes.
    `compute` bounds that: `regrow.redistribute.within`.

    **Watch for.** Momentum factors of 0.99 and above made dense and sparse networks alike fail in the paper.

    **Credit.** Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch: Faster Training without Losing
    Performance", arXiv:1907.04840, and their code `sparse_learning`.

    Args:
        every: optimizer steps between updates, usually an epoch.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that the first update would drop.
        compute: how many times the multiply-adds of a uniform spread the sparse layers may take after an update, above
            0; None is the paper's rule, without a bound.
        growth: where the momentum of absent weights comes from; None as `Recipe.growth` says.

    Example:
        >>> recipe = sparse_momentum(every=540, steps=54_000)
        >>> recipe.fraction(0), recipe.fraction(54_000)
        (0.5, 0.005)
    """
    shared = redistribute.by_mean(score.momentum, at_least=1, fill=_FILL, overflow="equal")
    rates = redistribute.spare_full(score.momentum)
    if compute is not None:
        shared, rates = budget.within(compute, shared, fill=_FILL), budget.within_rates(compute, rates)
    return Recipe(
        drop=score.magnitude,
        redistribute=shared,
        grow=score.momentum,
        fraction=schedule.cosine(prune_rate, steps, end=min(0.005, prune_rate)),
        update_at=schedule.every(every, until=steps),
        keep_returning=True,
        growth=growth,
        rates=rates,
    )
