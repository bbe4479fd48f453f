"""What updates of the topology did to each layer, counted for the metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from regrow.core.entries import Change
from regrow.experiments.errors import UserError
from regrow.storage import Weight

__all__ = ["ChangeCounts", "changes_table"]

_COUNTED = ("dropped", "grown", "returned")


class ChangeCounts:
    """Counts of what the updates of an epoch did to each layer, and which layers have grown too thin.

    Attributes:
        updates: how many there were since the last `row`.
        thin: layers that were found to hold less than one weight for each of their outputs.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.thin: list[str] = []
        self._counts: dict[str, dict[str, int]] = {}

    def add(self, changes: Mapping[str, Change], keep_returning: bool) -> None:
        """Count an update. A weight that is dropped and returns is in all three counts.

        Args:
            changes: of each layer.
            keep_returning: whether the recipe keeps returning weights, so that they are not among the changes.
        """
        self.updates += 1
        for name, change in changes.items():
            counts = self._counts.setdefault(name, dict.fromkeys(_COUNTED, 0))
            kept = change.returned if keep_returning else 0
            counts["dropped"] += len(change.drop) + kept
            counts["grown"] += len(change.grow) + kept
            counts["returned"] += change.returned

    def row(self) -> dict[str, dict[str, float]]:
        """Return the counts by layer with each layer's share of what was grown, and start anew."""
        total = sum(counts["grown"] for counts in self._counts.values())
        row = {
            name: {**counts, "share": counts["grown"] / total if total else 0.0}
            for name, counts in self._counts.items()
        }
        self.updates, self._counts = 0, {}
        return row

    def find_thin(self, weights: Mapping[str, Weight]) -> list[str]:
        """Return a warning for each layer that holds less than one weight for each output, once a layer."""
        warnings = []
        for name, weight in weights.items():
            count, outputs = weight.nonzeros(), weight.shape[0]
            if count < outputs and name not in self.thin:
                self.thin.append(name)
                warnings.append(
                    f"{name} holds {count} weights for {outputs} outputs, so that some outputs see no input: give it "
                    f"more, as by --set keep_dense={name}, --set distribution=erdos-renyi or a higher density"
                )
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {"updates": self.updates, "thin": list(self.thin), "counts": {**self._counts}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.updates, self.thin = state["updates"], list(state["thin"])
        self._counts = {name: dict(counts) for name, counts in state["counts"].items()}


def changes_table(rows: list[dict[str, Any]], epoch: int | None = None) -> Table:
    """Return what the updates of an epoch did to each layer, from the lines of `metrics.jsonl`.

    Args:
        rows: the metrics of every epoch.
        epoch: from 1; None for the last in which there was an update.

    Raises:
        UserError: if there is no such epoch, or no update in it.
    """
    found = [row for row in rows if row.get("changes_by_layer") and epoch in (None, row["epoch"])]
    if not found:
        where = "in any epoch" if epoch is None else f"in epoch {epoch} of {len(rows)}"
        raise UserError(f"this run has no update of the topology {where}: name another epoch or run")
    row = found[-1]
    title = f"Epoch {row['epoch']}: weights after it, and what its {row['updates']} updates did"
    table = Table("layer", *("weights", *_COUNTED, "share of growth"), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in row["changes_by_layer"].items():
        numbers = (row["nonzeros_by_layer"][name], *(counts[kind] for kind in _COUNTED))
        table.add_row(name, *(f"{number:,}" for number in numbers), f"{counts['share']:.1%}")
    return table
