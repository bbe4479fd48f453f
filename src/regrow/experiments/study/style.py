"""How plots look: light or dark, and readable without colour.

Matplotlib is imported with the first plot: commands that draw none start the sooner.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow.experiments.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Theme", "as_png", "ink", "line_style", "save", "subplots", "themed"]

Theme = Literal["light", "dark"]

# Told apart with any kind of colour vision, and of different brightness; markers and dashes tell them apart without.
_COLORS = {
    "light": ("#0072b2", "#c44e00", "#00785a", "#a03a82", "#8a6500", "#332288", "#7a1f3d", "#4d4d4d"),
    "dark": ("#6cb8ec", "#ff9e57", "#3ed1a4", "#f2a3d4", "#f0e442", "#b3a7ff", "#ff8fa0", "#c8c8c8"),
}
_PAPER = {"light": "#ffffff", "dark": "#16181d"}
_INK = {"light": "#1b1e24", "dark": "#e6e8ec"}
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_DOTS_PER_INCH = 150


@contextmanager
def themed(theme: Theme = "light") -> Iterator[None]:
    """Draw in a theme."""
    import matplotlib as mpl
    from cycler import cycler

    ink, paper = _INK[theme], _PAPER[theme]
    settings: dict[str, Any] = {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "savefig.facecolor": paper,
        "axes.prop_cycle": cycler(color=_COLORS[theme]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "font.size": 10,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
    }
    for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"):
        settings[name] = ink
    with mpl.rc_context(settings):  # type: ignore[arg-type]  # the stubs want literal names
        yield


def subplots(rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes, as `matplotlib.pyplot.subplots` does, to be drawn into a file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, **settings)


def ink() -> str:
    """Return the colour of text and of level lines in the theme at hand."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def line_style(number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a line by its place: no two of the first 56 look alike."""
    import matplotlib as mpl

    colors = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    marker = _MARKERS[number % len(_MARKERS)]
    hollow = bool(number // len(_MARKERS) % 2)
    color = colors[number % len(colors)]
    return {
        "color": color,
        "marker": marker,
        "markerfacecolor": mpl.rcParams["axes.facecolor"] if hollow else color,
        "linestyle": _DASHES[number % len(_DASHES)],
    }


def as_png(figure: Figure) -> bytes:
    """Return a figure as PNG, and close it."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    plt.close(figure)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    content = as_png(figure)
    write_atomically(path, lambda file: file.write(content))
