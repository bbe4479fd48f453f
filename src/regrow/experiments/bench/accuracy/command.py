"""`regrow bench accuracy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.experiments.bench.accuracy.curves import bench_accuracy
from regrow.experiments.bench.common import options
from regrow.experiments.bench.common.tables import show
from regrow.experiments.options import DataRoot, Epochs, Preset, Seeds, Settings, read_settings
from regrow.experiments.terminal import ERR, line, one_line_errors, parse_numbers
from regrow.experiments.train.config import override
from regrow.experiments.train.methods import check_method
from regrow.experiments.train.presets import preset as find_preset

__all__ = ["bench_time_to_accuracy"]


def bench_time_to_accuracy(
    preset: Preset,
    out: Annotated[Path, typer.Option(help="Folder for the runs, tables and plot; run again, it goes on.")],
    epochs: Epochs = None,
    seeds: Seeds = 2,
    density: Annotated[
        float | None, typer.Option(help="Share of the weights that exist; the preset's if left out.")
    ] = None,
    method: options.Method = None,
    backend: options.Backend = "auto",
    growth: options.Growth = "own",
    accuracies: Annotated[
        str, typer.Option(help="Accuracies as 0.5,0.8; by default some that every run reaches.")
    ] = "",
    data: DataRoot = None,
    threads: options.Threads = None,
    settings: Settings = None,
) -> None:
    """Train dense and sparse with the same budget, and tell when each reaches which accuracy."""
    with one_line_errors():
        options.use_threads(threads)
        named = {"epochs": epochs, "density": density, "method": method, "backend": backend}
        named |= {"growth": options.read_growth(growth)}
        changes = {name: value for name, value in named.items() if value is not None}
        base = override(find_preset(preset), {**changes, **read_settings(settings)})
        check_method(base.method)
        wanted = parse_numbers(accuracies, "--accuracies") if accuracies else ()
        show(bench_accuracy(base, seeds, out, accuracies=wanted, data_root=data, console=ERR))
        line(f"curves: {out / 'accuracy.png'}")
