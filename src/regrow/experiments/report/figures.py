"""The figures of a report, drawn in the theme at hand."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from regrow.experiments.report.gather import Folder, Group
from regrow.experiments.report.layers import LayerCounts
from regrow.experiments.study.intervals import interval
from regrow.experiments.study.panels import Dots, draw_panels
from regrow.experiments.study.style import ink, line_style, subplots

__all__ = ["accuracies", "curves", "densities", "flops", "gains"]

_LINES_A_PANEL = 6
_WIDTH = 6.4
# Lines that cover one another: each is thinner than the one below, so that both are seen.
_THICKEST, _THINNEST = 4.0, 1.2
_MARKS = 8


def accuracies(folder: Folder) -> Figure:
    """Return the test accuracy of each group: seeds, mean and 95 % interval, dense as a band if there is one."""
    dense = [group for group in folder.groups if group.is_dense]
    band = ("dense, mean and 95 % interval", dense[0].cell.accuracy) if len(dense) == 1 else None
    values = {group.label: list(group.cell.accuracies.values()) for group in folder.groups}
    return draw_panels([Dots(values, "test accuracy, % (small dots: seeds)", band=band)])


def curves(groups: Sequence[Group]) -> Figure:
    """Return validation accuracy over epochs: the mean of the seeds, and its standard error as a shade."""
    pieces = [groups[at : at + _LINES_A_PANEL] for at in range(0, len(groups), _LINES_A_PANEL)]
    figure, grid = _grid(len(pieces), 4.2)
    for axes, piece in zip(grid, pieces, strict=True):
        for number, group in enumerate(piece):
            _draw_curve(axes, group, number, len(piece))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="validation accuracy, %")
        axes.legend(fontsize="small")
    return figure


def _draw_curve(axes: Axes, group: Group, number: int, count: int) -> None:
    epochs = range(1, 1 + min(len(record.epochs) for record in group.records))
    found = [interval([100 * record.epochs[e - 1]["valid_accuracy"] for record in group.records]) for e in epochs]
    means = [each.mean for each in found]
    style = line_style(number)
    every = max(1, len(means) // _MARKS)
    width = _THICKEST - (_THICKEST - _THINNEST) * number / max(count - 1, 1)
    marks = (number * every // count, every)
    axes.plot(epochs, means, label=group.label, linewidth=width, markersize=5, markevery=marks, **style)
    if len(group.records) > 1:
        low, high = [each.mean - each.error for each in found], [each.mean + each.error for each in found]
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)


def densities(counts: Sequence[LayerCounts]) -> Figure:
    """Return the density of every layer over epochs: a field for each, darker or brighter by its density."""
    most = max(len(each.layers) for each in counts)
    figure, grid = _grid(len(counts), 1.6 + 0.28 * most)
    lowest = min((value for each in counts for value in each.densities.flat if value > 0), default=1e-3)
    norm = LogNorm(min(lowest, 0.5), 1)
    image = None
    for axes, each in zip(grid, counts, strict=True):
        epochs, layers = each.densities.shape[1], len(each.layers)
        shown = np.clip(each.densities, norm.vmin, 1)
        image = axes.imshow(
            shown, aspect="auto", cmap="cividis", norm=norm, extent=(0.5, epochs + 0.5, layers - 0.5, -0.5),
            interpolation="nearest",
        )  # fmt: skip
        axes.grid(visible=False)
        axes.set_yticks(range(layers), labels=each.layers, fontsize="small")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        ends = axes.secondary_yaxis("right")
        ends.set_yticks(range(layers), labels=[_percent(value) for value in each.densities[:, -1]], fontsize="small")
        axes.set(xlabel="epoch", title=each.label)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.02, format=FuncFormatter(lambda at, _: _percent(at)))
        bar.minorticks_off()
        bar.set_label("density; at the right of each row that of the last epoch")
    return figure


def gains(counts: Sequence[LayerCounts]) -> Figure:
    """Return which layers gained and which lost weights: an arrow from the first density of each to the last.

    All on one scale.
    """
    ends = np.concatenate([100 * each.densities[:, [0, -1]].ravel() for each in counts])
    lowest, highest = ends[ends > 0].min(initial=100) / 1.3, ends.max() * 1.3
    most = max(len(each.layers) for each in counts)
    figure, grid = _grid(len(counts), 1.6 + 0.28 * most)
    for axes, each in zip(grid, counts, strict=True):
        gained, lost = line_style(0)["color"], line_style(1)["color"]
        for row, (first, last) in enumerate(each.densities[:, [0, -1]]):
            color = gained if last >= first else lost
            axes.plot([100 * first, 100 * last], [row, row], color=color, linewidth=2)
            axes.plot(100 * first, row, "o", color=color, markerfacecolor=axes.get_facecolor(), markersize=6)
            marker = "s" if last == first else ">" if last > first else "<"
            axes.plot(100 * last, row, marker, color=color, markersize=7)
        axes.set_xscale("log")
        axes.set_xlim(lowest, highest)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(each.layers)), labels=each.layers, fontsize="small")
        axes.set_ylim(len(each.layers) - 0.5, -0.5)
        axes.set(xlabel="density, %: circle first epoch, arrowhead last", title=each.label)
    return figure


def flops(groups: Sequence[Group]) -> Figure:
    """Return the FLOPs of training and inference in percent of dense, of the training also what looking took."""
    figure, axes = subplots(figsize=(_WIDTH, 1.4 + 0.5 * len(groups)), layout="constrained")
    text = ink()
    bars = (
        ("training", "flops_train", "flops_train_dense", 0.2, line_style(0)["color"], ""),
        ("of it looking at absent weights", "flops_train_looking", "flops_train_dense", 0.2, "none", "////"),
        ("inference", "flops_inference", "flops_inference_dense", -0.2, line_style(4)["color"], ""),
    )
    for name, part, whole, above, color, hatch in bars:
        shares = [mean(100 * row[part] / row[whole] for row in group.cell.rows) for group in groups]
        places = [row - above for row in range(len(groups))]
        edge = text if hatch else color
        axes.barh(places, shares, height=0.36, label=name, facecolor=color, edgecolor=edge, hatch=hatch, linewidth=0.6)
        if not hatch:
            for place, share in zip(places, shares, strict=True):
                axes.annotate(
                    f"{share:.3g}", (share, place), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
    axes.axvline(100, color=text, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(groups)), labels=[group.label for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xlabel("FLOPs, % of dense")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def _grid(count: int, tall: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many plots, two side by side."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure, grid = subplots(rows, columns, figsize=(_WIDTH * columns, tall * rows), squeeze=False, layout="constrained")
    for axes in list(grid.flat)[count:]:
        axes.remove()
    return figure, list(grid.flat)[:count]


def _percent(density: float) -> str:
    return f"{100 * density:.3g} %"
