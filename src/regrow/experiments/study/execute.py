"""Carry a study out: run what is missing, then write its tables, plots and what they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from regrow.experiments import processes
from regrow.experiments.bench.common.machine import describe
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.runner import Failure, run_all
from regrow.experiments.study.study import Cell, Planned, Study, file_name
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import check_method
from regrow.experiments.train.result import Result

__all__ = ["GROUP", "PLAN_FILE", "Finished", "bases_of", "run_study"]

GROUP = "group"
"""Key in `study.json` of the preset and the settings that `--vary` gave a run."""
PLAN_FILE = "plan.json"
"""File of a study that says what was asked for, and which runs failed."""


@dataclass(frozen=True)
class Finished:
    """How a study ended.

    Attributes:
        tables: what it found.
        failures: what went wrong, by the folder of the run.
    """

    tables: tuple[Table, ...]
    failures: Mapping[str, str]


def bases_of(presets: Sequence[TrainConfig], varied: Mapping[str, Sequence[Any]]) -> dict[str, TrainConfig]:
    """Return the settings that the runs of each part of a study share, by a name for the part.

    Args:
        presets: the presets.
        varied: for further settings the values that each takes with every preset.

    Raises:
        UserError: if a setting does not fit.

    Example:
        >>> from regrow.experiments.train.presets import preset
        >>> list(bases_of([preset("digits-mlp")], {"momentum": [0.5, 0.9]}))
        ['digits-mlp, momentum=0.5', 'digits-mlp, momentum=0.9']
    """
    bases = {}
    for base, *values in product(presets, *varied.values()):
        changes = dict(zip(varied, values, strict=True))
        name = ", ".join([base.preset, *(f"{key}={value}" for key, value in changes.items())])
        bases[name] = override(base, changes)
    return bases


def run_study(
    study: Study,
    base: TrainConfig | Mapping[str, TrainConfig],
    values: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    out: Path,
    *,
    data_root: Path | None = None,
    jobs: int | None = None,
    console: Console | None = None,
    command: str = "",
) -> Finished:
    """Run what is missing of a study, write its tables, plots and `study.json`, and return the tables.

    Each run has a folder of its own in `out`; finished ones are kept and unfinished ones go on. A run that fails stops
    no other, and is tried again the next time. Where there are several parts, each has a folder.

    Args:
        study: what is studied.
        base: the settings that all runs share; or those of each part, by a name for it.
        values: the values of each axis by its name.
        seeds: the seeds.
        out: folder of the study.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time; see `run_all`.
        console: where to show progress and failures.
        command: what was called, for the report.

    Raises:
        UserError: if a setting does not fit, the grid is empty, `out` holds runs with other settings, or no run came to
            its end because of a mistake.
    """
    bases = {base.preset: base} if isinstance(base, TrainConfig) else base
    folders = {name: out if len(bases) == 1 else out / file_name(name) for name in bases}
    parts: dict[str, dict[Path, Planned]] = {}
    for name, settings in bases.items():
        study.check(settings)
        planned = study.runs(settings, values, seeds)
        if not planned:
            raise UserError(f"study {study.name}: give at least one seed and one value of each of its options")
        parts[name] = {folders[name] / folder: run for folder, run in planned.items()}
    runs = {folder: run for part in parts.values() for folder, run in part.items()}
    for method in dict.fromkeys(run.config.method for run in runs.values()):
        check_method(method)
    configs = {folder: run.config for folder, run in runs.items()}
    outcomes = run_all(configs, data_root=data_root, jobs=jobs, console=console, make_run=study.make_run)
    results, failures = _sorted_out(list(runs), outcomes, out)
    if not processes.is_first():
        return Finished((), failures)
    rows = {
        name: [
            {**row, GROUP: name, "folder": str(folder.relative_to(out))}
            for folder, run in part.items()
            if folder in results
            for row in study.rows(run, {**study.read(folder), **results[folder]})
        ]
        for name, part in parts.items()
    }
    write_text(out / "study.json", json.dumps([row for part in rows.values() for row in part], indent=1) + "\n")
    _write_plan(study, bases, values, seeds, out, command, failures)
    cells = {name: study.collect(part) for name, part in rows.items() if part}
    write_text(out / "table.md", _markdown(study, cells))
    for name, found in cells.items():
        study.draw(found, folders[name], name)
    return Finished(tuple(table for name, found in cells.items() for table in study.shown(found, name)), failures)


def _sorted_out(
    folders: Sequence[Path], outcomes: Sequence[Result | Failure], out: Path
) -> tuple[dict[Path, Result], dict[str, str]]:
    """Return the results by folder, and what went wrong by the name of the folder.

    Raises:
        UserError: if there is no result and a mistake is why.
    """
    results: dict[Path, Result] = {}
    failures: dict[str, Failure] = {}
    for folder, outcome in zip(folders, outcomes, strict=True):
        if isinstance(outcome, Failure):
            failures[str(folder.relative_to(out))] = outcome
        else:
            results[folder] = outcome
    if not results:
        for failure in failures.values():
            if failure.is_mistake:
                raise UserError(failure.message)
    return results, {name: failure.message for name, failure in failures.items()}


def _markdown(study: Study, cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the tables of a study as Markdown, each part under its name where there are several."""
    if len(cells) == 1:
        return "".join(study.markdown(found, name) + "\n" for name, found in cells.items())
    return "\n".join(f"## {name}\n\n{study.markdown(found, name)}\n" for name, found in cells.items())


def _write_plan(
    study: Study,
    bases: Mapping[str, TrainConfig],
    values: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    out: Path,
    command: str,
    failures: Mapping[str, str],
) -> None:
    plan = {
        "study": study.name,
        "question": study.about,
        "command": command,
        "parts": {name: config.model_dump(mode="json") for name, config in bases.items()},
        "values": {name: list(given) for name, given in values.items()},
        "seeds": list(seeds),
        "failed": dict(failures),
        "machine": str(describe()),
    }
    write_text(out / PLAN_FILE, json.dumps(plan, indent=1) + "\n")
