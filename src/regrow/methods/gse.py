"""GSE: RigL that looks at few absent weights, drawn where a large gradient is likely."""

from regrow.core import growth as sources
from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["gse"]


def gse(
    every: int, steps: int, *, prune_rate: float = 0.2, per_nonzero: float = 1.0, growth: Growth | None = None
) -> Recipe:
    """Guided stochastic exploration: growth by gradient among few candidates, nothing dense ever.

    **What it does.** At every update each layer looks at `per_nonzero` absent weights for each that exists, drawn in
    proportion to the activity of their output and input (`regrow.growth.guided`). It grows those of largest gradient,
    at zero, their optimizer state reset, and drops as many of those that were there before, the smallest. That share
    falls along a cosine from `prune_rate` to 0. Nothing grows where it has just been dropped, unless the candidates
    of all layers are too few; what one layer has too few for grows in the others.

    **When to use it.** On sparse storage at densities at which a dense gradient of a layer, even once an update, is too
    large; from there on it costs what the weights that exist cost. With any optimizer.

    **Settings.** An update every 1000 steps (CIFAR, batch 128), prune rate 0.2, one candidate for each weight,
    Erdős-Rényi.

    **Watch for.** The authors draw by the batch whose gradient they take, up to a sketch of that gradient ("GraEst");
    here the draw is by the batch of the step before, and by the bound ("GraBo"). Layers other than linear ones and
    convolutions, compiled models, and processes that train together draw evenly. Candidates are distinct, and none
    exists already.

    **Cost.** A step costs what the weights that exist cost; that of an update, that of the candidates too.

    **Credit.** Heddes et al. 2024, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration",
    arXiv:2401.04301, beside its code `mikeheddes/guided-stochastic-exploration`.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that the first update would drop.
        per_nonzero: candidates for each weight that exists, above 0.
        growth: where the gradient of absent weights comes from, in the place of `guided(1, per_nonzero)`.

    Example:
        >>> recipe = gse(every=100, steps=1000)
        >>> recipe.growth, recipe.needs_of_absent
        (Growth(steps=1, per_nonzero=1.0, guided=True), ('gradient',))
    """
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=score.gradient,
        may_return=False,
        fraction=schedule.cosine(prune_rate, steps),
        update_at=schedule.every(every, until=steps),
        reset_state="warm",
        growth=sources.guided(1, per_nonzero) if growth is None else growth,
        distribution="erdos-renyi",
    )
