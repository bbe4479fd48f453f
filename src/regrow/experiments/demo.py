"""The demo: a dense and a sparse LeNet side by side, in minutes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from regrow.experiments import data
from regrow.experiments.config import TrainConfig, override
from regrow.experiments.errors import UserError
from regrow.experiments.plots import plot_comparison
from regrow.experiments.presets import preset
from regrow.experiments.train import Reporter, Result, train

_EPOCHS = 20


def demo(out: Path, data_root: Path | None, console: Console, reporter: Reporter) -> None:
    """Train a dense and a 5 % sparse-momentum LeNet-300-100, print a table and draw a plot.

    On Fashion-MNIST; on the 8x8 digits, with a word about it, where Fashion-MNIST cannot be had.

    Args:
        out: folder for the runs and the plot; what is there already is not trained again.
        data_root: folder with the data sets; None looks in the usual places.
        console: where to print.
        reporter: what shows the progress.
    """
    base = _base(data_root, console)
    runs = {}
    for method in ("dense", "sparse-momentum"):
        changes = {"method": method} if method == "dense" else {"method": method, "density": 0.05}
        config = override(base, changes)
        folder = out / f"{config.preset}-{method}"
        console.print(f"training {config.model} on {config.data}, {method}, {config.epochs} epochs", highlight=False)
        resume = (folder / "config.yaml").exists()
        runs[method] = (train(config, folder, resume=resume, data_root=data_root, reporters=(reporter,)), folder)

    console.print(_table({method: result for method, (result, _) in runs.items()}))
    rows = {method: _metrics(folder) for method, (_, folder) in runs.items()}
    plot = out / "demo.png"
    plot_comparison(rows, plot, f"{base.model} on {base.data}")
    console.print(f"plot: {plot}", highlight=False, soft_wrap=True)


def _base(data_root: Path | None, console: Console) -> TrainConfig:
    try:
        data.fetch("fashion-mnist", data_root)
    except UserError as error:
        reason = f"Fashion-MNIST cannot be had here, so this runs on the 8x8 digits instead. {error}"
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
        return preset("digits-mlp")
    return override(preset("fashion-lenet300-100"), {"epochs": _EPOCHS})


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _table(results: dict[str, Result]) -> Table:
    table = Table("", *results, title="Dense and sparse", title_justify="left")
    rows: dict[str, Callable[[Result], str]] = {
        "test accuracy": lambda result: f"{result['test_accuracy']:.2%}",
        "weights": lambda result: f"{result['nnz']:,}",
        "density": lambda result: f"{result['density_actual']:.2%}",
        "bytes, stored sparse": lambda result: f"{result['model_bytes_sparse']:,}",
        "bytes in training (masked)": lambda result: f"{result['model_bytes']:,}",
        "seconds of training": lambda result: f"{result['seconds_train']:.1f}",
    }
    for title, show in rows.items():
        table.add_row(title, *(show(result) for result in results.values()))
    return table
