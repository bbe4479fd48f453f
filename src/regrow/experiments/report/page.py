"""The page: tables, figures in light and dark, settings and versions, in one file that needs no other."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from regrow.experiments.bench.common.tables import Table
from regrow.experiments.files import write_atomically, write_text
from regrow.experiments.report import figures
from regrow.experiments.report.gather import Folder, Record, gather, text
from regrow.experiments.report.layers import LayerCounts, changes_table, flops_table, layer_counts
from regrow.experiments.study.command import STUDIES
from regrow.experiments.study.execute import GROUP
from regrow.experiments.study.intervals import differences
from regrow.experiments.study.panels import draw_panels
from regrow.experiments.study.study import INFERENCE, TRAINING, Cell, Study, file_name
from regrow.experiments.study.style import as_png, themed
from regrow.experiments.train.presets import PRESETS

__all__ = ["write_report"]

# Groups whose layers are drawn; tables have all.
_DRAWN = 12
_PAGE = "report.html"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: its file, without the ending.
        caption: what it shows.
        light: as PNG for light pages, in base64.
        dark: likewise for dark ones.
        wide: whether it has two plots side by side.
    """

    name: str
    caption: str
    light: str
    dark: str
    wide: bool


def write_report(path: Path, out: Path | None = None) -> Path:
    """Write a page about a folder and its figures as PNG files, and return the page.

    Args:
        path: a run, runs, or a study.
        out: the folder to write to; `report` in the folder if None.

    Raises:
        UserError: if there is no finished run, or a file is damaged.
    """
    folder = gather(path)
    out = out or path / "report"
    study = next((study for study in STUDIES if study.name == folder.plan.get("study")), None)
    parts = _parts(study, folder)
    counts = [(group, found) for group in folder.groups if (found := layer_counts(group)) is not None]
    counted = [group for group in folder.groups if all("flops_by_layer" in row for row in group.cell.rows)]
    page = _environment().get_template("page.html.j2")
    context = {
        "title": _title(folder),
        "question": folder.plan.get("question", ""),
        "folder": folder,
        "command": folder.plan.get("command", ""),
        "results": _results(folder),
        "tables": [table for name, cells in parts.items() if study for table in study.shown(cells, name)],
        "pictures": _pictures(out, study, parts, folder),
        "layer_pictures": _layer_pictures(out, [found for _, found in counts]),
        "not_drawn": max(0, len(counts) - _DRAWN),
        "layer_tables": [changes_table(group, each) for group, each in counts],
        "flops_pictures": [_picture(out, "flops", _FLOPS, lambda: figures.flops(counted))] if counted else [],
        "flops_tables": [flops_table(group) for group in counted],
        "settings": _settings(folder),
        "commands": {group.label: train_command(group.records[0]) for group in folder.groups},
        "failed": folder.plan.get("failed", {}),
        "versions": _versions(folder.records),
        "machine": folder.plan.get("machine", ""),
    }
    write_text(out / _PAGE, page.render(context))
    return out / _PAGE


_FLOPS = (
    "FLOPs as RigL's paper counts them, in percent of dense: two for each multiply-add of the forward pass and of the "
    "gradients of inputs and weights. Hatched is the part of the training that looked at absent weights."
)


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _title(folder: Folder) -> str:
    presets = ", ".join(dict.fromkeys(str(record.settings["preset"]) for record in folder.records))
    study = folder.plan.get("study")
    if study:
        return f"Study of {study}: {presets}"
    return f"{presets}: {len(folder.records)} runs" if len(folder.records) > 1 else f"{presets}: a run"


def _parts(study: Study | None, folder: Folder) -> dict[str, list[Cell]]:
    """Return the points of each part of a study."""
    if study is None:
        return {}
    names = dict.fromkeys(row[GROUP] for row in folder.rows)
    return {name: study.collect([row for row in folder.rows if row[GROUP] == name]) for name in names}


def _results(folder: Folder) -> Table:
    """Return the table of all groups."""
    columns = ("runs", "test accuracy, %", "95 % interval", "seeds", "less dense", "density, %", "weights")
    more = (TRAINING.title, INFERENCE.title, "training, s")
    rows = []
    for group in folder.groups:
        cell, dense = group.cell, folder.dense_beside(group)
        apart = differences(cell.accuracies, dense.cell.accuracies) if dense else None
        beside = "-" if apart is None else apart.text(sign="+")
        accuracy = (cell.accuracy.text(), cell.accuracy.bounds() or "-", str(cell.accuracy.count), beside)
        density = mean(100 * row["density_actual"] for row in cell.rows)
        size = (f"{density:.3g}", f"{mean(row['nnz'] for row in cell.rows):,.0f}")
        seconds = f"{mean(row['seconds_train'] for row in cell.rows):.1f}"
        rows.append((group.label, *accuracy, *size, TRAINING.text(cell), INFERENCE.text(cell), seconds))
    return Table("Mean ± standard error over seeds", (*columns, *more), tuple(rows))


