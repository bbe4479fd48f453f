"""The study of a method's parts: where weights go and which grow, in networks of growing depth and width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from regrow.experiments import models
from regrow.experiments.errors import UserError
from regrow.experiments.options import split_names
from regrow.experiments.study.axes import DENSITY, percent
from regrow.experiments.study.intervals import Interval
from regrow.experiments.study.panels import Panel
from regrow.experiments.study.study import INFERENCE, TRAINING, Axis, Cell, Figure, Study
from regrow.experiments.train.config import TrainConfig

__all__ = ["ABLATION_STUDY"]

_METHOD = "method"
# Those of the paper (arXiv:1907.04840), where the settings know them.
_PUBLISHED = {
    "redistribute": ("momentum", "magnitude", "nonzeros", "none"),
    "grow": ("momentum", "gradient", "random"),
}


def _known(setting: str) -> list[str]:
    """Return the names that a setting takes; only `method`, which leaves it to the method, where there is none."""
    known = TrainConfig.model_fields.get(setting)
    return [_METHOD, *(name for name in _names(known.annotation) if name != _METHOD)] if known else [_METHOD]


def _names(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        yield from [part] if isinstance(part, str) else _names(part)


def _part(setting: str, title: str, what: str) -> Axis:
    """Return the axis of a part of the method."""
    known = _known(setting)
    published = [name for name in _PUBLISHED[setting] if name in known]

    def parse(text: str) -> tuple[str, ...]:
        names = split_names(text)
        for name in names:
            if name not in known:
                raise UserError(f"there is no {setting} {name!r}: choose among {', '.join(known)}")
        return names

    return Axis(
        name=setting,
        option=setting,
        default=",".join(published or known),
        help=f"{what}: {', '.join(known)}; separated by commas.",
        settings=lambda name: {} if name == _METHOD else {setting: name},
        parse=parse,
        title=title,
    )


def _networks(text: str) -> tuple[str, ...]:
    names = split_names(text)
    for name in names:
        _network(name)
    return names


def _network(name: str) -> Mapping[str, Any]:
    """Return the settings that a network stands for.

    Example:
        >>> _network("2x100")
        {'model': 'mlp', 'model_options': {'hidden': [100, 100]}}
        >>> _network("vgg16-d:0.5")
        {'model': 'vgg16-d', 'model_options': {'width': 0.5}}
    """
    if found := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,6})", name):
        depth, width = map(int, found.groups())
        return {"model": "mlp", "model_options": {"hidden": [width] * depth}}
    model, _, width_text = name.partition(":")
    if model in models.MODELS and re.fullmatch(r"(\d*\.?\d+)?", width_text):
        return {"model": model, "model_options": {"width": float(width_text)} if width_text else {}}
    raise UserError(
        f"--networks: {name!r} is none: write DEPTHxWIDTH, hidden layers of a perceptron, as 2x100, or the name of a "
        f"network, with a factor of its width if it takes one, as vgg-small:0.5; there are {', '.join(models.MODELS)}"
    )


def _panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return a plot for each rule of growth and density: the error over networks, a line for each redistribution."""
    panels = []
    for density, grow in dict.fromkeys((cell.key[3], cell.key[2]) for cell in cells):
        lines: dict[str, list[tuple[float | str, Interval]]] = {}
        for cell in cells:
            if cell.key[2:] == (grow, density):
                lines.setdefault(f"redistribute {cell.key[1]}", []).append((cell.key[0], cell.error))
        title = f"grow {grow}, {percent(density)}"
        panels.append(Panel(lines, "network", "test error, % (mean, standard error)", title, scale="test error"))
    return panels


ABLATION_STUDY = Study(
    name="ablation",
    about="Take sparse momentum apart: redistribution times growth, in networks of growing depth and width.",
    axes=(
        Axis(
            name="network",
            option="networks",
            default="1x100,2x100,4x100,2x50,2x200",
            help="DEPTHxWIDTH of a perceptron, or NAME or NAME:WIDTH of another network; separated by commas.",
            settings=_network,
            parse=_networks,
            title="network",
        ),
        _part("redistribute", "redistribution", "Where the dropped weights go"),
        _part("grow", "growth", "Which weights grow"),
        replace(DENSITY, default="0.05"),
    ),
    figures=(Figure("test error", lambda cell: cell.error.text(), unit="%"), TRAINING, INFERENCE),
    note="mean ± standard error",
    panels=_panels,
)
