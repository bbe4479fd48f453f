"""The study of growth sources: what training loses when growth looks at less, and how much it grows otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import regrow
from regrow.core.positions import absent
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.study import run_all
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import make_recipe, run_name
from regrow.experiments.train.run import Metrics, Run
from regrow.storage import sparse_weights
from regrow.topology.momentum import momentum
from regrow.topology.shadow import groups_of

# Beside the sources of sparse momentum: methods that look at no absent weight.
BLIND = ("static", "set")
SOURCES = (
    *BLIND, "candidates:44:1", "candidates:44:3", "window:1", "window:10", "window:22", "window:44", "exact",
)  # fmt: skip


@dataclass(frozen=True)
class GrowthStudy:
    """A grid of runs: every source of growth at every density with every seed.

    Masked storage throughout: there the momentum of all absent weights is at hand, to compare with.

    Attributes:
        base: the settings they share.
        sources: sources as in the setting `growth`, "static" and "set" (random growth) among them or not.
        densities: densities.
        seeds: seeds.
    """

    base: TrainConfig
    sources: Sequence[str]
    densities: Sequence[float]
    seeds: Sequence[int]

    def runs(self) -> Iterator[TrainConfig]:
        """Yield the settings of every run, one seed of all before the next seed."""
        # One schedule for all, so that nothing but what grows differs.
        shared = {"backend": "masked", "prune_rate": 0.5, "prune_rate_decay": "cosine"}
        for seed in dict.fromkeys(self.seeds):
            for source in dict.fromkeys(self.sources):
                own = {"method": source} if source in BLIND else {"method": "sparse-momentum", "growth": source}
                for density in dict.fromkeys(self.densities):
                    yield override(self.base, {**shared, **own, "density": density, "seed": seed})


class ComparedUpdater(regrow.TopologyUpdater):
    """An updater that also counts how much of what it grows sparse momentum with exact growth would have grown.

    Counted are positions that were absent before the update: a weight that returns at once is no choice of growth.

    Args:
        model: a model in masked storage.
        optimizer: the optimizer of its parameters, which keeps momentum.
        recipe: what to do and when.
        reference: what to compare with.
        seed: seed of random growth.

    Attributes:
        grown: positions grown so far, by layer.
        in_common: how many of those `reference` would have grown at the same update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: regrow.Recipe,
        reference: regrow.Recipe,
        seed: int,
    ) -> None:
        self._model = model
        self._reference = reference
        self._compared_optimizer = optimizer
        self.grown = dict.fromkeys(regrow.masks(model), 0)
        self.in_common = dict.fromkeys(regrow.masks(model), 0)
        super().__init__(model, optimizer, recipe, seed=seed)

    @torch.no_grad()
    def update(self) -> None:
        """Update the topology, and count."""
        before = regrow.masks(self._model)
        expected = regrow.update(self._reference, self._layers(), self.step, torch.Generator())
        super().update()
        for name, after in regrow.masks(self._model).items():
            grown = (after & ~before[name]).flatten()
            self.grown[name] += int(grown.sum())
            self.in_common[name] += int(grown[expected[name].grow].sum())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the updater with the counts."""
        return {**super().state_dict(), "grown": dict(self.grown), "in_common": dict(self.in_common)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.grown, self.in_common = dict(state["grown"]), dict(state["in_common"])

    def _layers(self) -> dict[str, regrow.LayerState]:
        """Return every layer with the momentum of all its absent weights."""
        groups = groups_of(self._compared_optimizer)
        layers = {}
        for name, weight in sparse_weights(self._model).items():
            numbers = momentum(self._compared_optimizer, weight.weight, groups[id(weight.weight)])
            parameter, index = weight.weight.detach(), weight.index()
            positions = absent(index, weight.numel)

            def entries(at: Tensor, of: Tensor = parameter, numbers: Tensor = numbers) -> regrow.Entries:
                return regrow.Entries(at, of.reshape(-1)[at], momentum=numbers.reshape(-1)[at])

            layers[name] = regrow.LayerState(entries(index), entries(positions), weight.numel, weight.shape)
        return layers


class ComparedRun(Run):
    """A run whose metrics say how much was grown, and how much of it exact growth would have grown too."""

    def finish_epoch(self) -> Metrics:
        """Evaluate, write down the epoch's metrics with the counts so far, and return them."""
        row = super().finish_epoch()
        if isinstance(self.topology, ComparedUpdater):
            row["grown_by_layer"] = dict(self.topology.grown)
            row["in_common_by_layer"] = dict(self.topology.in_common)
        return row

    def _make_topology(self, optimizer: torch.optim.Optimizer, recipe: regrow.Recipe) -> regrow.TopologyUpdater:
        exact = override(self.config, {"method": "sparse-momentum", "growth": "exact"})
        reference = replace(make_recipe(exact, self.steps_per_epoch), keep_returning=False)
        return ComparedUpdater(self.model, optimizer, recipe, reference, self.config.seed)