def _pictures(out: Path, study: Study | None, parts: Mapping[str, Sequence[Cell]], folder: Folder) -> list[Picture]:
    pictures = []
    for name, cells in parts.items():
        if study is not None and study.panels is not None:
            panels = study.panels(cells)
            caption = f"{name}: means over seeds; bars are standard errors unless the axis says otherwise."
            draw = partial(draw_panels, panels)
            pictures.append(_picture(out, f"study-{file_name(name)}", caption, draw, len(panels) > 1))
    pictures.append(
        _picture(
            out, "accuracy", "Test accuracy: seeds, mean and 95 % interval (Student's distribution).",
            lambda: figures.accuracies(folder),
        )
    )  # fmt: skip
    known = [g for g in folder.groups if all(e["valid_accuracy"] is not None for r in g.records for e in r.epochs)]
    if known and len(known[0].records[0].epochs) > 1:
        caption = "Validation accuracy over the training: mean over seeds, shaded its standard error."
        if any(not group.records[0].settings["valid_samples"] for group in known):
            caption += " Where valid_samples is 0 it is that on the test set."
        caption += " A line that covers another is thinner than it."
        pictures.append(_picture(out, "training", caption, lambda: figures.curves(known), len(known) > _LINES))
    return pictures


_LINES = 6


def _layer_pictures(out: Path, counts: Sequence[LayerCounts]) -> list[Picture]:
    drawn = counts[:_DRAWN]
    if not drawn:
        return []
    over_time = "Density of each layer at the end of every epoch, mean over seeds."
    pictures = [_picture(out, "layers", over_time, lambda: figures.densities(drawn), len(drawn) > 1)]
    moved = [each for each in drawn if each.moved]
    if moved:
        caption = "Which layers gained and which lost: density in the first and in the last epoch, mean over seeds. "
        caption += "Left out are groups whose layers keep their numbers of weights." if len(moved) < len(drawn) else ""
        pictures.append(_picture(out, "gains", caption.strip(), lambda: figures.gains(moved), len(moved) > 1))
    return pictures


def _picture(out: Path, name: str, caption: str, draw: Callable[[], Figure], wide: bool = False) -> Picture:
    """Draw a figure in both themes, and write the light one to a file."""
    with themed("light"):
        light = as_png(draw())
    with themed("dark"):
        dark = as_png(draw())
    write_atomically(out / f"{name}.png", lambda file: file.write(light))
    return Picture(name, caption, _base64(light), _base64(dark), wide)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _settings(folder: Folder) -> Table:
    """Return the settings that all runs share, or that runs of a kind share: dense ones leave out what is of others."""
    differ = {name for group in folder.groups for name in group.differs} | {"seed", "density", "method"}
    first = next((group for group in folder.groups if not group.is_dense), folder.groups[0]).records[0].settings
    rows = [(name, text(value)) for name, value in first.items() if name not in differ and name != "method_digest"]
    seeds = sorted({int(record.settings["seed"]) for record in folder.records})
    return Table("Settings of all runs", ("setting", "value"), (*rows, ("seeds", ", ".join(map(str, seeds)))))


def train_command(record: Record) -> str:
    """Return the command that makes a run: its preset, and what it changes of it."""
    settings = record.settings
    preset = PRESETS.get(settings["preset"])
    base: dict[str, Any] = preset.model_dump(mode="json") if preset else {}
    words = ["regrow", "train", str(settings["preset"])]
    for name in ("method", "density", "epochs", "seed"):
        if settings[name] != base.get(name) and not (name == "density" and settings["method"] == "dense"):
            words += [f"--{name}", text(settings[name])]
    skipped = ("preset", "method", "density", "epochs", "seed", "method_digest")
    for name, value in settings.items():
        if name not in skipped and value != base.get(name):
            words += ["--set", f"{name}={text(value)}"]
    return shlex.join(words)


def _versions(records: Sequence[Record]) -> list[str]:
    """Return what the runs were made with, a line for each combination."""
    lines: dict[str, int] = {}
    for record in records:
        result = record.result
        versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        device = f"{result.get('device', '?')} with {result.get('threads', '?')} thread(s)"
        key = f"{device}; storage {result.get('backend', '?')}; {versions}"
        lines[key] = lines.get(key, 0) + 1
    return [f"{count} run{'s' if count > 1 else ''}: {line}" for line, count in lines.items()]
