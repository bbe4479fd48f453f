"""`regrow bench`: parses arguments, measures, shows tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.table
import torch
import typer

from regrow.experiments.bench.accuracy.curves import bench_accuracy
from regrow.experiments.bench.common.machine import describe, measure_rates
from regrow.experiments.bench.layers.compare import compare
from regrow.experiments.bench.layers.contenders import BFLOAT16, CSR
from regrow.experiments.bench.layers.measure import Row, WrongResultError
from regrow.experiments.bench.layers.peers import peers as find_peers
from regrow.experiments.bench.layers.problem import Shape
from regrow.experiments.bench.layers.report import FILE, Report, run
from regrow.experiments.bench.layers.report import Settings as LayerSettings
from regrow.experiments.bench.layers.shapes import NETWORKS, shapes
from regrow.experiments.bench.layers.tables import Table, markdown, sentence, tables
from regrow.experiments.bench.memory.linear import KINDS, Problem, bench_memory
from regrow.experiments.bench.steps import tables as train_tables
from regrow.experiments.bench.steps.measure import FILE as STEP_FILE
from regrow.experiments.bench.steps.measure import Report as StepReport
from regrow.experiments.bench.steps.measure import Row as StepRow
from regrow.experiments.bench.steps.measure import Settings, step_configs
from regrow.experiments.bench.steps.measure import run as run_steps
from regrow.experiments.bench.steps.peer_networks import PEERS
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.plots import plot_speed
from regrow.experiments.terminal import ERR, OUT, line, one_line_errors, parse_densities, parse_numbers, say
from regrow.experiments.train.config import TrainConfig, override, parse_settings
from regrow.experiments.train.methods import check_method
from regrow.experiments.train.presets import preset as find_preset

bench_app = typer.Typer(help="Measure sparse layers beside dense ones and other libraries.", no_args_is_help=True)

Network = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help=f"Only layers of this network: {', '.join(NETWORKS)}.")
]
Layers = Annotated[str, typer.Option(metavar="TEXT", help="Only layers whose line holds this, as 'vgg16-d 512-512'.")]
Densities = Annotated[str, typer.Option(help="Shares of the weights that exist, separated by commas.")]
Plot = Annotated[Path | None, typer.Option(help="PNG file: speed-up of training steps over density.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; by default PyTorch's own number.")]


@bench_app.command("layers")
def layers(
    peers: Annotated[bool, typer.Option("--peers", help="Also sparseprop and sparselab, where installed.")] = False,
    network: Network = None,
    layers: Layers = "",
    densities: Densities = "0.01,0.02,0.05,0.1,0.2,0.3",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for each layer and density, at most.")] = 15,
    seconds: Annotated[float, typer.Option(min=0, help="No new round begins after so many, once there were 3.")] = 10,
    threads: Threads = None,
    only_dense: Annotated[bool, typer.Option("--only-dense", help="Beside float32 dense alone.")] = False,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Time of the processor instead of the wall: one thread, busy machine.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file with all figures; run again, it goes on with it.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")] = None,
) -> None:
    """Check every layer against dense, then time it: forward, input gradient, weight gradient."""
    with one_line_errors():
        if threads is not None:
            torch.set_num_threads(threads)
        if cpu_time and torch.get_num_threads() > 1:
            raise UserError("--cpu-time adds up the time of all threads, so it wants one alone: give --threads 1")
        found, missing = find_peers() if peers else ([], {})
        rivals = [*([] if only_dense else [BFLOAT16, CSR]), *found]
        settings = LayerSettings(
            rounds, seconds, "processor" if cpu_time else "wall", tuple(rival.name for rival in rivals)
        )
        chosen, values = shapes(network or (), layers), _checked(parse_densities(densities))
        machine = describe(tuple(rival.name for rival in found))
        for name, reason in missing.items():
            say(f"{name} {reason}")
        report = Report(machine, measure_rates(settings.read_clock), settings, missing)
        report = FILE.resumed(report, out) if out else report
        line(f"{machine}; {report.rates}")
        try:
            run(report, chosen, values, rivals, out=out, progress=_Progress())
        except WrongResultError as error:
            say(str(error))
            raise typer.Exit(1) from None
        _show(report, markdown_file)


@bench_app.command("memory")
def memory(
    size: Annotated[int, typer.Option(min=1, help="Inputs and outputs of the layer.")] = 8192,
    density: Annotated[float, typer.Option(help="Share of the weights that exist.")] = 0.05,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 128,
    kinds: Annotated[str, typer.Option(help="What to measure beside dense, separated by commas.")] = ",".join(KINDS),
    out: Annotated[Path | None, typer.Option(help="JSON file with all figures.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown too.")] = None,
) -> None:
    """Measure what training a linear layer holds: tensors, and the peak of a process of its own."""
    with one_line_errors():
        (density,) = _checked((density,))
        names = tuple(kind.strip() for kind in kinds.split(","))
        table = bench_memory(Problem(size, density, batch), names, out)
        line(str(describe()))
        _print(table)
        if markdown_file:
            write_text(markdown_file, table.markdown())


@bench_app.command("show")
def show(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="JSON of `bench layers`, or one or several of `bench train`."),
    ],
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")] = None,
    plot: Plot = None,
) -> None:
    """Show the tables of earlier measurements; those of training steps in several files become one."""
    with one_line_errors():
        if not STEP_FILE.holds(files[0]):
            report = FILE.load(files[0])
            if len(files) > 1 or plot:
                raise UserError("only measurements of training steps are shown together, or drawn: give those")
            line(f"{report.machine}; {report.rates}")
            _show(report, markdown_file)
            return
        reports = [STEP_FILE.load(file) for file in files]
        for file, each in zip(files, reports, strict=True):
            if each.machine != reports[0].machine:
                raise UserError(
                    f"{file} was measured with {each.machine}, and {files[0]} with {reports[0].machine}: "
                    "show them one by one"
                )
        line(str(reports[0].machine))
        _show_steps(reports, markdown_file, plot)


@bench_app.command("train")
def train(
    presets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET]...", help="Presets; by default those of docs/command-line.md."),
    ] = None,
    densities: Annotated[str, typer.Option(help="Densities, separated by commas; by default each preset's own.")] = "",
    peers: Annotated[
        bool, typer.Option("--peers", help="Also sparseprop, where installed, in static training.")
    ] = False,
    backend: Annotated[str, typer.Option(help="Storage of the sparse weights: auto, masked or cpu.")] = "auto",
    method: Annotated[str | None, typer.Option(help="Method of sparse training; by default the preset's.")] = None,
    growth: Annotated[str, typer.Option(help="What growth looks at; 'own' takes the method's own.")] = "window:44",
    redistribute: Annotated[
        str, typer.Option(help="'method', or 'keep': each layer keeps the number of its weights.")
    ] = "method",
    updates: Annotated[
        int, typer.Option(min=0, help="Topology updates before anything is timed: they move weights between layers.")
    ] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples in a step; by default the preset's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for each preset and density, at most.")] = 15,
    seconds: Annotated[float, typer.Option(min=0, help="No new round begins after so many, once there were 3.")] = 60,
    compile_seconds: Annotated[
        float, typer.Option(min=0, help="How long torch.compile may take, for each precision; 0: not at all.")
    ] = 300,
    peaks: Annotated[
        bool, typer.Option(help="Also the peak memory of each contender, in some more steps in processes of their own.")
    ] = True,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="JSON file with all figures; run again, it goes on with it.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")] = None,
    plot: Plot = None,
) -> None:
    """Time whole training steps of sparse networks beside dense ones, topology updates included."""
    with one_line_errors():
        if threads is not None:
            torch.set_num_threads(threads)
        settings = Settings(
            backend, batch, method, None if growth == "own" else growth, rounds, seconds, compile_seconds,
            peers=tuple(PEERS) if peers else (), peaks=peaks, redistribute=redistribute,
            updates=updates,
        )  # fmt: skip
        given = _checked(parse_densities(densities)) if densities else ()
        configs = step_configs(presets or (), given, settings)
        report = StepReport(describe(), settings)
        report = STEP_FILE.resumed(report, out) if out else report
        line(str(report.machine))
        try:
            run_steps(report, configs, out=out, progress=_StepProgress())
        except WrongResultError as error:
            say(str(error))
            raise typer.Exit(1) from None
        except ValueError as error:
            raise UserError(str(error)) from error
        _show_steps([report], markdown_file, plot)


@bench_app.command("accuracy")
def accuracy(
    preset: Annotated[str, typer.Argument(help="Name of a preset; `regrow presets` lists them.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs, tables and plot; run again, it goes on.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs; every schedule scales with them.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 2,
    density: Annotated[
        float | None, typer.Option(help="Share of the weights that exist; the preset's if left out.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method of sparse training; by default the preset's.")] = None,
    backend: Annotated[str, typer.Option(help="Storage of the sparse weights: masked or cpu.")] = "cpu",
    growth: Annotated[str, typer.Option(help="What growth looks at; 'own' takes the method's own.")] = "window:44",
    accuracies: Annotated[
        str, typer.Option(help="Accuracies as 0.5,0.8; by default some that every run reaches.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="REGROW_DATA", help="Folder with the data sets, or the one data set."),
    ] = None,
    threads: Threads = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting.")] = None,
) -> None:
    """Train dense and sparse with the same budget, and tell when each reaches which accuracy."""
    with one_line_errors():
        if threads is not None:
            torch.set_num_threads(threads)
        named = {"epochs": epochs, "density": density, "method": method, "backend": backend}
        changes = {name: value for name, value in named.items() if value is not None}
        changes |= {} if growth == "own" else {"growth": growth}
        base = override(find_preset(preset), {**changes, **parse_settings(settings or [])})
        check_method(base.method)
        wanted = parse_numbers(accuracies, "--accuracies") if accuracies else ()
        for table in bench_accuracy(base, seeds, out, accuracies=wanted, data_root=data, console=ERR):
            _print(table)
        line(f"curves: {out / 'accuracy.png'}")


@bench_app.command("compare")
def compare_revisions(
    first: Annotated[str, typer.Argument(help="A revision that git knows.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    network: Network = None,
    layers: Layers = "",
    densities: Densities = "0.02,0.05,0.1,0.2",
    rounds: Annotated[int, typer.Option(min=3, help="How often each pass runs in each revision.")] = 9,
    threads: Threads = None,
    repository: Annotated[Path, typer.Option(help="A folder in the repository of both revisions.")] = Path(),
) -> None:
    """Time the kernels of two git revisions in turn; each is built into a temporary folder."""
    with one_line_errors():
        table = compare(
            (first, second),
            shapes(network or (), layers),
            _checked(parse_densities(densities)),
            rounds=rounds,
            threads=threads or torch.get_num_threads(),
            repository=repository,
            say=lambda text: ERR.print(text, markup=False, highlight=False),
        )
        line(str(describe()))
        _print(table)


class _Progress:
    """A line on the terminal while a row is measured, and one that stays after it."""

    def begin(self, shape: Shape, density: float, done: int, count: int) -> None:
        if ERR.is_terminal:
            ERR.print(f"{done}/{count}  {shape.network} {shape} at {density:.3g} ...", end="\r", highlight=False)

    def end(self, row: Row) -> None:
        ERR.print(sentence(row), markup=False, highlight=False, soft_wrap=True)


class _StepProgress:
    """A line on the terminal while a row is measured, and one that stays after it."""

    def begin(self, config: TrainConfig, done: int, count: int) -> None:
        if ERR.is_terminal:
            ERR.print(f"{done}/{count}  {config.preset} at {config.density:.3g} ...", end="\r", highlight=False)

    def end(self, row: StepRow) -> None:
        ERR.print(train_tables.sentence(row), markup=False, highlight=False, soft_wrap=True)


def _checked(densities: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 < density <= 1 for density in densities):
        raise UserError(f"densities must lie in (0, 1], not {', '.join(f'{density:g}' for density in densities)}")
    return densities


def _show(report: Report, markdown_file: Path | None) -> None:
    for table in tables(report):
        _print(table)
    if markdown_file:
        command = shlex.join(["regrow", *sys.argv[1:]])
        write_text(markdown_file, markdown(report, command))


def _show_steps(reports: Sequence[StepReport], markdown_file: Path | None, plot: Path | None) -> None:
    rows = [row for report in reports for row in report.rows]
    for table in train_tables.tables(rows):
        _print(table)
    if markdown_file:
        write_text(markdown_file, train_tables.markdown(reports, shlex.join(["regrow", *sys.argv[1:]])))
    if plot:
        plot_speed(train_tables.speed_points(rows), plot, "Whole training steps, sparse beside dense float32")


def _print(table: Table) -> None:
    shown = rich.table.Table(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in table.rows:
        shown.add_row(*row)
    OUT.print(shown)
