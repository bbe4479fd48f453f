"""The command line: parses arguments, calls what does the work, and turns errors into one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import nn

import regrow
from regrow.experiments import data as data_sets
from regrow.experiments import processes
from regrow.experiments.bench.command import bench_app
from regrow.experiments.demo import demo as run_demo
from regrow.experiments.errors import StoppedError
from regrow.experiments.help import TrainHelp, methods_table, modes_table, presets_table
from regrow.experiments.options import RUN, TRAINED, DataRoot, Epochs, Preset, Settings, read_settings
from regrow.experiments.study.command import study_app
from regrow.experiments.terminal import ERR, OUT, line, one_line_errors, say
from regrow.experiments.train.changes import changes_table
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.loading import load_data, loading_rate
from regrow.experiments.train.loop import Reporter, resume_config
from regrow.experiments.train.loop import train as run_training
from regrow.experiments.train.methods import CARDS, DENSE, check_method, recipe_file, run_name
from regrow.experiments.train.presets import preset as find_preset
from regrow.experiments.train.progress import Lines, ProgressBar, TensorBoard
from regrow.experiments.train.result import Result, read_metrics
from regrow.experiments.train.run import pick_device
from regrow.experiments.train.trained import Format, evaluate_trained, read_trained
from regrow.experiments.train.trained import export as export_trained

__all__ = [
    "app",
    "data_app",
    "data_check",
    "data_fetch",
    "data_list",
    "data_speed",
    "default_out",
    "demo",
    "evaluate",
    "export",
    "layers",
    "methods",
    "options",
    "presets",
    "report",
    "train",
]

app = typer.Typer(
    help="Train neural networks that are sparse from their first step to their last.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Find, fetch and check data sets.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")


_Method = Annotated[
    str | None, typer.Option(help=f"{', '.join((*DENSE, *CARDS))}, or path/to/file.py:recipe.", rich_help_panel=TRAINED)
]
_Density = Annotated[
    float | None, typer.Option(help="Nonzeros over all sparse weights, in (0, 1].", rich_help_panel=TRAINED)
]
_Backend = Annotated[
    str | None, typer.Option(help="Storage of the sparse weights: auto, masked or cpu.", rich_help_panel=TRAINED)
]
_Seed = Annotated[int | None, typer.Option(help="Seed of everything random.", rich_help_panel=TRAINED)]
_Source = Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="Folder of a run, or a file of regrow export.")]
_Out = Annotated[Path | None, typer.Option(help="Folder of the run; by default under runs/.", rich_help_panel=RUN)]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=RUN)]


def _print_version(wanted: bool) -> None:
    if wanted:
        line(f"regrow {regrow.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command(cls=TrainHelp)
def train(
    preset: Preset,
    method: _Method = None,
    density: _Density = None,
    backend: _Backend = None,
    epochs: Epochs = None,
    seed: _Seed = None,
    data: DataRoot = None,
    out: _Out = None,
    resume: _Resume = False,
    settings: Settings = None,
) -> None:
    """Train a network of a preset, sparse from the first step, and write the result to a folder."""
    with one_line_errors():
        given = {"method": method, "density": density, "backend": backend, "epochs": epochs, "seed": seed}
        changes = {name: value for name, value in given.items() if value is not None}
        changes.update(read_settings(settings))
        base = find_preset(preset)
        config = override(base, changes)
        folder = out or default_out(config)
        with processes.joined(config.wait_seconds):
            resume = processes.from_first(lambda: resume or processes.was_restarted(folder))
            if resume:
                config = processes.from_first(lambda: resume_config(base, changes, folder))
            result = _train(config, folder, resume, data)
        line(_sentence(result, folder))


@app.command()
def presets() -> None:
    """List the presets."""
    OUT.print(presets_table())


@app.command()
def methods() -> None:
    """List the methods, and the modes that may stand in the place of their rules."""
    OUT.print(methods_table())
    OUT.print()
    OUT.print(modes_table())


@app.command()
def layers(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    epoch: Annotated[int | None, typer.Option(help="Epoch, from 1; the last with an update if left out.")] = None,
) -> None:
    """Show what the updates of an epoch dropped and grew in each layer of a run."""
    with one_line_errors():
        OUT.print(changes_table(read_metrics(run), epoch))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, of runs, or of a study.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; `report` in the folder if left out.")] = None,
) -> None:
    """Write a page about runs or a study, in one file that needs no other, and its figures as PNG files."""
    with one_line_errors():
        from regrow.experiments.report.page import write_report  # what draws takes a moment to import

        line(str(write_report(folder, out)))


@app.command("eval")
def evaluate(source: _Source, data: DataRoot = None) -> None:
    """Measure the accuracy and the loss of a trained network on the test set."""
    with one_line_errors():
        trained = read_trained(source, data)
        loss, accuracy = evaluate_trained(trained, data)
        line(f"test accuracy {accuracy:.2%}  test loss {loss:.4f}  {_weights(trained.model)}")


@app.command()
def export(
    source: _Source,
    out: Annotated[Path, typer.Option(help="The file; an older one is replaced.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="dense: a state dict of the ordinary network; safetensors: small, for regrow.load and regrow eval; "
            "onnx: for other programs.",
        ),
    ] = "safetensors",
    data: DataRoot = None,
) -> None:
    """Write a trained network to a file."""
    with one_line_errors():
        trained = read_trained(source, data)
        export_trained(trained, form, out)
        line(f"{out}  {out.stat().st_size:,} bytes  {_weights(trained.model)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the plot.")] = Path("runs/demo"),
    data: DataRoot = None,
    speed: Annotated[bool, typer.Option(help="Then time training steps of a wide network too, about 40 s.")] = True,
) -> None:
    """Train a dense and a sparse LeNet on Fashion-MNIST and compare them; then time steps of a wide network."""
    with one_line_errors():
        run_demo(out, data, OUT, _progress(), speed=speed)


@data_app.command("list")
def data_list(data: DataRoot = None) -> None:
    """List the data sets and where each is found."""
    with one_line_errors():
        table = Table("data set", "what it is", "found in")
        for name, entry in data_sets.DATASETS.items():
            found = data_sets.find(name, data)
            table.add_row(name, entry.description, str(found) if found else "not here: regrow data fetch " + name)
        OUT.print(table)


@data_app.command("fetch")
def data_fetch(name: str, data: DataRoot = None) -> None:
    """Find a data set or download it into the user's cache, verified."""
    with one_line_errors():
        line(f"{name}: {data_sets.fetch(name, data)}")


