"""GMP: from dense to sparse, by magnitude."""

from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["gmp"]


def gmp(
    every: int,
    steps: int,
    *,
    density: float = 0.1,
    start: float = 1.0,
    begin: float = 0.25,
    end: float = 0.75,
    growth: Growth | None = None,
) -> Recipe:
    """Gradual magnitude pruning: from dense to sparse during the training.

    **What it does.** The network starts dense. Every `every` steps from `begin` to `end` of the training each layer
    drops its weights of smallest magnitude, the same share of every layer, so that the density follows a cubic from
    `start` to `density`: fast first, when much can go. What was dropped never returns. (In TensorFlow's form the mask
    is drawn anew from dense weights that still train, and weights may come back.)

    **When to use it.** As the dense-to-sparse reference: what sparse training has to reach for less work. A run starts
    at `recipe.density(0)`: `regrow.sparsify(model, recipe.density(0))`. `regrow train` does so by itself.

    **Settings.** On ImageNet, and near optimal for language models (arXiv:2501.12486), from a quarter to three quarters
    of the training. One ranking over all layers instead of a common share:
    `dataclasses.replace(recipe, drops=regrow.redistribute.lowest_of_all(regrow.score.magnitude))`.

    **Watch for.** Time and memory are those of a dense network up to `begin`, and `sparsify(backend="auto")`, which
    judges by the density at the start, masks every weight: name `backend="cpu"` to have what is sparse later stored so.

    **Cost.** Reads the weights alone. Three halves of the training's multiply-adds, or more, are those of a denser
    network than the one that comes out.

    **Credit.** Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    arXiv:1710.01878.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        density: nonzeros over all weights at the end.
        start: the same at the start.
        begin: part of the training after which it begins.
        end: part of the training at which `density` is reached, or at the update before.
        growth: where knowledge of absent weights would come from; this method needs none.

    Raises:
        ValueError: if the training is too short for an update, or `density` is above `start`.

    Example:
        >>> recipe = gmp(every=100, steps=1000, density=0.1)
        >>> [step for step in range(1001) if recipe.update_at(step)]
        [300, 400, 500, 600, 700]
        >>> recipe.density(200), round(recipe.density(400), 4), recipe.density(700)
        (1.0, 0.2944, 0.1)
    """
    first, last = schedule.span(every, steps, begin, end)
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=score.magnitude,  # nothing grows
        fraction=schedule.constant(0.0),
        update_at=schedule.every(every, start=first, until=last + 1),
        density=schedule.falling(start, density, first, last),
        growth=growth,
    )
