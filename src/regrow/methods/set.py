"""SET: drop by magnitude, grow at random."""

from regrow.core import redistribute, schedule, score
from regrow.core.recipe import Recipe

__all__ = ["set"]


def set(every: int, steps: int, *, prune_rate: float = 0.3) -> Recipe:
    """Sparse Evolutionary Training: grow at random.

    **What it does.** After every `every` steps each layer drops the share `prune_rate` of its weights, those of
    smallest magnitude, and grows as many at random positions, at zero, their optimizer state zeroed.

    **When to use it.** The baseline that every other method must beat. It reads no gradient or momentum of absent
    weights, so it works with any optimizer and costs least.

    **Settings.** An update an epoch, prune rate 0.3, constant; the Erdős-Rényi distribution.

    **Watch for.** At 1 to 2 % of the weights random growth rarely finds good positions: prefer sparse momentum.

    **Credit.** Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", arXiv:1707.04780. The paper drops the smallest positive and the
    largest negative weights separately; this drops by absolute value, as later comparisons do.

    Args:
        every: optimizer steps between updates, usually an epoch.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that an update drops.

    Example:
        >>> set(every=540, steps=54_000).fraction(20_000)
        0.3
    """
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=score.random,
        fraction=schedule.constant(prune_rate),
        update_at=schedule.every(every, until=steps),
        reset_state=True,
    )