@data_app.command("speed")
def data_speed(
    preset: Preset,
    seconds: Annotated[float, typer.Option(min=0.1, help="After which no further batch is asked for.")] = 20.0,
    data: DataRoot = None,
    settings: Settings = None,
) -> None:
    """Time how quickly batches of a preset's training set are read, decoded and augmented, with nothing else to do."""
    with one_line_errors():
        config = override(find_preset(preset), read_settings(settings))
        rate = loading_rate(load_data(config, data, pick_device(config.device)).train, seconds)
        line(
            f"{config.data}: {rate.images_per_second:,.0f} images/s ({rate.images:,} images in {rate.seconds:.1f} s, "
            f"batch {config.batch_size}, {config.augment}, {config.workers} workers)"
        )


@data_app.command("check")
def data_check(
    name: Annotated[str | None, typer.Argument(help="All that are here if left out.")] = None, data: DataRoot = None
) -> None:
    """Verify the contents of data sets."""
    with one_line_errors():
        names = [name] if name else [known for known in data_sets.DATASETS if data_sets.find(known, data)]
        records = [record for known in names for record in data_sets.check(known, data)]
        for record in records:
            (line if record.good else say)(str(record))
        if not all(record.good for record in records):
            raise typer.Exit(2)


def _train(config: TrainConfig, out: Path, resume: bool, data: Path | None) -> Result:
    check_method(config.method)
    reporters: list[Reporter] = [_progress()]
    if config.tensorboard:
        reporters.append(TensorBoard(out / "tensorboard"))
    try:
        return run_training(config, out, resume=resume, data_root=data, reporters=tuple(reporters))
    except StoppedError as stopped:
        again = ["regrow", "train", config.preset, "--out", str(out), "--resume"]
        again += ["--data", str(data)] if data else []
        if recipe_file(config.method) is not None:
            again += ["--method", config.method]
        say(f"{stopped}; go on with: {shlex.join(again)}")
        raise typer.Exit(128 + stopped.signal_number) from None


def default_out(config: TrainConfig) -> Path:
    """Return the folder of a run that was given none."""
    return Path("runs") / f"{config.preset}-{run_name(config)}"


def _weights(model: nn.Module) -> str:
    """Say how many of the weights that may be sparse exist; nothing of a dense network but their number."""
    masks = regrow.masks(model)
    if not masks:
        return f"{sum(parameter.numel() for parameter in model.parameters()):,} weights (dense)"
    nonzeros = sum(int(mask.sum()) for mask in masks.values())
    return f"{nonzeros:,} weights ({nonzeros / sum(mask.numel() for mask in masks.values()):.2%})"


def _progress() -> ProgressBar | Lines:
    return ProgressBar(ERR) if ERR.is_terminal else Lines(ERR)


def _sentence(result: Result, out: Path) -> str:
    return (
        f"test accuracy {result['test_accuracy']:.2%}  "
        f"{result['nnz']:,} weights ({result['density_actual']:.2%})  "
        f"{result['seconds_train']:.1f} s  {out / 'result.json'}"
    )
