"""Check one layer at one density, then time it: every contender in turn, round after round, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from regrow.experiments.bench.common.correctness import too_large
from regrow.experiments.bench.common.spreads import Spread, spread
from regrow.experiments.bench.common.turns import FEWEST_ROUNDS, turns
from regrow.experiments.bench.layers.contenders import DENSE, SPARSE, Contender, NotApplicableError, Prepared
from regrow.experiments.bench.layers.floor import Floor, floors, with_sums
from regrow.experiments.bench.layers.problem import Problem, Shape, relative_error
from regrow.experiments.bench.layers.rates import Rates
from regrow.experiments.errors import WrongResultError

__all__ = ["Row", "Timing", "measure"]

_RUNS = ("forward", "input", "weight", "backward")


@dataclass(frozen=True)
class Timing:
    """What one contender took.

    Attributes:
        milliseconds: for each pass that it has, for `backward` (input and weight) and for the `total`.
        ratio: its time over that of regrow in the same round, for the passes that both have.
        rounds: how many rounds it ran.
        dense: the time of dense over its own, likewise; of units only.
        floor: as that of a row; of units only.
    """

    milliseconds: dict[str, Spread]
    ratio: dict[str, Spread]
    rounds: int
    dense: dict[str, Spread] = field(default_factory=dict)
    floor: dict[str, Floor] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One layer at one density.

    Attributes:
        shape: the layer.
        density: share of the weights that exist.
        nonzeros: how many those are.
        timings: by contender.
        left_out: contenders that were not timed, and why.
        floor: of regrow by pass, and for the `total`.
    """

    shape: Shape
    density: float
    nonzeros: int
    timings: dict[str, Timing]
    left_out: dict[str, str]
    floor: dict[str, Floor]


def measure(
    problem: Problem,
    rivals: Sequence[Contender],
    rates: Rates,
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float],
) -> Row:
    """Check and time one problem.

    Dense and regrow, with units or without, run one after the other in every round, each first in turn; a slow rival
    leaves the rounds when it has used its part of the time.

    Args:
        problem: what to compute.
        rivals: who computes it beside regrow and dense; those with a block compute with units at the same density.
        rates: what the machine can do.
        rounds: how many rounds at most.
        seconds: no new round begins after so many, once there were three.
        clock: returns seconds.

    Raises:
        WrongResultError: if the kernels' results are wrong.
    """
    contenders = {contender.name: contender for contender in (DENSE, SPARSE, *rivals)}
    ready, left_out = _checked(problem, contenders)
    times = _time(contenders, ready, rounds, seconds, clock)
    timings = {name: _timing(each, times[SPARSE.name]) for name, each in times.items()}
    for name, timing in timings.items():
        if contenders[name].block != (1, 1):
            floor = floors(replace(problem, block=contenders[name].block), rates, times[name])
            timings[name] = replace(timing, dense=_timing(times[DENSE.name], times[name]).ratio, floor=floor)
    return Row(
        shape=problem.shape,
        density=problem.density,
        nonzeros=problem.pattern.nonzeros,
        timings=timings,
        left_out=left_out,
        floor=floors(problem, rates, times[SPARSE.name]),
    )


def _checked(problem: Problem, contenders: Mapping[str, Contender]) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Prepare every contender and compare it with float32 dense of the same weight, pass by pass."""
    ready, left_out = {}, {}
    problems = {problem.block: problem}
    expected: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, contender in contenders.items():
        block = contender.block
        own = problems.setdefault(block, replace(problem, block=block))
        try:
            prepared = contender.prepare(own)
            results = _results(prepared)
            if block not in expected:  # dense, which comes first, stands for itself
                expected[block] = results if name == DENSE.name else _results(DENSE.prepare(own))
        except NotApplicableError as reason:
            left_out[name] = str(reason)
            continue
        except (RuntimeError, ValueError, TypeError) as error:
            if name == DENSE.name or contender.own:
                raise
            left_out[name] = f"fails: {' '.join(str(error).split())[:200]}"
            continue
        errors = {one: relative_error(results[one].float(), expected[block][one]) for one in results}
        wrong = too_large(errors, contender.tolerance)
        if not wrong:
            ready[name] = prepared
            continue
        what = ", ".join(f"{one} (relative error {error:.1e})" for one, error in wrong.items())
        if contender.own:
            case = f"{problem.shape.network} {problem.shape} at {problem.density:g}"
            raise WrongResultError(f"{case}, {name}: wrong results: {what}; not timed")
        left_out[name] = f"wrong results: {what}"
    return ready, left_out


def _results(prepared: Prepared) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for name, run in prepared.passes.items():
        results.update(zip(("input", "weight") if name == "backward" else (name,), run(), strict=True))
    return {**results, "weight": prepared.values(results["weight"])}


def _time(
    contenders: Mapping[str, Contender],
    ready: Mapping[str, Prepared],
    rounds: int,
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, list[dict[str, float]]]:
    """Return for each contender and round the milliseconds of its passes."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ready}
    used = dict.fromkeys(ready, 0.0)
    always = [name for name in ready if name == DENSE.name or contenders[name].own]
    others = [name for name in ready if name not in always]
    for number, order in enumerate(turns(always, rounds, seconds)):
        # A rival that is slow has its few rounds; those that matter go on.
        rest = [name for name in others if number < FEWEST_ROUNDS or used[name] < seconds / len(ready)]
        for name in (*order, *rest):
            times[name].append({})
        for one in _RUNS:
            for name in (*order, *rest):
                run = ready[name].passes.get(one)
                if run is None:
                    continue
                began = clock()
                result = run()
                took = clock() - began
                del result
                times[name][-1][one] = took * 1e3
                used[name] += took
                if contenders[name].pause:
                    time.sleep(contenders[name].pause)
    return times


def _timing(own: Sequence[Mapping[str, float]], sparse: Sequence[Mapping[str, float]]) -> Timing:
    # Every contender runs from the first round on, so the rounds of one stand beside those of another by number.
    mine, reference = [with_sums(each) for each in own], [with_sums(each) for each in sparse]
    pairs = list(zip(mine, reference, strict=False))
    return Timing(
        milliseconds={name: spread([each[name] for each in mine]) for name in mine[0]},
        ratio={name: spread([a[name] / b[name] for a, b in pairs]) for name in mine[0] if name in reference[0]},
        rounds=len(mine),
    )
