"""DSR: drop the smallest of all layers together, grow at random where weights survive."""

from regrow.core import ranking, redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["dsr"]


def dsr(
    every: int, steps: int, *, prune_rate: float = 0.15, count: int | None = None, growth: Growth | None = None
) -> Recipe:
    """Dynamic sparse reparameterization: layers that lose few weights gain those of the others.

    **What it does.** Every `every` steps, until 0.95 of the training, the K weights of smallest magnitude of all layers
    together are dropped, but never a layer's last. K weights grow at random, at zero, their optimizer state reset: each
    layer's share is its number of surviving weights, what a full layer cannot take goes to the others in the same
    proportion, and no weight grows where it has just been dropped, unless nothing else is free.

    The paper finds K by an adaptive threshold: all weights below it go, and it is doubled or halved where that is less
    than 0.9 or more than 1.1 K. Here K is exact at every update and there is no threshold to set or to save, which is
    what the threshold aims at. Shares are made whole by largest remainder instead of by chance.

    **When to use it.** With any optimizer, where weights are to move between layers and the gradient of absent weights
    is too dear: it reads none, and an update costs a selection over the weights that exist.

    **Settings.** K as `count`: in the paper 600 for MNIST, 20,000 for WRN-28-2, 400,000 for ResNet-50 (16 % of its
    weights at 10 %); or as a share of all weights, `prune_rate`, constant. Uniform start; the first convolution, 1x1
    shortcuts and on CIFAR-10 the classifier dense: `keep_dense`. The paper widens the interval as the training goes on
    (CIFAR-10: 100, 200, 400, 800 steps from 0, 1/8, 2/5, 7/10 of it): `dataclasses.replace(recipe, update_at=...)`.

    **Watch for.** Magnitudes of layers are compared as they are: a layer whose weights are small by its scale, as
    before a norm, shrinks whether it matters or not.

    **Cost.** Reads the weights alone; a step costs what the weights that exist cost.

    **Credit.** Mostafa & Wang 2019, "Parameter Efficient Training of Deep Convolutional Neural Networks by Dynamic
    Sparse Reparameterization", arXiv:1902.05967; growth where nothing was just removed as in its code.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        prune_rate: share of all weights that an update drops, where `count` is None.
        count: weights that an update drops.
        growth: where knowledge of absent weights would come from; this method needs none.

    Example:
        >>> recipe = dsr(every=100, steps=1000)
        >>> recipe.needs, recipe.update_at(900), recipe.update_at(950)
        ((), True, False)
    """
    return Recipe(
        drop=score.magnitude,
        drops=ranking.lowest_of_all(score.magnitude, count=count),
        redistribute=redistribute.by_share(redistribute.survivors),
        grow=score.random,
        may_return=False,
        fraction=schedule.constant(prune_rate),
        update_at=schedule.every(every, until=max(round(0.95 * steps), 1)),
        reset_state="warm",
        growth=growth,
    )
