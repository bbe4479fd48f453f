"""The tables of whole training steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regrow.experiments.bench.common.spreads import Spread, short
from regrow.experiments.bench.common.tables import Table, mib
from regrow.experiments.bench.steps.report import COMPILED, EAGER, Beside, Report, Row, Stored
from regrow.experiments.bench.steps.training import BFLOAT16, DENSE, SPARSE

__all__ = ["FLOAT32_PANEL", "headline", "markdown", "sentence", "speed_points", "tables"]

FLOAT32_PANEL, BFLOAT16_PANEL = f"{DENSE} float32", f"{DENSE} {BFLOAT16}"


def tables(rows: Iterable[Row]) -> list[Table]:
    """Return all tables: steps, estimates, updates, kinds of operation, memory, and what `auto` chose."""
    rows = list(rows)
    peaks = [_peaks(rows)] if any(row.peak for row in rows) else []
    chosen = [_layers(row, name, each.layers) for row in rows for name, each in _sparse(row).items()]
    chosen = [table for table in chosen if any(why for *_, why in table.rows)]
    forms = [_forms(rows)] if any(len(each) > 1 for row in rows for each in _forms_of(row).values()) else []
    return [headline(rows), *forms, _estimates(rows), _updates(rows), _breakdown(rows), _state(rows), *peaks, *chosen]


def headline(rows: Iterable[Row]) -> Table:
    """Return what a step takes, the ratios, the share of updates, and the share of memory."""
    rows = list(rows)
    half = [BFLOAT16] if any(BFLOAT16 in row.ratio for row in rows) else []
    over = [DENSE, *half, *dict.fromkeys(name for row in rows for name in row.ratio if name not in (DENSE, BFLOAT16))]
    beside = list(dict.fromkeys(name for row in rows for name in row.beside))
    halves = list(dict.fromkeys(name for row in rows for name, each in row.beside.items() if each.over_bfloat16))
    columns = (
        *("preset", "density", "batch", "method", "growth", "updates before", "stored sparsely", "dense ms", "form"),
        *(("bfloat16 ms", "form") if half else ()),
        *("sparse ms", *(f"{name} ms" for name in beside)),
        *(*(f"{name} / sparse" for name in over), *(f"dense / {name}" for name in beside)),
        *(f"{BFLOAT16} / {name}" for name in halves),
        *("share of updates", "model state of dense"),
    )

    def cells(row: Row) -> tuple[str, ...]:
        found = [row.beside.get(name) for name in beside]
        return (
            *(row.preset, f"{row.density:.3g}", str(row.batch), row.method, row.growth, str(row.updates_before)),
            f"{sum(layer.storage == SPARSE for layer in row.layers)} of {len(row.layers)}",
            *(short(row.milliseconds[DENSE].median), row.dense_form),
            *(cell for name in half for cell in (_step(row, name), row.bfloat16_form or "-")),
            *(short(row.sparse_step), *("-" if each is None else short(each.sparse_step) for each in found)),
            *(_factor(row.ratio[name]) if name in row.ratio else "-" for name in over),
            *("-" if each is None else _factor(each.ratio) for each in found),
            *(_factor(half_ratio) if (half_ratio := _over_bfloat16(row, name)) else "-" for name in halves),
            f"{row.updates.share:.1%}",
            f"{row.state[SPARSE].total / row.state[DENSE].total:.1%}",
        )

    return Table("Whole training steps, updates included: median (quartiles)", columns, tuple(map(cells, rows)))


def markdown(reports: Sequence[Report], command: str) -> str:
    """Return the tables of one or several measurements on one machine as a section of a page.

    Args:
        reports: the figures.
        command: the command that shows them.
    """
    rows = [row for report in reports for row in report.rows]
    ways = dict.fromkeys(f"backend {each.settings.backend}, at most {each.settings.rounds} rounds" for each in reports)
    lines = [
        f"`{command}`",
        "",
        f"{reports[0].machine}; {'; '.join(ways)}. Ratios are times over that of a sparse step of the same round "
        "with its share of topology updates; of other libraries, which update nothing, over the step without. The "
        "estimates are those of the paper's method: convolutions alone, nothing for skipping.",
        "",
        *(f"- {row.preset} at {row.density:.3g}, {name}: {why}." for row in rows for name, why in row.left_out.items()),
        "",
        *(table.markdown() for table in tables(rows)),
    ]
    return "\n".join(lines)


def speed_points(rows: Iterable[Row]) -> dict[str, dict[str, list[tuple[float, float, float, float]]]]:
    """Return for dense float32 and bfloat16 lines of points: density, median and quartiles of that over sparse.

    A line is named by what it does not share with all others: preset, method, growth, updates before, batch, and which
    of the sparse trainings it is.
    """
    rows = list(rows)
    alone = not any(row.beside for row in rows)
    every = [_settings(row) for row in rows]
    shared = {at for at, values in enumerate(zip(*every, strict=True)) if len(set(values)) == 1}
    panels: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {FLOAT32_PANEL: {}, BFLOAT16_PANEL: {}}
    for row, settings in zip(rows, every, strict=True):
        own = [each for at, each in enumerate(settings) if at not in shared]
        for name, each in _sparse(row).items():
            line = ", ".join([*own, *([] if alone else [_form(name)])]) or row.preset
            for panel, ratio in ((FLOAT32_PANEL, each.ratio), (BFLOAT16_PANEL, each.over_bfloat16)):
                if ratio is not None:
                    panels[panel].setdefault(line, []).append((row.density, ratio.median, ratio.low, ratio.high))
    return {panel: lines for panel, lines in panels.items() if lines}


def _form(name: str) -> str:
    form = name.replace(SPARSE, "single weights")
    return form if BFLOAT16 in form else f"{form} float32"


def _settings(row: Row) -> tuple[str, ...]:
    return row.preset, row.method, row.growth, f"{row.updates_before} updates before", f"batch {row.batch}"


def sentence(row: Row) -> str:
    """Return one row in a line, for the progress."""
    sparse = _sparse(row)
    steps = "".join(f", {short(each.sparse_step)} ms {name}" for name, each in sparse.items())
    ratios = ", ".join(f"dense / {name} {_factor(each.ratio)}" for name, each in sparse.items())
    dense = f"{short(row.milliseconds[DENSE].median)} ms dense ({row.dense_form})"
    return f"{row.preset} at {row.density:.3g}: {dense}{steps}; {ratios}"


def _sparse(row: Row) -> dict[str, Beside]:
    """Return the sparse trainings of a row by name, `sparse` first."""
    first = Beside(row.layers, row.sparse_step, row.ratio[DENSE], row.updates, row.ratio.get(BFLOAT16))
    return {SPARSE: first, **row.beside}


def _over_bfloat16(row: Row, name: str) -> Spread | None:
    return row.beside[name].over_bfloat16 if name in row.beside else None


def _step(row: Row, name: str) -> str:
    return short(row.milliseconds[name].median) if name in row.milliseconds else "-"


def _forms_of(row: Row) -> dict[str, dict[str, float]]:
    return {DENSE: row.dense_forms, BFLOAT16: row.bfloat16_forms}


def _forms(rows: Iterable[Row]) -> Table:
    rows = list(rows)
    kinds = [kind for kind in (DENSE, BFLOAT16) if any(_forms_of(row)[kind] for row in rows)]
    columns = ("preset", "density", *(f"{kind} {form}" for kind in kinds for form in (EAGER, COMPILED)))

    def cells(row: Row) -> tuple[str, ...]:
        times = (_forms_of(row)[kind].get(form) for kind in kinds for form in (EAGER, COMPILED))
        return (row.preset, f"{row.density:.3g}", *("-" if time is None else short(time) for time in times))

    return Table(
        "Forms of dense training before the rounds, ms a step; the faster one stays", columns, tuple(map(cells, rows))
    )


def _estimates(rows: Iterable[Row]) -> Table:
    columns = ("preset", "density", "measured", "estimated: dense convolution", "estimated: sparse convolution")

    def cells(row: Row) -> tuple[str, ...]:
        estimated = row.estimated
        ways = (estimated.dense_convolution, estimated.sparse_convolution)
        return (row.preset, f"{row.density:.3g}", _times(row.ratio[DENSE].median), *map(_times, ways))

    return Table("Dense float32 over sparse, and as the paper estimated it", columns, tuple(map(cells, rows)))


def _updates(rows: Iterable[Row]) -> Table:
    columns = (
        *("network", "step without ms", "looking ms", "steps that look", "update ms", "steps between"),
        *("a step with its share ms", "share"),
    )

    def cells(row: Row) -> Iterable[tuple[str, ...]]:
        for name, each in _sparse(row).items():
            updates = each.updates
            figures = (short(updates.looking), str(updates.looking_steps), short(updates.update))
            every = "none" if updates.every is None else f"{updates.every:.0f}"
            yield (
                *(f"{row.preset} {row.density:.3g} {name}", _step(row, name), *figures, every),
                *(short(each.sparse_step), f"{updates.share:.1%}"),
            )

    return Table("Topology updates", columns, tuple(cell for row in rows for cell in cells(row)))


def _breakdown(rows: Iterable[Row]) -> Table:
    rows = list(rows)
    kinds = list(dict.fromkeys(kind for row in rows for times in row.breakdown.values() for kind in times))

    def cells(row: Row) -> Iterable[tuple[str, ...]]:
        sparse = _sparse(row)
        for name, times in row.breakdown.items():
            # An update is no part of the steps under the profiler: its share is that of the mean step.
            update = sparse[name].sparse_step * sparse[name].updates.share if name in sparse else 0.0
            yield (
                f"{row.preset} {row.density:.3g} {name}",
                *(short(times.get(kind, 0.0)) for kind in kinds),
                short(update),
                short(sum(times.values()) + update),
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
            figures = map(mib, parts)
            yield (f"{row.preset} {row.density:.3g} {name}", *figures, f"{state.total / dense:.1%}")

    columns = ("network", "weights", "index", "gradients", "optimizer", "all", "of dense")
    return Table("Model state between steps, MiB", columns, tuple(cell for row in rows for cell in cells(row)))


def _peaks(rows: Iterable[Row]) -> Table:
    def cells(row: Row) -> Iterable[tuple[str, ...]]:
        for name, peak in row.peak.items():
            dense = row.peak.get(DENSE)  # none if it failed, 0 if it fits in what the process held already
            share = f"{peak / dense:.1%}" if dense else "-"
            yield (f"{row.preset} {row.density:.3g} {name}", mib(peak, digits=0), share)

    columns = ("network", "peak", "of dense")
    title = "Peak memory of a process in training, activations included, MiB"
    return Table(title, columns, tuple(cell for row in rows for cell in cells(row)))


def _layers(row: Row, name: str, layers: Iterable[Stored]) -> Table:
    return Table(
        f"{row.preset} at {row.density:.3g}{'' if name == SPARSE else f', {name}'}: how each weight is stored",
        ("weight", "storage", "density", "gain alone", "why"),
        tuple(
            (layer.name, layer.storage, f"{layer.density:.3f}", _times(layer.gain), layer.reason) for layer in layers
        ),
    )


def _factor(ratio: Spread) -> str:
    return ratio.text("{:.2f}".format, unit="x")


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"
