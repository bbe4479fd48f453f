"""`regrow bench`: parses arguments, measures, shows tables."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import rich.table
import torch
import typer

from regrow.experiments.bench.compare import compare
from regrow.experiments.bench.contenders import BFLOAT16, CSR
from regrow.experiments.bench.machine import describe, measure_rates
from regrow.experiments.bench.measure import Row, WrongResultError
from regrow.experiments.bench.memory import KINDS, Problem, bench_memory
from regrow.experiments.bench.peers import peers as find_peers
from regrow.experiments.bench.problem import Shape
from regrow.experiments.bench.run import Report, Settings, load, resumed, run
from regrow.experiments.bench.shapes import NETWORKS, shapes
from regrow.experiments.bench.tables import Table, markdown, sentence, tables
from regrow.experiments.bench.train import NETWORKS as STEP_NETWORKS
from regrow.experiments.bench.train import steps_table, time_steps
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.terminal import ERR, OUT, line, one_line_errors, parse_densities, say

bench_app = typer.Typer(help="Measure sparse layers beside dense ones and other libraries.", no_args_is_help=True)

Network = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help=f"Only layers of this network: {', '.join(NETWORKS)}.")
]
Layers = Annotated[str, typer.Option(metavar="TEXT", help="Only layers whose line holds this, as 'vgg16-d 512-512'.")]
Densities = Annotated[str, typer.Option(help="Shares of the weights that exist, separated by commas.")]
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
        settings = Settings(rounds, seconds, "processor" if cpu_time else "wall", tuple(rival.name for rival in rivals))
        chosen, values = shapes(network or (), layers), _checked(parse_densities(densities))
        machine = describe(tuple(rival.name for rival in found))
        for name, reason in missing.items():
            say(f"{name} {reason}")
        report = Report(machine, measure_rates(settings.read_clock), settings, missing)
        report = resumed(report, out) if out else report
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
    file: Annotated[Path, typer.Argument(help="JSON file of `regrow bench layers`.")],
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")] = None,
) -> None:
    """Show the tables of an earlier measurement."""
    with one_line_errors():
        report = load(file)
        line(f"{report.machine}; {report.rates}")
        _show(report, markdown_file)


@bench_app.command("train")
def train(
    network: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"One or more of {', '.join(STEP_NETWORKS)}.")
    ] = None,
    densities: Densities = "0.02,0.05,0.1,0.2",
    backend: Annotated[str, typer.Option(help="Storage of the sparse weights: auto, masked or cpu.")] = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Samples in a step; by default the network's own.")] = None,
    batch_last: Annotated[
        bool, typer.Option("--batch-last/--no-batch-last", help="Norms and pools follow the layout of sparse layers.")
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for each network and density, at most.")] = 15,
    seconds: Annotated[float, typer.Option(min=0, help="No new round begins after so many, once there were 3.")] = 30,
    threads: Threads = None,
) -> None:
    """Time whole training steps of sparse networks beside dense ones."""
    with one_line_errors():
        if threads is not None:
            torch.set_num_threads(threads)
        if unknown := set(network or ()) - set(STEP_NETWORKS):
            raise UserError(f"no network is called {', '.join(unknown)}; there are {', '.join(STEP_NETWORKS)}")
        rows = []
        for density in _checked(parse_densities(densities)):
            for name in network or STEP_NETWORKS:
                try:
                    row = time_steps(
                        name,
                        density,
                        batch=batch,
                        backend=backend,
                        batch_last=batch_last,
                        rounds=rounds,
                        seconds=seconds,
                    )
                except ValueError as error:
                    raise UserError(str(error)) from error
                rows.append(row)
                text = f"{name} at {density:.3g}: {row.dense.median:.1f} ms dense, {row.own.median:.1f} ms {backend}"
                ERR.print(text, markup=False, highlight=False)
        line(str(describe()))
        _print(steps_table(rows, backend))


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


def _print(table: Table) -> None:
    shown = rich.table.Table(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in table.rows:
        shown.add_row(*row)
    OUT.print(shown)
