"""The tables of a measurement of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import geometric_mean

from regrow.experiments.bench.common.options import block_name
from regrow.experiments.bench.common.spreads import short
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.bench.layers.contenders import DENSE, SPARSE
from regrow.experiments.bench.layers.floor import Floor
from regrow.experiments.bench.layers.measure import Row
from regrow.experiments.bench.layers.problem import PASSES, Shape
from regrow.experiments.bench.layers.report import Report

__all__ = ["markdown", "means", "sentence", "tables"]

_BOTH, _WIDE = ("vgg16-d", "wrn-22-8"), 64


def tables(report: Report) -> list[Table]:
    """Return all tables: geometric means, then for each density the ratios, the roofline, and units."""
    densities = sorted({row.density for row in report.rows})
    of_density = [[row for row in report.rows if row.density == density] for density in densities]
    blocks = _blocks(report)
    return [
        *means(report),
        *(
            table
            for rows in of_density
            for table in (
                _ratios(rows, _rivals(report)),
                _roofline(rows, report),
                *([_units(rows, blocks)] if blocks else []),
            )
        ),
    ]


def means(report: Report) -> list[Table]:
    """Return for each rival the geometric means of its time over regrow's, by group of layers and density.

    Of units also the means of dense's time over theirs.
    """
    kinds = [
        *((f"{name} over regrow", name, False) for name in _rivals(report)),
        *((f"{DENSE.name} over {name}", name, True) for name in _blocks(report)),
    ]
    densities = sorted({row.density for row in report.rows})
    return [
        Table(
            f"{title}, forward and both gradients: geometric mean (layers)",
            ("layers", *(f"{density:.3g}" for density in densities)),
            tuple(
                (group, *(_mean([row for row in report.rows if row.density == each and holds(row.shape)], name, dense)
                          for each in densities))
                for group, holds in _groups(report)
                if any(holds(row.shape) and name in row.timings for row in report.rows)
            ),
        )
        for title, name, dense in kinds
    ]  # fmt: skip


def markdown(report: Report, command: str) -> str:
    """Return the tables as a section of a page.

    Args:
        report: the figures.
        command: the command that makes them.
    """
    settings = report.settings
    clock = "wall time" if settings.clock == "wall" else "processor time of the one thread"
    lines = [
        f"`{command}`",
        "",
        f"{report.machine}. The machine's rates: {report.rates}. Medians with quartiles of at most "
        f"{settings.rounds} rounds, {clock}. Ratios are times over regrow's, or dense's over those of units, in the "
        "same round.",
        "",
        *(f"{name} {reason}.\n" for name, reason in report.missing.items()),
        *_left_out(report),
        "",
        *(table.markdown() for table in tables(report)),
    ]
    return "\n".join(lines)


def sentence(row: Row) -> str:
    """Return one row in a line, for the progress."""
    dense, sparse = row.timings[DENSE.name], row.timings[SPARSE.name]
    ratios = "  ".join(
        f"{name} {timing.ratio['total'].text()}" for name, timing in row.timings.items() if name != SPARSE.name
    )
    ratios += "".join(
        f"  {DENSE.name} / {name} {timing.dense['total'].text()}"
        for name, timing in row.timings.items()
        if timing.dense
    )
    times = f"{dense.milliseconds['total'].median:.1f} ms dense, {sparse.milliseconds['total'].median:.1f} ms sparse"
    return f"{row.shape.network} {row.shape} at {row.density:.3g}: {times}; {ratios}"


def _rivals(report: Report) -> list[str]:
    return [DENSE.name, *_blocks(report), *report.settings.rivals]


def _blocks(report: Report) -> list[str]:
    return [block_name(block) for block in report.settings.blocks]


def _groups(report: Report) -> list[tuple[str, Callable[[Shape], bool]]]:
    def of(network: str) -> Callable[[Shape], bool]:
        return lambda shape: shape.network == network

    def both(shape: Shape) -> bool:
        return shape.network in _BOTH

    def wide(shape: Shape) -> bool:
        return both(shape) and min(shape.inputs, shape.outputs) >= _WIDE

    networks = dict.fromkeys(row.shape.network for row in report.rows)
    return [
        *([(" and ".join(_BOTH), both)] if networks.keys() >= set(_BOTH) else []),
        (f"{' and '.join(_BOTH)}, {_WIDE} channels or more", wide),
        *((network, of(network)) for network in networks),
    ]


def _mean(rows: Sequence[Row], rival: str, dense: bool) -> str:
    timings = [row.timings[rival] for row in rows if rival in row.timings]
    ratios = [(timing.dense if dense else timing.ratio)["total"].median for timing in timings]
    return f"{geometric_mean(ratios):.2f} ({len(ratios)})" if ratios else "-"


def _ratios(rows: Sequence[Row], rivals: Sequence[str]) -> Table:
    passes = (*PASSES, "total")
    return Table(
        f"Density {rows[0].density:.3g}: times over regrow's",
        ("layer", *(f"{DENSE.name} {name}" for name in passes), *(f"{name} total" for name in rivals[1:])),
        tuple(
            (
                f"{row.shape.network} {row.shape}",
                *(row.timings[DENSE.name].ratio[name].text() for name in passes),
                *(row.timings[name].ratio["total"].text() if name in row.timings else "-" for name in rivals[1:]),
            )
            for row in rows
        ),
    )


def _roofline(rows: Sequence[Row], report: Report) -> Table:
    def cells(row: Row, name: str) -> Iterable[str]:
        timing = row.timings[name]
        floor = timing.floor or row.floor
        yield f"{row.shape.network} {row.shape}{'' if name == SPARSE.name else f' {name}'}"
        yield short(row.timings[DENSE.name].milliseconds["total"].median)
        yield f"{min(report.rates.operations, _intensity(floor['forward']) * report.rates.bytes) / 1e9:.0f}"
        for one in PASSES:
            milliseconds = timing.milliseconds[one].median
            operations, data = (each / milliseconds * 1e3 for each in (floor[one].operations, floor[one].bytes))
            shares = f"{operations / report.rates.operations:.0%} / {data / report.rates.bytes:.0%}"
            yield f"{short(milliseconds)} / {operations / 1e9:.0f} / {shares}"
        yield short(timing.milliseconds["total"].median)
        yield f"{floor['total'].share:.0%}"

    passes = (f"{name}: ms / GFLOP/s / of peak / of bandwidth" for name in PASSES)
    return Table(
        f"Density {rows[0].density:.3g}: roofline; {report.rates}",
        ("layer", "dense total", "attainable GFLOP/s", *passes, "total", "of the floor"),
        tuple(tuple(cells(row, name)) for row in rows for name in (SPARSE.name, *_blocks(report))),
    )


def _intensity(floor: Floor) -> float:
    """Return the operations for each byte of a pass; all three have as many of both."""
    return floor.operations / floor.bytes


def _units(rows: Sequence[Row], blocks: Sequence[str]) -> Table:
    passes = (*PASSES, "total")
    return Table(
        f"Density {rows[0].density:.3g}: units, dense's times over theirs",
        ("layer", "dense ms", "ms", *(f"dense / units {name}" for name in passes)),
        tuple(
            (
                f"{row.shape.network} {row.shape} {name}",
                *(short(row.timings[each].milliseconds["total"].median) for each in (DENSE.name, name)),
                *(row.timings[name].dense[one].text() for one in passes),
            )
            for row in rows
            for name in blocks
        ),
    )


def _left_out(report: Report) -> list[str]:
    """Return a line for each reason for which a rival was not timed."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        for name, reason in row.left_out.items():
            found.setdefault((name, reason), []).append(f"{row.shape.network} {row.shape} at {row.density:.3g}")
    return [
        f"- {name} was not timed on {len(cases)} of {len(report.rows)} rows "
        f"({cases[0]}{', ...' if cases[1:] else ''}): {reason}."
        for (name, reason), cases in found.items()
    ]
