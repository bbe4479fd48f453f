"""A sparse training algorithm as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from regrow.core.distribution import Distribution
from regrow.core.growth import Growth
from regrow.core.pick import Pick
from regrow.core.probe import what_is_read
from regrow.core.ranking import Drops
from regrow.core.redistribute import Rates, Redistribute
from regrow.core.rewire import Rewire
from regrow.core.schedule import Schedule, Timing
from regrow.core.score import Score

__all__ = ["Information", "Recipe", "ResetState", "Rounding", "check_rate"]

Information = Literal["gradient", "momentum", "cost"]

ResetState = Literal["keep", "zero", "warm", "all"]
Rounding = Literal["up", "down"]


class _Inferred(tuple[Information, ...]):
    """Needs that were found by a trial: a copy of the recipe with other parts tries again."""


@dataclass(frozen=True)
class Recipe:
    """A sparse training algorithm: what leaves, how many each layer gets back, what joins, how much and when.

    Scores, redistribution, rates, drops, pick and rewire are tried once on a few entries, which tells what they read.
    Name `needs` where that depends on a condition.

    Attributes:
        drop: score of the active weights; in each layer the lowest leave.
        redistribute: how many of the pooled weights each layer grows.
        grow: score of the positions that may be grown; the highest join, at zero.
        fraction: share of a layer's nonzeros that is dropped, a function of the step, in [0, 1].
        update_at: whether an update is due after a step. The next step carries it out, so that what looks at the
            network between the two sees it as it was trained.
        needs: the information that is read: "gradient" (at the update), "momentum" (of the optimizer), "cost" (of a
            weight of each layer, observed in training). Inferred where it is not given.
        reset_state: the optimizer state of a grown weight. "keep" leaves it the momentum that made it grow. "zero" sets
            all of it to zero. "warm" does that too, but where the optimizer divides by an average of squares (the Adam
            family, RMSprop), that starts at the mean over the active weights of the layer: from zero, the first steps
            of a grown weight would be several times as long as those of the others. "all" does what "warm" does, and
            sets the momentum of every weight of a layer that grows to zero. True stands for "warm", False for "keep".
        keep_returning: whether a weight that is dropped and grown again in the same update stays as it was, with its
            value and its optimizer state; otherwise it starts again at zero.
        density: the network's density after an update, a function of the step; None keeps the number of
            nonzeros as it is.
        growth: where the information on absent weights comes from: `regrow.growth.exact()`, `window(steps)` or
            `candidates(steps, per_nonzero)`. None takes `exact()` for weights in masked storage, where it costs
            nothing, and `window(22)` for those in sparse storage.
        rates: from the layers and the fraction of the step, the share that each layer drops; None drops the same
            share of all.
        rounding: whether the units that a layer drops are rounded "up" or "down".
        drops: how many weights each layer drops, decided over all layers together, as by
            `regrow.redistribute.lowest_of_all`; None drops a share of each layer, as `rates` and `rounding` say.
        pick: which of the absent weights of a layer grow, as `regrow.score.per_output`; None grows those of highest
            score.
        rewire: which weights of each layer leave and join, decided together, as
            `regrow.score.constant_fan_in(...)`; None goes by the rankings that `drop` and `grow` or `pick` make. What
            would be dropped and come back stays as it was then.
        may_return: whether what an update drops may grow in the same update. Where it may not, it does all the same
            if the candidates of all layers are too few.
        replaces_step: whether an update takes the place of the optimizer's step: no parameter of the optimizer
            is changed by that step.
        distribution: how the nonzeros are spread over layers at the start, for
            `regrow.sparsify(..., distribution=recipe.distribution)`.
        needs_of_absent: the part of `needs` that is read of absent weights; where `needs` is given, all but the cost,
            which is that of a layer.

    Raises:
        ValueError: if `needs` holds an unknown name, the first fraction or density lies outside [0, 1], or the trial
            fails.

    Example:
        >>> import regrow
        >>> mine = Recipe(
        ...     drop=regrow.score.magnitude,
        ...     redistribute=regrow.redistribute.by_mean(regrow.score.momentum),
        ...     grow=lambda e: e.grad.abs(),
        ...     fraction=regrow.schedule.cosine(0.5, steps=10_000),
        ...     update_at=regrow.schedule.every(390, until=10_000),
        ... )
        >>> mine.needs, mine.needs_of_absent
        (('gradient', 'momentum'), ('gradient',))
    """

    drop: Score
    redistribute: Redistribute
    grow: Score
    fraction: Schedule
    update_at: Timing
    needs: Sequence[Information] = _Inferred()
    reset_state: ResetState | bool = "keep"
    keep_returning: bool = False
    density: Schedule | None = None
    growth: Growth | None = None
    rates: Rates | None = None
    rounding: Rounding = "up"
    replaces_step: bool = False
    distribution: Distribution | str = "uniform"
    drops: Drops | None = None
    pick: Pick | None = None
    rewire: Rewire | None = None
    may_return: bool = True
    needs_of_absent: Sequence[Information] = field(init=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.needs) - set(get_args(Information)))
        if unknown:
            raise ValueError(f"unknown information {unknown} in needs: choose among {get_args(Information)}")
        if isinstance(self.reset_state, bool):
            object.__setattr__(self, "reset_state", "warm" if self.reset_state else "keep")
        for what, value, known in (
            ("reset_state", self.reset_state, get_args(ResetState)),
            ("rounding", self.rounding, get_args(Rounding)),
        ):
            if value not in known:
                raise ValueError(f"there is no {what} {value!r}: choose among {', '.join(map(str, known))}")
        if self.rates is not None and self.drops is not None:
            raise ValueError("rates and drops both say how many weights each layer drops: give one of them")
        if self.pick is not None and self.rewire is not None:
            raise ValueError("pick and rewire both say which weights of a layer grow: give one of them")
        check_rate(self.fraction(0), "fraction to drop", step=0)
        if self.density is not None:
            check_rate(self.density(0), "density", step=0)
        if isinstance(self.needs, _Inferred):
            every, absent = what_is_read(
                self.drop, self.redistribute, self.grow, self.rates, self.drops, self.pick, self.rewire
            )
            object.__setattr__(self, "needs", _Inferred(name for name in get_args(Information) if name in every))
        else:
            absent = set[str](self.needs) - {"cost"}
        object.__setattr__(self, "needs_of_absent", tuple(name for name in self.needs if name in absent))

    def updates_in(self, step: int) -> bool:
        """Return whether a step carries out an update: one that was due after the step before.

        Args:
            step: number of the step; the first is 1.

        Example:
            >>> import regrow
            >>> recipe = regrow.set(every=10, steps=100)
            >>> recipe.update_at(10), recipe.updates_in(10), recipe.updates_in(11)
            (True, False, True)
        """
        return step > 1 and self.update_at(step - 1)


def check_rate(value: float, what: str, step: int) -> None:
    """Raise a ValueError if a value lies outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"the {what} at step {step} is {value}: it must lie in [0, 1]")
