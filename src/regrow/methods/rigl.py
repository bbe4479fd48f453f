"""RigL: drop by magnitude, grow by gradient."""

from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["rigl"]


def rigl(every: int, steps: int, *, prune_rate: float = 0.3, growth: Growth | None = None) -> Recipe:
    """RigL: grow where the gradient at the update is largest.

    **What it does.** Every `every` steps, for the first three quarters of the training, an update takes the place of
    the optimizer's step. Each layer drops a share of its weights, those of smallest magnitude, rounded down, and grows
    as many where the gradient is largest. What was just dropped takes part, and if it wins it stays as it was. Others
    grow at zero, their optimizer state reset. The share falls along a cosine from `prune_rate` to 0.

    **When to use it.** Any optimizer, with or without momentum. Strong at moderate sparsity with long training.

    **Settings.** An update every 100 steps, prune rate 0.3, the Erdős-Rényi-kernel distribution
    (`regrow.sparsify(model, density, distribution=recipe.distribution)`). It never moves weights between layers. With
    a uniform distribution its authors keep the first layer dense: `keep_dense=["first"]`.

    **Watch for.** One batch decides what grows: small batches want more steps between updates. With gradient
    accumulation the accumulated gradient is what counts.

    **Credit.** Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", arXiv:1911.11134; the step that is
    left out and the weights that return as in its code.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that the first update would drop.
        growth: where the gradient of absent weights comes from; None as `Recipe.growth` says.

    Example:
        >>> recipe = rigl(every=100, steps=1000)
        >>> [step for step in range(1001) if recipe.update_at(step)]
        [100, 200, 300, 400, 500, 600, 700]
    """
    until = max(round(0.75 * steps), 1)
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=score.gradient,
        fraction=schedule.cosine(prune_rate, until),
        update_at=schedule.every(every, until=until),
        reset_state="warm",
        keep_returning=True,
        growth=growth,
        rounding="down",
        replaces_step=True,
        distribution="erdos-renyi-kernel",
    )
