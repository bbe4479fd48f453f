"""Plots of means with their errors as data, which one function draws: lines over a setting, and dots of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.experiments.study.intervals import Interval, interval
from regrow.experiments.study.style import ink, line_style, save, subplots, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Band", "Dots", "Panel", "draw_panels", "plot_panels"]

Band = tuple[str, Interval]
"""A name, and the mean whose 95 % interval lies across a plot."""

# How far apart lines stand that would cover one another: of the distance between two values.
_APART = 0.06
_APART_LOGARITHMIC = 1.025
_WIDTH, _HEIGHT = 6.4, 4.2
_WIDE = 8.0  # how many times the smallest mean the largest is where the vertical axis becomes logarithmic
_LONG_LEGEND = 5  # lines above which the legend stands below the plot
_LONG_NAME = 6  # characters of a value on the axis above which values are written aslant


@dataclass(frozen=True)
class Panel:
    """Lines of means over the values of a setting, each with its standard error.

    Attributes:
        lines: for each line its points, the value and the mean there. Unless values are laid out by their logarithm,
            they stand at equal distances, in the order in which they first appear.
        across: name of the axis of the values.
        up: name of the axis of the means.
        title: what the plot shows.
        band: what lies across the plot.
        logarithmic: whether the values are numbers, laid out by their logarithm.
        scale: plots of one figure that name the same one have one vertical axis; by default each has its own.
    """

    lines: Mapping[str, Sequence[tuple[float | str, Interval]]]
    across: str
    up: str
    title: str = ""
    band: Band | None = None
    logarithmic: bool = False
    scale: str = ""

    @property
    def rows(self) -> int:
        """Rows of a legend."""
        return len(self.lines) + (self.band is not None)

    def draw(self, axes: Axes) -> None:
        """Draw it."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        _draw_band(self.band, axes.axhline, axes.axhspan)
        values = list(dict.fromkeys(value for points in self.lines.values() for value, _ in points))
        texts = not self.logarithmic
        places = {value: float(place) for place, value in enumerate(values)} if texts else {}
        for number, (name, points) in enumerate(self.lines.items()):
            step = number - (len(self.lines) - 1) / 2
            across = [
                places[value] + _APART * step if texts else float(value) * _APART_LOGARITHMIC**step
                for value, _ in points
            ]
            means = [found.mean for _, found in points]
            errors = [found.error if found.count > 1 else 0.0 for _, found in points]
            axes.errorbar(across, means, yerr=errors, label=name, capsize=2.5, markersize=5, **line_style(number))
        if texts:
            slant: dict[str, Any] = (
                {"rotation": 30, "ha": "right"} if any(len(str(value)) > _LONG_NAME for value in values) else {}
            )
            axes.set_xticks([places[value] for value in values], labels=[str(value) for value in values], **slant)
        else:
            axes.set_xscale("log")
            ticks = sorted(float(value) for value in values)
            axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        means = [found.mean for points in self.lines.values() for _, found in points]
        if means and 0 < _WIDE * min(means) < max(means):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=self.across, ylabel=self.up, title=self.title)


@dataclass(frozen=True)
class Dots:
    """A row for each of several things: a dot for each seed, the mean, and its 95 % interval.

    Attributes:
        values: the values of the seeds of each.
        across: name of the axis of the values.
        title: what the plot shows.
        band: what lies across the plot.
    """

    values: Mapping[str, Sequence[float]]
    across: str
    title: str = ""
    band: Band | None = None

    @property
    def rows(self) -> int:
        """Rows of the plot."""
        return len(self.values)

    def draw(self, axes: Axes) -> None:
        """Draw it."""
        from matplotlib.ticker import MaxNLocator

        _draw_band(self.band, axes.axvline, axes.axvspan)
        for place, (number, values) in enumerate(enumerate(self.values.values())):
            found, style = interval(list(values)), line_style(number)
            half = found.half if found.count > 1 else 0.0
            axes.plot(values, [place + 0.22] * len(values), ".", color=style["color"], markersize=4)
            axes.errorbar([found.mean], [place], xerr=[half], capsize=3, markersize=6, **{**style, "linestyle": ""})
        axes.set_yticks(range(len(self.values)), labels=list(self.values))
        axes.set_ylim(len(self.values) - 0.5, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel=self.across, title=self.title)


def draw_panels(panels: Sequence[Panel | Dots], title: str = "", *, columns: int = 2) -> Figure:
    """Return a figure of some plots, in the theme at hand.

    Args:
        panels: the plots.
        title: above all of them.
        columns: plots side by side.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    tall = max(_HEIGHT if isinstance(panel, Panel) else 1.6 + 0.42 * panel.rows for panel in panels)
    figure, grid = subplots(rows, columns, figsize=(_WIDTH * columns, tall * rows), squeeze=False, layout="constrained")
    first_of: dict[str, Axes] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        if isinstance(panel, Panel) and panel.scale and first_of.setdefault(panel.scale, axes) is not axes:
            axes.sharey(first_of[panel.scale])
        panel.draw(axes)
        handles, _ = axes.get_legend_handles_labels()
        if handles:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
            axes.legend(fontsize="small", **(below if len(handles) > _LONG_LEGEND else {}))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title)
    return figure


def plot_panels(panels: Sequence[Panel | Dots], path: Path, title: str) -> None:
    """Draw some plots into a PNG file."""
    with themed():
        save(draw_panels(panels, title), path)


def _draw_band(band: Band | None, line: Callable[..., object], span: Callable[..., object]) -> None:
    if band is None:
        return
    name, found = band
    color = ink()
    line(found.mean, color=color, linestyle="--", linewidth=1.2, label=name)
    if found.count > 1:
        span(found.low, found.high, color=color, alpha=0.12, linewidth=0)
