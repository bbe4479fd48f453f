"""ITOP: SET or RigL, with the settings under which most weights are tried."""

from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["itop"]


def itop(
    every: int, steps: int, *, gradient: bool = False, prune_rate: float = 0.5, growth: Growth | None = None
) -> Recipe:
    """In-time over-parameterization: few, large updates, so that many weights are tried and each has time to grow.

    **What it does.** No new rule: each layer drops a share of its weights, those of smallest magnitude, and grows as
    many, at random (SET-ITOP) or where the gradient is largest (RigL-ITOP), at zero, their optimizer state reset. The
    share falls along a cosine from `prune_rate` to 0.005 over the whole training, and there is time between updates.

    **When to use it.** As the stronger form of SET and RigL where the training is long. What it is after is the
    exploration rate, the part of all weights that were ever active: `regrow.Explored` counts it, and `metrics.jsonl`
    and `result.json` of every method have it as `explored`. The paper finds accuracy to follow it, given that weights
    live long enough.

    **Settings.** Erdős-Rényi-kernel, prune rate 0.5. CIFAR, batch 128, 250 epochs: an update every 1500 steps at random
    (`--set update_every=3.8` of 390 steps an epoch), every 4000 by gradient (`update_every=10`).

    **Watch for.** In a short training so rare updates try few weights: look at `explored`.

    **Cost.** At random it reads the weights alone. By gradient it takes a dense gradient of each layer once an update.

    **Credit.** Liu et al. 2021, "Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in
    Sparse Training", arXiv:2102.02887; weights that return at once stay as they were, as in its code.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        gradient: whether weights grow by gradient, else at random.
        prune_rate: share of each layer's weights that the first update would drop.
        growth: where the gradient of absent weights comes from; None as `Recipe.growth` says.

    Example:
        >>> itop(every=1500, steps=100_000).needs, itop(every=4000, steps=100_000, gradient=True).needs
        ((), ('gradient',))
    """
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=score.gradient if gradient else score.random,
        fraction=schedule.cosine(prune_rate, steps, end=min(0.005, prune_rate)),
        update_at=schedule.every(every, until=steps),
        reset_state="warm",
        keep_returning=True,
        growth=growth,
        distribution="erdos-renyi-kernel",
    )
