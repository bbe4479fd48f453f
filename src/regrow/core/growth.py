"""Growth sources: where the gradient and momentum of weights that do not exist come from, as data.

Masked storage has them for free; sparse storage must ask for them, and pays for what it asks. Momentum with factor
b forgets: what is older than K steps weighs less than b to the power of K. So it is enough to gather it for some
steps before an update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.core.positions import draw_absent, draw_pairs
from regrow.core.units import Units

__all__ = ["Growth", "candidates", "exact", "guided", "or_default", "wanted", "window"]


@dataclass(frozen=True)
class Growth:
    """Which absent weights are looked at before an update, and for how long; made by the functions of this module.

    Attributes:
        steps: optimizer steps before an update in which momentum is gathered; None means all steps.
        per_nonzero: positions drawn for each weight that exists; None means all absent positions.
        guided: whether positions are drawn by the activity of their inputs and outputs, and not evenly.

    Raises:
        ValueError: if `steps` is less than 1 or `per_nonzero` is not above 0.
    """

    steps: int | None = None
    per_nonzero: float | None = None
    guided: bool = False

    def __repr__(self) -> str:
        guided = ", guided=True" if self.guided else ""
        return f"Growth(steps={self.steps}, per_nonzero={self.per_nonzero}{guided})"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"growth over {self.steps} steps is not possible: gather for at least 1 step")
        if self.per_nonzero is not None and not self.per_nonzero > 0:
            raise ValueError(f"growth from {self.per_nonzero} candidates a nonzero is not possible: take more than 0")


def exact() -> Growth:
    """Look at every absent weight at every step: the reference.

    The momentum of absent weights is that of a dense network. On sparse storage every step then makes the dense
    weight gradient, one layer at a time, and the momentum of absent weights is kept: memory is that of a dense
    network.

    Example:
        >>> exact()
        Growth(steps=None, per_nonzero=None)
    """
    return Growth()


def window(steps: int) -> Growth:
    """Look at every absent weight, but only in the last `steps` steps before an update.

    Prefer this to `exact` on sparse storage: outside the window a step costs what the weights that exist cost. The
    momentum of absent weights starts at zero when the window opens. Recipes that read the gradient alone need the
    step of the update only, whatever `steps` says.
    Steps are the optimizer's: of a layer that takes no part in some of them, as with random depth, less is seen.

    Args:
        steps: optimizer steps, at least 1. With momentum 0.9, 22 steps hold 90 % of it and 44 steps 99 %.

    Example:
        >>> window(44)
        Growth(steps=44, per_nonzero=None)
    """
    return Growth(steps=steps)


def candidates(steps: int, per_nonzero: float) -> Growth:
    """Look at `per_nonzero` random absent positions for each nonzero, in the last `steps` steps before an update.

    Prefer `guided` to this: it looks at as few, and finds more. It finds less, the lower the density: what counts seems
    to be the share of all absent positions that is looked at.

    Args:
        steps: optimizer steps, at least 1.
        per_nonzero: candidates for each weight that exists, above 0. A layer draws at least one candidate.

    Example:
        >>> candidates(44, per_nonzero=3)
        Growth(steps=44, per_nonzero=3)
    """
    return Growth(steps=steps, per_nonzero=per_nonzero)


def guided(steps: int, per_nonzero: float) -> Growth:
    """Look at `per_nonzero` absent positions for each nonzero that are likely to have a large gradient.

    Prefer this to `window` where a dense layer would not fit: nothing dense is ever made. Positions are drawn with
    probability in proportion to the sum of |gradient| of their output times the sum of |input|, over the batch of the
    step before the `steps` in which they are looked at: their product bounds the gradient of a weight (guided
    stochastic exploration, with the distribution "GraBo"; Heddes et al. 2024, arXiv:2401.04301). There the draw is by
    the batch of the update itself.

    Known is the activity of linear layers and convolutions; of others candidates are drawn evenly, and of all where no
    step came before, in compiled models, and where processes train together.

    Args:
        steps: optimizer steps, at least 1.
        per_nonzero: candidates for each weight that exists, above 0. A layer draws at least one candidate.

    Example:
        >>> guided(44, per_nonzero=3)
        Growth(steps=44, per_nonzero=3, guided=True)
    """
    return Growth(steps=steps, per_nonzero=per_nonzero, guided=True)


def or_default(growth: Growth | None, *, holds_absent: bool) -> Growth:
    """Return the source that was asked for, or what serves most.

    Args:
        growth: what was asked for; None for nothing.
        holds_absent: whether gradient and momentum of absent weights are there without asking, as in masked storage.

    Example:
        >>> or_default(None, holds_absent=True), or_default(None, holds_absent=False)
        (Growth(steps=None, per_nonzero=None), Growth(steps=22, per_nonzero=None))
    """
    if growth is not None:
        return growth
    return exact() if holds_absent else window(22)


def wanted(
    growth: Growth,
    index: Tensor,
    units: Units,
    generator: torch.Generator,
    activity: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """Return the numbers of the absent units to look at in one layer, sorted; None for all of them.

    For units of one weight, numbers are flat positions.

    Args:
        growth: the source.
        index: sorted flat positions of the weights that exist, int64.
        units: the units of the layer.
        generator: source of the draw, where there is one.
        activity: weights of the outputs and of the inputs by which a guided draw goes, on the CPU; None for an even
            one.

    Raises:
        ValueError: if the weights that exist are no whole units.

    Example:
        >>> source = candidates(1, per_nonzero=9)
        >>> wanted(source, torch.tensor([1, 3]), Units((5,)), generator=torch.Generator())
        tensor([0, 2, 4])
    """
    if growth.per_nonzero is None:
        return None
    active = units.numbers_of(index)
    count = max(1, round(growth.per_nonzero * len(active)))
    if not growth.guided or activity is None:
        return draw_absent(active, units.count, count, generator)
    outputs, inputs = (sums.view(-1, side).sum(dim=1) for sums, side in zip(activity, units.unit, strict=True))
    # every weight of a kernel takes part in the activity of its input alike
    kernel = units.numel // (units.shape[0] * units.shape[1])
    return draw_pairs(active, outputs, inputs.repeat_interleave(kernel), count, generator)
