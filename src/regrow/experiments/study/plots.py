"""Plots of results, as PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from regrow.experiments.study.style import Theme, ink, line_style, save, subplots, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_accuracy_over_time",
    "plot_accuracy_over_work",
    "plot_around_updates",
    "plot_comparison",
    "plot_errors",
    "plot_speed",
]

_DENSITY = "density, % of weights"
# What a number below an axis takes of its length.
_LABEL_WIDTH = 0.04


def plot_errors(errors: Mapping[tuple[str, float], Sequence[float]], path: Path, title: str) -> None:
    """Plot test error over density: every seed a dot, their mean a line; dense a level line.

    Args:
        errors: for each method and density the errors of its seeds, in percent.
        path: the PNG file.
        title: what the plot shows.
    """
    from matplotlib.ticker import ScalarFormatter

    figure, axes = subplots(figsize=(7, 4.5))
    for number, method in enumerate(dict.fromkeys(method for method, _ in errors)):
        color = f"C{number}"
        points = sorted((density, values) for (name, density), values in errors.items() if name == method)
        if method == "dense":
            axes.axhline(mean(points[0][1]), color="black", linestyle="--", label="dense")
            continue
        axes.plot(
            [100 * density for density, _ in points], [mean(values) for _, values in points], color=color, label=method
        )
        for density, values in points:
            axes.plot([100 * density] * len(values), list(values), ".", color=color, alpha=0.6)
    _density_axis(axes, (density for method, density in errors if method != "dense"))
    axes.set_yscale("log")  # methods that fail and methods that differ by tenths fit on one plot
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    _finish(axes, title, _DENSITY, "test error, %")
    _save(figure, path)


def _finish(axes: Axes, title: str, across: str, up: str, *, font: str = "medium") -> None:
    """Give a plot its title, the names of its axes, a grid and a legend."""
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=font)


def _density_axis(axes: Axes, densities: Iterable[float]) -> None:
    """Lay densities out on a logarithmic axis, in percent, with a tick at each, and a number where there is room."""
    from matplotlib.ticker import NullLocator

    ticks = sorted({100 * density for density in densities})
    room, labels, last = (ticks[-1] / ticks[0]) ** _LABEL_WIDTH, [], 0.0
    for tick in ticks:
        fits = tick >= last * room
        labels.append(f"{tick:g}" if fits else "")
        last = tick if fits else last
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels=labels)
    axes.xaxis.set_minor_locator(NullLocator())


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    save(figure, path)


def plot_comparison(rows: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> None:
    """Plot validation accuracy over epochs, and how the density of each layer moves.

    Args:
        rows: for each method the metrics of its epochs.
        path: the PNG file.
        title: what the plot shows.
    """
    figure, (accuracy, density) = subplots(columns=2, figsize=(11, 4.5))
    for method, epochs in rows.items():
        numbers = [row["epoch"] for row in epochs]
        accuracy.plot(numbers, [100 * row["valid_accuracy"] for row in epochs], label=method)
        for layer in epochs[0]["nonzeros_by_layer"]:
            counts = [row["nonzeros_by_layer"][layer] for row in epochs]
            density.plot(numbers, counts, label=layer)
    density.set_yscale("log")
    for axes, shown in ((accuracy, "validation accuracy, %"), (density, "weights in the layer")):
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(axes, "", "epoch", shown)
    figure.suptitle(title)
    _save(figure, path)


def plot_speed(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]],
    path: Path,
    title: str,
    marks: Mapping[str, tuple[str, float]],
) -> None:
    """Plot the speed-up of whole training steps over density, with quartiles, on light and on dark.

    Args:
        panels: for each form of dense its lines by name, with their points: density, median, lower and upper quartile
            of the ratio.
        path: the PNG file; that on dark has `-dark` after its name.
        title: what the plot shows.
        marks: for a form of dense the name and the height of a level line.
    """
    files: dict[Theme, Path] = {"light": path, "dark": path.with_stem(f"{path.stem}-dark")}
    for theme, file in files.items():
        with themed(theme):
            size = (1.5 + 4.2 * len(panels), 4.6)
            figure, every = subplots(
                columns=len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained"
            )
            named: dict[str, Any] = {}
            for axes, (dense, lines) in zip(every[0], panels.items(), strict=True):
                _speed_panel(axes, dense, lines, marks.get(dense))
                named |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
            every[0][0].set_ylim(bottom=0)
            figure.suptitle(title)
            figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize="small")
            save(figure, file)


def _speed_panel(
    axes: Axes,
    dense: str,
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
    mark: tuple[str, float] | None,
) -> None:
    shared = {
        row[0]: [name for name, others in lines.items() if any(other[0] == row[0] for other in others)]
        for rows in lines.values()
        for row in rows
    }

    def apart(name: str, density: float) -> float:
        # Points of one density stand a little apart, so that those that are as fast are all seen.
        return float(1.03 ** (shared[density].index(name) - (len(shared[density]) - 1) / 2))

    for number, (name, values) in enumerate(lines.items()):
        rows = sorted(values)
        densities, medians = [100 * row[0] * apart(name, row[0]) for row in rows], [row[1] for row in rows]
        below, above = [row[1] - row[2] for row in rows], [row[3] - row[1] for row in rows]
        axes.errorbar(
            densities, medians, yerr=[below, above], markersize=5, capsize=2.5, label=name, **line_style(number)
        )
    color = ink()
    axes.axhline(1, color=color, linestyle="--", linewidth=1, label="dense")
    if mark:
        axes.axhline(mark[1], color=color, linestyle=":", linewidth=1, label=mark[0])
    _density_axis(axes, (row[0] for rows in lines.values() for row in rows))
    axes.set_xlabel(_DENSITY)
    axes.set_ylabel(f"times as fast as {dense}")


def plot_accuracy_over_time(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], path: Path, title: str
) -> None:
    """Plot validation accuracy over the wall time of training: a colour for each kind of run, a line for each seed.

    Args:
        runs: for each kind its runs, each of them points of seconds and accuracy in [0, 1].
        path: the PNG file.
        title: what the plot shows.
    """
    figure, axes = subplots(figsize=(7, 4.5))
    for number, (name, seeds) in enumerate(runs.items()):
        for seed, points in enumerate(seeds):
            seconds, accuracies = [point[0] for point in points], [100 * point[1] for point in points]
            label = name if seed == 0 else None
            axes.plot(seconds, accuracies, color=f"C{number}", marker=".", alpha=0.8, label=label)
    axes.set_xlim(left=0)
    _finish(axes, title, "seconds of training", "validation accuracy, %")
    _save(figure, path)


def plot_accuracy_over_work(
    runs: Mapping[str, Sequence[Sequence[Sequence[float | None]]]], path: Path, title: str
) -> None:
    """Plot validation accuracy over multiply-adds and over wall time: a colour for each kind of run, a line a seed.

    Args:
        runs: for each kind its runs; of each epoch the seconds and multiply-adds so far, the multiply-adds of as many
            dense epochs, and the accuracy in [0, 1], None where there is no validation set.
        path: the PNG file.
        title: what the plot shows.
    """
    from matplotlib.ticker import ScalarFormatter

    figure, (over_work, over_time) = subplots(columns=2, figsize=(12, 4.5), sharey=True)
    for number, (name, seeds) in enumerate(runs.items()):
        for seed, points in enumerate(seeds):
            known = [[float(value) for value in point if value is not None] for point in points if point[3] is not None]
            # dense epochs are all as long as the first
            epoch = known[0][2] if known else 1.0
            accuracies = [100 * accuracy for _, _, _, accuracy in known]
            style: dict[str, Any] = {"color": f"C{number}", "alpha": 0.8, "label": name if seed == 0 else None}
            over_work.plot([done / epoch for _, done, _, _ in known], accuracies, marker=".", **style)
            over_time.plot([seconds for seconds, *_ in known], accuracies, marker=".", **style)
    over_work.set_xscale("log")
    over_work.xaxis.set_major_formatter(ScalarFormatter())
    over_time.set_xlim(left=0)
    _finish(over_work, "", "multiply-adds of the training, in dense epochs", "validation accuracy, %", font="small")
    _finish(over_time, "", "seconds of training", "validation accuracy, %", font="small")
    figure.suptitle(title)
    _save(figure, path)


def plot_around_updates(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], steps: Sequence[int], path: Path
) -> None:
    """Plot the training loss around updates of the topology, a panel for each method.

    Args:
        curves: for each method and each label the mean at every step, and its standard error.
        steps: steps from the first that sees the updated topology.
        path: the PNG file.
    """
    figure, panels = subplots(1, len(curves), figsize=(6 * len(curves), 4.2), squeeze=False, sharey=True)
    for axes, (method, lines) in zip(panels[0], curves.items(), strict=True):
        for label, (means, errors) in lines.items():
            axes.plot(steps, means, label=label)
            low, high = zip(*((m - e, m + e) for m, e in zip(means, errors, strict=True)), strict=True)
            axes.fill_between(steps, low, high, alpha=0.25)
        axes.axvline(0, color="black", linewidth=0.5)
        _finish(axes, method, "steps from the update", "training loss over that before the update")
    _save(figure, path)
