"""What a folder holds: its runs in groups that differ in their seeds alone, and the study they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from regrow.experiments.errors import UserError
from regrow.experiments.study.execute import PLAN_FILE
from regrow.experiments.study.study import OF_SPARSE_RUNS, Cell
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.result import Result, read_metrics, read_result
from regrow.experiments.train.run import Metrics

__all__ = ["Folder", "Group", "Record", "gather"]

# What does not decide what a run computes.
_NOT_COMPARED = ("seed", "device", "workers", "save_every_seconds", "tensorboard", "method_digest")
_DENSE = "dense"


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: where it is, from the folder of the report.
        settings: its settings.
        result: its result.
        epochs: the metrics of every epoch.
    """

    folder: str
    settings: Mapping[str, Any]
    result: Result
    epochs: Sequence[Metrics]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        differs: the settings in which groups differ, with the values here.
        records: the runs.
    """

    differs: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def is_dense(self) -> bool:
        """Whether they are dense training."""
        return bool(self.records[0].settings["method"] == _DENSE)

    @cached_property
    def cell(self) -> Cell:
        """The results, for statistics."""
        return Cell((self.label,), tuple(record.result for record in self.records))

    @property
    def label(self) -> str:
        """What tells it from the others, in a line."""
        settings = self.records[0].settings
        shown = dict(self.differs) or {name: settings[name] for name in ("method", "density")}
        if self.is_dense:
            shown = {name: value for name, value in shown.items() if name not in OF_SPARSE_RUNS}
            shown = {**shown, "method": _DENSE}
        parts = [str(shown.pop(name)) for name in ("preset", "method") if name in shown]
        if "density" in shown:
            parts.append(f"{100 * shown.pop('density'):g} %")
        return ", ".join([*parts, *(f"{name}={text(value)}" for name, value in shown.items())])

    @property
    def without_sparsity(self) -> dict[str, Any]:
        """Those of the differing settings that dense training has too."""
        return {n: text(v) for n, v in self.differs.items() if n != "method" and n not in OF_SPARSE_RUNS}


@dataclass(frozen=True)
class Folder:
    """What a report is of.

    Attributes:
        path: the folder.
        groups: its finished runs, dense ones first.
        plan: what the study asked for; empty for runs that are of none.
        rows: the runs of the study with their points of the grid.
        unfinished: folders of runs that have not ended.
    """

    path: Path
    groups: tuple[Group, ...]
    plan: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    unfinished: tuple[str, ...]

    @property
    def records(self) -> list[Record]:
        """All finished runs."""
        return [record for group in self.groups for record in group.records]

    def dense_beside(self, group: Group) -> Group | None:
        """Return the dense training that a group is compared with; None for itself, or where there is none."""
        if group.is_dense:
            return None
        wanted = group.without_sparsity
        return next((other for other in self.groups if other.is_dense and other.without_sparsity == wanted), None)


def gather(path: Path) -> Folder:
    """Read a folder: a run, runs, or a study.

    Raises:
        UserError: if it holds no finished run, or a file in it is damaged.
    """
    folders = sorted(found.parent for found in path.rglob("config.yaml"))
    finished = [folder for folder in folders if (folder / "result.json").exists()]
    if not finished:
        raise UserError(f"{path} holds no finished run: name the folder of a run, of runs or of a study")
    records = [_record(folder, path) for folder in finished]
    unfinished = tuple(_name(folder, path) for folder in folders if folder not in finished)
    plan, rows = _read_json(path / PLAN_FILE, {}), _read_json(path / "study.json", [])
    return Folder(path, tuple(_groups(records)), plan, rows, unfinished)


def text(value: Any) -> str:
    """Return the value of a setting in a few characters.

    Example:
        >>> text(None), text(["a", 1]), text({"hidden": [3, 4]}), text(0.1)
        ('null', '[a, 1]', '{hidden: [3, 4]}', '0.1')
    """
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("...\n").strip()


def _record(folder: Path, root: Path) -> Record:
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        good = isinstance(settings, dict) and {"method", "density", "preset", "seed"} <= settings.keys()
    except (OSError, ValueError, yaml.YAMLError):
        good = False
    if not good:
        raise UserError(f"{folder / 'config.yaml'} is damaged: move that run elsewhere")
    return Record(_name(folder, root), settings, read_result(folder / "result.json"), read_metrics(folder))


def _name(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder != root else folder.name


def _read_json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if type(found) is not type(default):
        raise UserError(f"{path} is damaged: run the study again, or delete the file for a report of the runs alone")
    return found


def _groups(records: Sequence[Record]) -> list[Group]:
    """Group runs by the settings in which any two of them differ, dense ones first."""
    names = [name for name in TrainConfig.model_fields if name not in _NOT_COMPARED]
    sparse = [record for record in records if record.settings["method"] != _DENSE]

    def values(record: Record) -> dict[str, Any]:
        dense = record.settings["method"] == _DENSE
        return {n: text(record.settings.get(n)) for n in names if not (dense and n in OF_SPARSE_RUNS)}

    all_values = [values(record) for record in records]
    differ = [
        name
        for name in names
        if len({found[name] for found in all_values if name in found}) > 1
        or (name == "method" and len(sparse) not in (0, len(records)))
    ]
    grouped: dict[tuple[str | None, ...], list[Record]] = {}
    for record, found in zip(records, all_values, strict=True):
        grouped.setdefault(tuple(found.get(name) for name in differ), []).append(record)
    groups = [
        Group({name: members[0].settings.get(name) for name in differ}, tuple(members)) for members in grouped.values()
    ]
    return sorted(groups, key=lambda group: not group.is_dense)
