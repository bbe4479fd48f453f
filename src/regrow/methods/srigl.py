"""SRigL: RigL with as many weights for each output, and outputs that are left out."""

import dataclasses

from regrow.core.growth import Growth
from regrow.core.recipe import Recipe
from regrow.core.rewire import constant_fan_in
from regrow.methods.rigl import rigl

__all__ = ["srigl"]


def srigl(
    every: int, steps: int, *, prune_rate: float = 0.3, ablate_below: float | None = 0.3, growth: Growth | None = None
) -> Recipe:
    """SRigL: constant fan-in, and outputs that are ablated where few weights matter.

    **What it does.** When and how much is as RigL: for three quarters of the training an update takes the place of an
    optimizer's step, each layer drops a share of its weights, those of smallest magnitude, rounded down, and grows as
    many where the gradient is largest. Here every output of a layer (a row, a filter) has as many weights as the
    others: it keeps its largest of those that RigL would keep, up to that number, and is filled by the largest
    gradients. The weights that RigL would have after the update are *salient*. An output with fewer salient ones than
    `ablate_below` of the fan-in that all outputs would have, or none, is ablated: it loses all its weights, and the
    others have more. In the last layer none is, and in no layer more than leaves room for its weights. What was
    dropped and grows at once stays as it was; others grow at zero, their optimizer state reset.

    **When to use it.** Where the network is to run on hardware or kernels that want rows of one length: its index is a
    matrix of outputs by fan-in ("condensed"), and ablated outputs can be cut out. The paper finds RigL's accuracy,
    and that ablation is what keeps it above 90 % sparsity.

    **Settings.** As RigL's: an update every 100 steps, prune rate 0.3, Erdős-Rényi-kernel. `ablate_below` 0.3 for
    convolutional networks and 0.95 for vision transformers; None ablates none.

    **Watch for.** The first update makes the fan-in constant; the start is drawn as any other. The number of weights of
    a layer stays exact: where it is no multiple of the outputs, those with the most salient weights have one more (the
    paper rounds down and drops the rest). An ablated output still has its bias and its norm. An output that enough
    salient weights come to is back. The authors' code cuts a row that keeps too many at arbitrary weights, here at the
    smallest. The kernels of this library make no use of rows of one length.

    **Cost.** As RigL, and a sort of the absent weights of each layer at an update.

    **Credit.** Lasby et al. 2023, "Dynamic Sparse Training with Structured Sparsity", arXiv:2305.02299; the ablation
    beside the code `calgaryml/condensed-sparsity`.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that the first update would drop.
        ablate_below: part of the mean fan-in, in [0, 1], that an output's salient weights must come to; None ablates
            none.
        growth: where the gradient of absent weights comes from; None as `Recipe.growth` says.

    Raises:
        ValueError: if `ablate_below` is outside [0, 1].

    Example:
        >>> recipe = srigl(every=100, steps=1000)
        >>> recipe.needs, recipe.replaces_step, recipe.update_at(700), recipe.update_at(800)
        (('gradient',), True, True, False)
    """
    recipe = rigl(every, steps, prune_rate=prune_rate, growth=growth)
    return dataclasses.replace(recipe, rewire=constant_fan_in(ablate_below))
