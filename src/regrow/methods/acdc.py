"""AC/DC: dense and sparse phases in turn."""

from regrow.core import ranking, redistribute, schedule, score
from regrow.core.growth import Growth
from regrow.core.recipe import Recipe

__all__ = ["acdc"]


def acdc(every: int, steps: int, *, density: float = 0.1, growth: Growth | None = None) -> Recipe:
    """AC/DC: dense and sparse phases in turn, ending sparse.

    **What it does.** The network starts dense. After a tenth of the training a phase of `every` steps is sparse: what
    stays are the weights of largest magnitude of all layers together, and they alone are trained. In the next phase all
    weights are, the absent ones from zero, and all momentum starts anew. So they take turns, until a last dense phase
    (once or twice as long as the others) ends at 0.85 of the training, and the rest is sparse.

    **When to use it.** As a strong dense-to-sparse reference, or to come out with a dense network and a sparse one: the
    one at the end of the last dense phase is as good as a dense one. A run starts at `recipe.density(0)`, which is 1;
    `regrow train` does so by itself.

    **Settings.** `every` is the length of a phase: 5 of 100 epochs on ImageNet, 20 of 200 on CIFAR-100
    (`--set update_every=5`).

    **Watch for.** Half of the training is dense: time and memory of those phases are those of a dense network, and
    `sparsify(backend="auto")` masks every weight, since it judges by the start. Growth from `candidates` is refused at
    the first dense phase: all weights grow there.

    **Cost.** Reads the weights alone. About 0.55 of dense training in multiply-adds at 10 %, before what masks cost.

    **Credit.** Peste et al. 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
    arXiv:2106.12379; momentum as with `--reset_momentum_after_recycling` in its code `IST-DASLab/ACDC`.

    Args:
        every: optimizer steps of a phase.
        steps: optimizer steps of the whole training.
        density: nonzeros over all weights in the sparse phases.
        growth: where knowledge of absent weights would come from; this method needs none.

    Raises:
        ValueError: if the training is too short for a phase, or `density` is outside (0, 1].

    Example:
        >>> recipe = acdc(every=5, steps=100)
        >>> [step for step in range(101) if recipe.update_at(step)]
        [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
        >>> [recipe.density(step) for step in (0, 12, 17, 80, 90)]
        [1.0, 0.1, 1.0, 1.0, 0.1]
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: it is the part of the weights in sparse phases, in (0, 1]")
    _, last = schedule.span(every, steps, 0.0, 0.85)
    phases = {0: 1.0, last: density}
    begin = min(-(-steps // (10 * every)) * every, last)
    for sparse in range(begin, last - every, 2 * every):
        phases |= {sparse: density, sparse + every: 1.0}
    return Recipe(
        drop=score.magnitude,
        drops=ranking.lowest_of_all(score.magnitude),
        redistribute=redistribute.keep,
        grow=score.magnitude,  # all that is absent grows
        fraction=schedule.constant(0.0),
        update_at=schedule.at(phases.keys() - {0}),
        reset_state="all",
        density=schedule.stages(phases),
        growth=growth,
    )
