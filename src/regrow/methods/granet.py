"""GraNet: prune by magnitude over all layers, and regenerate by gradient."""

import math
from collections.abc import Mapping

from regrow.core import ranking, redistribute, schedule, score
from regrow.core.apportion import apportion
from regrow.core.entries import LayerState
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["granet"]

_pruned = ranking.lowest_of_all(score.magnitude)


def granet(
    every: int,
    steps: int,
    *,
    density: float = 0.1,
    start: float | None = None,
    end: float = 0.69,
    prune_rate: float = 0.5,
    growth: Growth | None = None,
) -> Recipe:
    """GraNet: from half dense to sparse, with as many weights regrown by gradient as each layer drops beside.

    **What it does.** The network starts at `start` of its weights. At every update the weights of smallest magnitude of
    all layers together are pruned, so that the density follows a cubic from `start` to `density` up to `end` of the
    training. Then each layer drops a share of what it has left, the smallest, and grows as many where the gradient is
    largest, at zero, their optimizer state reset ("zero-cost neuroregeneration"). That share falls along a cosine
    from `prune_rate` to 0.005. After `end` only the latter goes on. What was just dropped takes part in growth and, if
    it wins, stays as it was.

    **When to use it.** Where the first part of the training may cost more than the rest: among methods that start
    sparse it has some of the best published accuracies on ImageNet. `start=1.0` is its dense-to-sparse form. A run
    starts at `recipe.density(0)`: `regrow.sparsify(model, recipe.density(0), distribution=recipe.distribution)`;
    `regrow train` does so by itself.

    **Settings.** Half of the weights at the start, Erdős-Rényi-kernel, prune rate 0.5. CIFAR-10: an update every 1000
    steps, `end` 110 of 160 epochs. ImageNet: every 4000 steps, 30 of 100 epochs.

    **Watch for.** Steps are as cheap as RigL's only once the density has fallen. The authors' code keeps what is
    strictly above its threshold, and resets what it prunes over all layers before growth; here the counts are exact,
    `density` is met at `end`, and whatever returns stays as it was.

    **Cost.** Reads the weights, and the gradient of absent ones at an update: a dense gradient of each layer once an
    update.

    **Credit.** Liu et al. 2021, "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
    arXiv:2106.10404, and its code `VITA-Group/GraNet`.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        density: nonzeros over all weights from `end` on.
        start: the same at the start; None for one half, or `density` if that is more.
        end: part of the training at which `density` is reached, or at the update before.
        prune_rate: share of each layer's weights that the first update would drop beside.
        growth: where the gradient of absent weights comes from; None as `Recipe.growth` says.

    Raises:
        ValueError: if the training is too short for an update, or `density` is above `start`.

    Example:
        >>> recipe = granet(every=100, steps=1000, density=0.1)
        >>> recipe.density(0), round(recipe.density(300), 4), recipe.density(600)
        (0.5, 0.15, 0.1)
        >>> [step for step in range(1001) if recipe.update_at(step)]
        [100, 200, 300, 400, 500, 600, 700, 800, 900]
    """
    first, last = schedule.span(every, steps, 0.0, end)
    begin = max(0.5, density) if start is None else start
    return Recipe(
        drop=score.magnitude,
        drops=_drops,
        redistribute=_regrow,
        grow=score.gradient,
        fraction=schedule.cosine(prune_rate, steps, end=min(0.005, prune_rate)),
        update_at=schedule.every(every, until=steps),
        reset_state="warm",
        keep_returning=True,
        density=schedule.falling(begin, density, first, last),
        growth=growth,
        distribution="erdos-renyi-kernel",
    )


def _drops(layers: Mapping[str, LayerState], fraction: float, least: int) -> dict[str, int]:
    """Prune over all layers what must leave, then the share of the step in each."""
    pruned, counts = _pruned(layers, 0.0, least), {}
    for name, layer in layers.items():
        left = (len(layer.active) - pruned[name]) // layer.unit_size
        counts[name] = pruned[name] + math.ceil(fraction * left) * layer.unit_size
    return counts


def _regrow(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
    """Give each layer back what it dropped beside the pruning."""
    pruned = _pruned(layers, 0.0, max(sum(dropped.values()) - total, 0))
    beside = {name: max(count - pruned[name], 0) for name, count in dropped.items()}
    room, sizes = redistribute.room_to_grow(layers, dropped), redistribute.unit_sizes(layers)
    return apportion(total, beside, room, sizes)
