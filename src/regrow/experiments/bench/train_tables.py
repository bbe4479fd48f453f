"""The tables of whole training steps."""

from __future__ import annotations

from collections.abc import Iterable

from regrow.experiments.bench.measure import Spread
from regrow.experiments.bench.tables import Table
from regrow.experiments.bench.train import BFLOAT16, DENSE, SPARSE, Report, Row

_MIB = 1 << 20


def tables(report: Report) -> list[Table]:
    """Return all tables: steps, updates, kinds of operation, model state, and what `auto` chose for each weight."""
    rows = report.rows
    chosen = [_layers(row) for row in rows if any(layer.reason for layer in row.layers)]
    return [steps_table(rows), _updates(rows), _breakdown(rows), _state(rows), *chosen]


def steps_table(rows: Iterable[Row]) -> Table:
    """Return what a step takes, and the ratios beside what the paper's way of estimating gives."""
    rows = list(rows)
    others = list(dict.fromkeys(name for row in rows for name in row.ratio if name not in (DENSE, BFLOAT16)))
    columns = (
        *("preset", "batch", "density", "dense ms", "form", "bfloat16 ms", "sparse ms", "dense / sparse"),
        *("bfloat16 / sparse", *(f"{name} / sparse" for name in others)),
        *("estimated: dense convolution", "estimated: sparse convolution"),
    )

    def cells(row: Row) -> tuple[str, ...]:
        return (
            row.preset,
            str(row.batch),
            f"{row.density:.3g}",
            _short(row.milliseconds[DENSE].median),
            row.dense_form,
            _short(row.milliseconds[BFLOAT16].median),
            _short(row.sparse_step),
            *(_ratio(row.ratio[name]) if name in row.ratio else "-" for name in (DENSE, BFLOAT16, *others)),
            _times(row.estimated.dense_convolution),
            _times(row.estimated.sparse_convolution),
        )

    return Table("Whole training steps, updates included: median (quartiles)", columns, tuple(map(cells, rows)))


def markdown(report: Report, command: str) -> str:
    """Return the tables as a section of a page.

    Args:
        report: the figures.
        command: the command that makes them.
    """
    settings = report.settings
    lines = [
        f"`{command}`",
        "",
        f"{report.machine}. Backend {settings.backend}, growth {settings.growth or 'as the method has it'}; at most "
        f"{settings.rounds} rounds. Ratios are times over that of the sparse step of the same round with its share of "
        "topology updates; of other libraries, which update nothing, over the step without. The estimates are those of "
        "the paper's method: convolutions alone, nothing for skipping.",
        "",
        *(
            f"- {row.preset} at {row.density:.3g}, {name}: {why}."
            for row in report.rows
            for name, why in row.left_out.items()
        ),
        "",
        *(table.markdown() for table in tables(report)),
    ]
    return "\n".join(lines)


def speed_points(rows: Iterable[Row]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return for each preset its points: density, and median and quartiles of dense over sparse."""
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        ratio = row.ratio[DENSE]
        points.setdefault(row.preset, []).append((row.density, ratio.median, ratio.low, ratio.high))
    return points


def sentence(row: Row) -> str:
    """Return one row in a line, for the progress."""
    return (
        f"{row.preset} at {row.density:.3g}: {_short(row.milliseconds[DENSE].median)} ms dense ({row.dense_form}), "
        f"{_short(row.sparse_step)} ms sparse; dense / sparse {_ratio(row.ratio[DENSE])}"
    )


def _updates(rows: Iterable[Row]) -> Table:
    columns = (
        *("preset", "density", "step without ms", "looking ms", "steps that look", "update ms", "steps between"),
        *("a step with its share ms", "share"),
    )

    def cells(row: Row) -> tuple[str, ...]:
        updates = row.updates
        figures = (_short(updates.looking), str(updates.looking_steps), _short(updates.update))
        every = "none" if updates.every is None else f"{updates.every:.0f}"
        return (
            *(row.preset, f"{row.density:.3g}", _short(row.milliseconds[SPARSE].median), *figures, every),
            *(_short(row.sparse_step), f"{updates.share:.1%}"),
        )

    return Table("Topology updates", columns, tuple(map(cells, rows)))


def _breakdown(rows: Iterable[Row]) -> Table:
    rows = list(rows)
    kinds = list(dict.fromkeys(kind for row in rows for times in row.breakdown.values() for kind in times))

    def cells(row: Row) -> Iterable[tuple[str, ...]]:
        for name, times in row.breakdown.items():
            # An update is no part of the steps under the profiler: its share is that of the mean step.
            update = row.sparse_step * row.updates.share if name == SPARSE else 0.0
            yield (
                f"{row.preset} {row.density:.3g} {name}",
                *(_short(times.get(kind, 0.0)) for kind in kinds),
                _short(update),
                _short(sum(times.values()) + update),
            )

    return Table(
        "Kinds of operation under the profiler, ms a step",
        ("network", *kinds, "topology update", "sum"),
        tuple(cell for row in rows for cell in cells(row)),
    )


def _state(rows: Iterable[Row]) -> Table:
    def cells(row: Row) -> Iterable[tuple[str, ...]]:
        dense = row.state[DENSE].total
        for name, state in row.state.items():
            parts = (state.weights, state.index, state.gradients, state.optimizer, state.total)
            figures = (f"{part / _MIB:.1f}" for part in parts)
            yield (f"{row.preset} {row.density:.3g} {name}", *figures, f"{state.total / dense:.1%}")

    columns = ("network", "weights", "index", "gradients", "optimizer", "all", "of dense")
    return Table("Model state between steps, MiB", columns, tuple(cell for row in rows for cell in cells(row)))


def _layers(row: Row) -> Table:
    return Table(
        f"{row.preset} at {row.density:.3g}: how each weight is stored",
        ("weight", "storage", "density", "gain alone", "why"),
        tuple(
            (layer.name, layer.storage, f"{layer.density:.3f}", _times(layer.gain), layer.reason)
            for layer in row.layers
        ),
    )


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