@dataclass(frozen=True)
class GrowthCell:
    """What one source gave at one density.

    Attributes:
        source: name of the source.
        density: nonzeros over all sparse weights.
        errors: test error of each seed, in percent.
        in_common: share of the positions it grew that exact growth would have grown too, of all seeds and layers;
            None if it grew nothing.
    """

    source: str
    density: float
    errors: tuple[float, ...]
    in_common: float | None

    def __str__(self) -> str:
        spread = f" ± {stdev(self.errors):.2f}" if len(self.errors) > 1 else ""
        return f"{mean(self.errors):.2f}{spread}"

    @property
    def share(self) -> str:
        """The share in common as text."""
        return "-" if self.in_common is None else f"{self.in_common:.3f}"


def run_growth_study(
    study: GrowthStudy, out: Path, *, data_root: Path | None = None, jobs: int = 1, console: Console | None = None
) -> Table:
    """Run what is missing of a study, write `study.json` and `table.md`, and return the table.

    Each run has a folder of its own in `out`; finished ones are kept and unfinished ones go on.

    Args:
        study: the grid.
        out: folder of the study.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time; each takes its share of the cores.
        console: where to show progress; nothing is shown unless it is a terminal.

    Raises:
        UserError: if a setting does not fit, or `out` holds runs with other settings.
    """
    if study.base.momentum == 0:
        raise UserError("this study compares sources of momentum: leave momentum above 0")
    configs = list(study.runs())
    results = run_all(configs, out, data_root=data_root, jobs=jobs, console=console, make_run=ComparedRun)
    rows = []
    for config, result in zip(configs, results, strict=True):
        last = json.loads((out / run_name(config) / "metrics.jsonl").read_text().splitlines()[-1])
        counts = {name: last[name] for name in ("grown_by_layer", "in_common_by_layer")}
        rows.append({"source": config.growth or config.method, **counts, **result})
    cells = collect(rows)
    write_text(out / "study.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "table.md", markdown(cells) + "\n")
    return _table(cells, study.base.preset)


def collect(rows: Sequence[Mapping[str, Any]]) -> list[GrowthCell]:
    """Group runs by source and density, in the order in which they first appear.

    Args:
        rows: of each run its result, `source`, `grown_by_layer` and `in_common_by_layer`.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["density"]), []).append(row)
    cells = []
    for (source, density), members in groups.items():
        errors = tuple(100 * (1 - row["test_accuracy"]) for row in members)
        grown, common = (
            sum(sum(row[name].values()) for row in members) for name in ("grown_by_layer", "in_common_by_layer")
        )
        cells.append(GrowthCell(source, density, errors, common / grown if grown else None))
    return cells


def markdown(cells: Sequence[GrowthCell]) -> str:
    """Return a Markdown table: test error in percent, mean ± standard deviation, and the share in common.

    Example:
        >>> print(markdown([GrowthCell("window:44", 0.05, (1.0, 2.0), 0.9), GrowthCell("static", 0.05, (3.0,), None)]))
        | growth | 5 %: test error | in common |
        |---|---|---|
        | window:44 | 1.50 ± 0.71 | 0.900 |
        | static | 3.00 | - |
    """
    densities = sorted({cell.density for cell in cells})
    titles = [title for density in densities for title in (f"{100 * density:g} %: test error", "in common")]
    lines = [f"| growth | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for source in dict.fromkeys(cell.source for cell in cells):
        found = {cell.density: cell for cell in cells if cell.source == source}
        texts = [text for d in densities for text in ((str(found[d]), found[d].share) if d in found else ("", ""))]
        lines.append(f"| {source} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _table(cells: Sequence[GrowthCell], title: str) -> Table:
    table = Table("growth", "density", "test error %", "in common", "seeds", title=f"{title}: mean ± deviation")
    for cell in cells:
        table.add_row(cell.source, f"{100 * cell.density:g} %", str(cell), cell.share, str(len(cell.errors)))
    return table
