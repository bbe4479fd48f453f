"""SET: drop by magnitude, grow at random."""

from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["set"]


def set(every: int, steps: int, *, prune_rate: float = 0.3, growth: Growth | None = None) -> Recipe:
    """Sparse Evolutionary Training: grow at random.

    **What it does.** Every `every` steps each layer drops the share `prune_rate` of its positive weights, the smallest,
    and of its negative ones, the largest. It grows as many at random positions, at zero, their optimizer state reset.

    **When to use it.** The baseline that every other method must beat. It reads no gradient or momentum of absent
    weights, so it works with any optimizer and costs least.

    **Settings.** An update an epoch, prune rate 0.3, constant; the Erdős-Rényi distribution, which is that of the
    recipe: `regrow.sparsify(model, density, distribution=recipe.distribution)`.

    **Watch for.** It never moves weights between layers: at a uniform density of 1 % a last layer of 1,000 weights has
    ten of them for ever. Use its own distribution.

    **Credit.** Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", arXiv:1707.04780. Later comparisons drop by absolute value:
    `dataclasses.replace(recipe, drop=regrow.score.magnitude)`.

    Args:
        every: optimizer steps between updates, usually an epoch.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that an update drops.
        growth: where knowledge of absent weights would come from; this method needs none.

    Example:
        >>> set(every=540, steps=54_000).fraction(20_000)
        0.3
    """
    return Recipe(
        drop=score.magnitude_by_sign,
        redistribute=redistribute.keep,
        grow=score.random,
        fraction=schedule.constant(prune_rate),
        update_at=schedule.every(every, until=steps),
        reset_state="warm",
        growth=growth,
        distribution="erdos-renyi",
    )
