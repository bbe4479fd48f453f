"""MEST: drop by magnitude and gradient, grow at random, less and less."""

import math

from regrow.core import redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["mest"]

# Parts of the training at which mutation halves and ends: epochs 90 and 120 of 160.
_HALVES, _ENDS = 90 / 160, 120 / 160


def mest(
    every: int,
    steps: int,
    *,
    density: float = 0.1,
    start: float | None = None,
    prune_rate: float = 0.2,
    gradient: float = 0.01,
    growth: Growth | None = None,
) -> Recipe:
    """MEST: elastic mutation, by magnitude and gradient of the weights that exist.

    **What it does.** At every update each layer drops the share `prune_rate` of its weights, those of lowest
    |weight| + `gradient` |gradient|, and grows as many at random, at zero, their optimizer state reset. After 90 of 160
    epochs it drops half that share, and after 120 nothing ("elastic mutation").

    With `start` the network begins with more weights ("soft memory bound", EM&S): at each update it drops down to
    `density` and grows back to `start`, after 90 epochs to half-way between, and after 120 it stays at `density`. A run
    then starts at `recipe.density(0)`.

    **When to use it.** Where nothing dense fits into memory at any time, as on small devices: it reads the weights that
    exist and their gradients alone, and works with any optimizer. `start` is for where a little more fits at first.

    **Settings.** An update every 5 of 160 epochs (`--set update_every=5`), prune rate 0.2: at 90 % sparsity to 92 % and
    back, then to 91 %. `gradient` 0.01 as in the paper; the authors' code has 0 by default. `start` is 1.5 times
    `density` at 90 %, twice that at 95 %. Uniform start.

    **Watch for.** The gradient of one batch decides little at 0.01: it matters where weights are small.

    **Cost.** A step costs what the weights that exist cost, at updates too.

    **Credit.** Yuan et al. 2021, "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge",
    arXiv:2110.14032, and its code `boone891214/MEST`.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        density: nonzeros over all weights at the end; it matters where there is a `start`.
        start: the same at the start; None for a number of weights that stays.
        prune_rate: share of each layer's weights that the first updates drop, where there is no `start`.
        gradient: what the gradient counts beside the weight, not below 0.
        growth: where knowledge of absent weights would come from; this method needs none.

    Raises:
        ValueError: if `start` is below `density`, or the training is too short to come down from it.

    Example:
        >>> recipe = mest(every=50, steps=1600)
        >>> [recipe.fraction(step) for step in (50, 850, 900)], recipe.update_at(1150), recipe.update_at(1200)
        ([0.2, 0.2, 0.1], True, False)
        >>> soft = mest(every=50, steps=1600, density=0.1, start=0.15)
        >>> [round(soft.density(step), 3) for step in (0, 900, 1200)], round(soft.fraction(50), 3)
        ([0.15, 0.125, 0.1], 0.333)
    """
    halves, ends = math.ceil(_HALVES * steps), math.ceil(_ENDS * steps)
    fraction = schedule.stages({0: prune_rate, halves: prune_rate / 2})
    until, falling = max(ends, 1), None
    if start is not None:
        last = -(-ends // every) * every
        if not density <= start <= 1 or last >= steps:
            raise ValueError(
                f"no way from a density of {start} to {density} with an update every {every} of {steps} steps: give "
                "density <= start <= 1, and an update in the last quarter of the training"
            )
        falling = schedule.stages({0: start, halves: (start + density) / 2, ends: density})
        fraction, until = _down_to(density, falling, every), last + 1
    return Recipe(
        drop=score.magnitude_and_gradient(gradient),
        redistribute=redistribute.keep,
        grow=score.random,
        fraction=fraction,
        update_at=schedule.every(every, until=until),
        reset_state="warm",
        density=falling,
        growth=growth,
    )


def _down_to(density: float, before: schedule.Schedule, every: int) -> schedule.Schedule:
    """Return the share that leaves `density` of what the update before has grown to."""
    return lambda step: 1 - density / before(max(step - every, 0))
