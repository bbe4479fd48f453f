"""The demo: a dense and a sparse LeNet side by side, and a wide network's training step, in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from regrow.experiments import data
from regrow.experiments.bench.steps.ratio import StepRatio, step_ratio
from regrow.experiments.errors import UserError
from regrow.experiments.study.plots import plot_comparison
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.loop import Reporter, train
from regrow.experiments.train.presets import preset
from regrow.experiments.train.result import Result, read_metrics
from regrow.ops.native import kernels

__all__ = ["demo"]

_EPOCHS = 20
_WIDE = override(preset("cifar10-vgg16-d"), {"density": 0.05, "growth": "window:10"})


def demo(out: Path, data_root: Path | None, console: Console, reporter: Reporter, *, speed: bool = True) -> None:
    """Train a dense and a 5 % sparse-momentum LeNet-300-100, print a table and draw a plot; then time a wide network.

    On Fashion-MNIST; on the 8x8 digits, with a word about it, where Fashion-MNIST cannot be had.

    Args:
        out: folder for the runs and the plot; what is there already is not trained again.
        data_root: folder with the data sets; None looks in the usual places.
        console: where to print.
        reporter: what shows the progress.
        speed: whether to time the training step of a wide network too (about 40 s).

    Raises:
        WrongResultError: if the wide network, stored sparsely, computes another loss than masked storage.
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
    rows = {method: read_metrics(folder) for method, (_, folder) in runs.items()}
    plot = out / "demo.png"
    plot_comparison(rows, plot, f"{base.model} on {base.data}")
    console.print(f"plot: {plot}", highlight=False, soft_wrap=True)
    if speed:
        _time_steps(_WIDE, console)


def _time_steps(config: TrainConfig, console: Console) -> None:
    """Time whole training steps of a network, dense and sparse, and print the ratio."""
    try:
        kernels()
    except RuntimeError as error:
        console.print(f"sparse training steps are not timed here: {error}", highlight=False, soft_wrap=True)
        return
    what = f"{config.model}, batch {config.batch_size}, random images as of {config.data}"
    console.print(f"timing training steps of {what}, on the CPU (about 40 s)", highlight=False, soft_wrap=True)
    console.print(_sentence(config, step_ratio(config)), highlight=False, soft_wrap=True)


def _sentence(config: TrainConfig, found: StepRatio) -> str:
    updates = "included" if found.updates else "left out, for want of time"
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return (
        f"one training step of {config.model}: {found.dense:.0f} ms dense (float32), {found.sparse:.0f} ms sparse at "
        f"{config.density:.0%} (growth {config.growth}, topology updates {updates}): {found.ratio.median:.2f} times as "
        f"fast ({found.ratio.low:.2f}-{found.ratio.high:.2f}); medians and quartiles of {found.rounds} steps each, in "
        f"turn, {threads}; its loss is that of masked storage, checked before"
    )


def _base(data_root: Path | None, console: Console) -> TrainConfig:
    try:
        data.fetch("fashion-mnist", data_root)
    except UserError as error:
        reason = f"Fashion-MNIST cannot be had here, so this runs on the 8x8 digits instead. {error}"
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
        return preset("digits-mlp")
    return override(preset("fashion-lenet300-100"), {"epochs": _EPOCHS})


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
