"""What the updates of a training did to each layer, as means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regrow.experiments.bench.common.tables import Table
from regrow.experiments.report.gather import Group

__all__ = ["LayerCounts", "changes_table", "flops_table", "layer_counts"]

_COUNTED = ("dropped", "grown", "returned")


@dataclass(frozen=True)
class LayerCounts:
    """The layers of a group.

    Attributes:
        label: the group.
        layers: their names.
        densities: density at the end of each epoch, shape (layers, epochs).
    """

    label: str
    layers: tuple[str, ...]
    densities: NDArray[np.float64]

    @property
    def moved(self) -> bool:
        """Whether any layer has another number of weights at the end."""
        return bool((self.densities[:, 0] != self.densities[:, -1]).any())


def layer_counts(group: Group) -> LayerCounts | None:
    """Return the densities of a group's layers; None for dense training, and for runs that did not write sizes down."""
    first = group.records[0]
    if group.is_dense or any("weights_by_layer" not in record.result for record in group.records):
        return None
    layers = tuple(first.result["weights_by_layer"])
    epochs = min(len(record.epochs) for record in group.records)
    found = [
        [
            [
                row["nonzeros_by_layer"][layer] / record.result["weights_by_layer"][layer]
                for row in record.epochs[:epochs]
            ]
            for layer in layers
        ]
        for record in group.records
    ]
    short = tuple(layer.removesuffix(".weight") for layer in layers)
    return LayerCounts(group.label, short, np.asarray(found, dtype=np.float64).mean(axis=0))


def changes_table(group: Group, counts: LayerCounts) -> Table:
    """Return the density of each layer in the first and the last epoch, and what all updates dropped and grew."""
    columns = ("layer", "weights", "first epoch, %", "last epoch, %", "times", "dropped", "grown", "returned")
    sizes = group.records[0].result["weights_by_layer"]
    rows = []
    for name, layer, each in zip(sizes, counts.layers, counts.densities, strict=True):
        moved = [_sum_of(record.epochs, name) for record in group.records]
        totals = (f"{mean(found[kind] for found in moved):,.0f}" for kind in _COUNTED)
        times = f"{each[-1] / each[0]:.2f}" if each[0] else "-"
        rows.append((layer, f"{sizes[name]:,}", f"{100 * each[0]:.3g}", f"{100 * each[-1]:.3g}", times, *totals))
    return Table(group.label, columns, tuple(rows))


def _sum_of(epochs: Sequence[dict[str, Any]], layer: str) -> dict[str, int]:
    found = [row.get("changes_by_layer", {}).get(layer, {}) for row in epochs]
    return {kind: sum(counts.get(kind, 0) for counts in found) for kind in _COUNTED}


def flops_table(group: Group) -> Table:
    """Return the FLOPs of each layer and of all, in percent of dense too."""
    columns = ("layer", "inference", "% of dense", "training", "% of dense", "looking, % of training")
    kinds = ("inference", "inference_dense", "train", "train_dense", "train_looking")
    layers = group.records[0].result["flops_by_layer"]
    numbers = {
        layer: {kind: mean(record.result["flops_by_layer"][layer][kind] for record in group.records) for kind in kinds}
        for layer in layers
    }
    numbers["all"] = {kind: sum(each[kind] for each in numbers.values()) for kind in kinds}
    rows = [
        (
            layer.removesuffix(".weight"),
            f"{each['inference']:.3g}",
            _share(each["inference"], each["inference_dense"]),
            f"{each['train']:.3g}",
            _share(each["train"], each["train_dense"]),
            _share(each["train_looking"], each["train"]),
        )
        for layer, each in numbers.items()
    ]
    return Table(group.label, columns, tuple(rows))


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g}" if whole else "-"
