"""The study of features: how much channels specialise in classes, sparse beside dense.

After Dettmers & Zettlemoyer 2019 (arXiv:1907.04840): the activations of each channel behind every ReLU are summed over
the test set, class by class. Channels that together make the lowest 5 % of a layer's activation are left out. The
specialisation of a channel is the share of its activation that its strongest class makes. A two-way analysis of
variance, by layer and by whether the network is sparse, says how much of it each explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.study.anova import Effect, two_way
from regrow.experiments.study.axes import DENSITY, METHOD, dense_of, percent
from regrow.experiments.study.intervals import Interval, interval
from regrow.experiments.study.panels import Panel
from regrow.experiments.study.study import Cell, Figure, Study
from regrow.experiments.train.evaluate import precision
from regrow.experiments.train.result import read_metrics
from regrow.experiments.train.run import Metrics, Run

__all__ = ["FEATURES_STUDY", "FeatureRun", "specialisation"]

_KEY = "specialisation_by_layer"
_LEAST_SHARE = 0.05
_DENSE = "dense"


def specialisation(activation: Tensor) -> Tensor:
    """Return how much each channel of a layer specialises, of those that are active enough.

    Args:
        activation: sums of absolute activations, shape (classes, channels).

    Returns:
        The share of the strongest class, in (0, 1], for each channel beyond those that together make the lowest 5 %.

    Example:
        >>> specialisation(torch.tensor([[30.0, 10.0, 1.0], [10.0, 10.0, 0.0]]))
        tensor([0.7500, 0.5000])
    """
    total = activation.sum(dim=0)
    order = total.argsort(stable=True)
    below = total[order].cumsum(dim=0) <= _LEAST_SHARE * total.sum()
    kept = order[~below].sort().values
    kept = kept[total[kept] > 0]
    return activation[:, kept].max(dim=0).values / total[kept]


class FeatureRun(Run):
    """A run whose last metrics say how much the channels behind each ReLU specialise."""

    def finish_epoch(self) -> Metrics:
        """Evaluate, write down the epoch's metrics, and after the last epoch the specialisation of channels."""
        row = super().finish_epoch()
        if self.finished:
            row[_KEY] = {name: specialisation(sums).tolist() for name, sums in self._activations().items()}
        return row

    @torch.no_grad()
    def _activations(self) -> dict[str, Tensor]:
        """Return the sums of activations on the test set behind each ReLU, shape (classes, channels)."""
        # A copy without what sparse storage has fused, so that every ReLU is there.
        model = regrow.densify(deepcopy(self.model)).eval()
        sums: dict[str, Tensor] = {}
        labels = torch.empty(0, dtype=torch.int64)

        def add(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                by_channel = output.abs().double().reshape(*output.shape[:2], -1).sum(dim=2)
                own = sums.setdefault(name, by_channel.new_zeros(self.data.classes, by_channel.shape[1]))
                own.index_add_(0, labels, by_channel)

            return hook

        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(add(name))
        for images, its_labels in self.data.test.epoch():
            labels = its_labels
            with precision(self.config, self.device):
                model(images)
        return sums


def _read(folder: Path) -> Mapping[str, Any]:
    return {_KEY: read_metrics(folder)[-1][_KEY]}


def _of_row(row: Mapping[str, Any]) -> float:
    """Return the mean over all channels of a run."""
    return mean(float(value) for values in row[_KEY].values() for value in values)


def _channels(cell: Cell) -> str:
    return f"{mean(sum(map(len, row[_KEY].values())) for row in cell.rows):.0f}"


_FIGURES = (
    Figure("specialisation", lambda cell: cell.mean(_of_row).text(4)),
    Figure("channels left", _channels),
    Figure("test error", lambda cell: cell.error.text(), unit="%"),
)


def _tables(cells: Sequence[Cell], title: str) -> list[Table]:
    columns = ("method", "density", *(figure.title for figure in _FIGURES), "seeds")
    rows = [
        (cell.key[0], percent(cell.key[1]), *(figure.text(cell) for figure in _FIGURES), str(len(cell.rows)))
        for cell in cells
    ]
    tables = [Table(f"{title}: mean ± standard error", columns, tuple(rows))]
    dense = dense_of(cells)
    titles = ("effect", "sum of squares", "degrees of freedom", "F", "p", "eta²", "omega²")
    for cell in cells:
        if dense is not None and cell is not dense:
            effects = analysis(dense, cell)
            named = f"{cell.key[0]} at {percent(cell.key[1])} beside dense: analysis of variance over channels"
            lines = tuple(_line(name, effect) for name, effect in effects.items())
            few = (("not possible: it takes two layers that both have channels left in",) + ("",) * (len(titles) - 1),)
            tables.append(Table(named, titles, lines or few))
    return tables


def analysis(dense: Cell, sparse: Cell) -> dict[str, Effect]:
    """Return the effects of the layer and of being sparse on the specialisation of channels, over all seeds.

    Nothing where there are fewer than two layers to compare.
    """
    found: list[tuple[float, str, str]] = []
    for cell in (dense, sparse):
        for row in cell.rows:
            found += [(value, layer, cell.key[0]) for layer, values in row[_KEY].items() for value in values]
    # A layer that one of them has left no channel of says nothing of both.
    both = set.intersection(*({layer for _, layer, its in found if its == cell.key[0]} for cell in (dense, sparse)))
    if len(both) < 2:
        return {}
    values, layers, kinds = zip(*(each for each in found if each[1] in both), strict=True)
    effects = two_way(values, layers, kinds)
    names = {"first": "layer", "second": "sparse", "interaction": "layer x sparse", "residual": "residual"}
    return {names[key]: effect for key, effect in effects.items()}


def _line(name: str, effect: Effect) -> tuple[str, ...]:
    numbers = (effect.f, effect.p, effect.eta_squared, effect.omega_squared)
    return (
        name,
        f"{effect.squares:.4g}",
        str(effect.freedom),
        *("-" if number != number else f"{number:.3g}" for number in numbers),
    )


def _panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return the plot of specialisation over layers: a line for each method and density, over seeds."""
    lines: dict[str, list[tuple[float | str, Interval]]] = {}
    for cell in cells:
        name = cell.key[0] if cell.key[0] == _DENSE else f"{cell.key[0]}, {percent(cell.key[1])}"
        for layer in cell.rows[0][_KEY]:
            means = [mean(row[_KEY][layer]) for row in cell.rows if row[_KEY][layer]]
            if means:
                lines.setdefault(name, []).append((layer, interval(means)))
    return [Panel(lines, "layer", "specialisation of channels (mean, standard error)")]


FEATURES_STUDY = Study(
    name="features",
    about="Do sparse networks learn more general features? How much channels specialise in classes, beside dense ones.",
    axes=(replace(METHOD, default="dense,sparse-momentum"), replace(DENSITY, default="0.05")),
    figures=_FIGURES,
    note="mean ± standard error",
    make_run=FeatureRun,
    read=_read,
    tables=_tables,
    panels=_panels,
    picture="specialisation.png",
)
