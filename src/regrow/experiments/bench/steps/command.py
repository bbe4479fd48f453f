"""`regrow bench train` and `regrow bench overhead`: whole training steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from regrow.experiments.bench.common import options
from regrow.experiments.bench.common.machine import describe
from regrow.experiments.bench.common.progress import RowProgress
from regrow.experiments.bench.common.tables import show, this_command
from regrow.experiments.bench.steps import overhead
from regrow.experiments.bench.steps.estimate import LARGEST_PUBLISHED
from regrow.experiments.bench.steps.measure import run
from regrow.experiments.bench.steps.peer_networks import PEERS
from regrow.experiments.bench.steps.report import FILE, Report, Settings, step_configs
from regrow.experiments.bench.steps.tables import FLOAT32_PANEL, markdown, sentence, speed_points, tables
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.plots import plot_speed
from regrow.experiments.terminal import line, one_line_errors

__all__ = ["bench_overhead", "bench_train", "show_reports"]


def bench_train(
    presets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET]...", help="Presets; by default the six of the README's first table."),
    ] = None,
    densities: Annotated[str, typer.Option(help="Densities, separated by commas; by default each preset's own.")] = "",
    peers: Annotated[
        bool, typer.Option("--peers", help="Also sparseprop, where installed, in static training.")
    ] = False,
    backend: options.Backend = "auto",
    all_sparse: Annotated[
        bool, typer.Option("--all-sparse", help="Beside it, in the same rounds: backend=cpu, growth=window:22.")
    ] = False,
    blocks: options.Blocks = "",
    method: options.Method = None,
    growth: options.Growth = "own",
    redistribute: Annotated[
        str, typer.Option(help="'method', or 'keep': each layer keeps the number of its weights.")
    ] = "method",
    compute: Annotated[
        float | None,
        typer.Option(help="Bound on the multiply-adds of sparse momentum, times those of a uniform spread."),
    ] = None,
    updates: Annotated[
        int, typer.Option(min=0, help="Topology updates before anything is timed: they move weights between layers.")
    ] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples in a step; by default the preset's.")] = None,
    rounds: options.Rounds = 15,
    seconds: options.Seconds = 60,
    compile_seconds: Annotated[
        float, typer.Option(min=0, help="How long torch.compile may take, for each precision; 0: not at all.")
    ] = 300,
    bfloat16: Annotated[bool, typer.Option(help="Also dense in bfloat16, slow without instructions for it.")] = True,
    sparse_bfloat16: Annotated[
        bool, typer.Option("--sparse-bfloat16", help="Beside each sparse one, in the same rounds: in bfloat16.")
    ] = False,
    peaks: Annotated[
        bool, typer.Option(help="Also the peak memory of each contender, in some more steps in processes of their own.")
    ] = True,
    threads: options.Threads = None,
    out: options.Out = None,
    markdown_file: options.MarkdownFile = None,
    plot: options.Plot = None,
) -> None:
    """Time whole training steps of sparse networks beside dense ones, topology updates included."""
    with one_line_errors():
        options.use_threads(threads)
        settings = Settings(
            backend, batch, method, options.read_growth(growth), rounds, seconds, compile_seconds,
            peers=tuple(PEERS) if peers else (), peaks=peaks, redistribute=redistribute, compute=compute,
            updates=updates, all_sparse=all_sparse, blocks=options.read_blocks(blocks), bfloat16=bfloat16,
            sparse_bfloat16=sparse_bfloat16,
        )  # fmt: skip
        given = options.read_densities(densities) if densities else ()
        configs = step_configs(presets or (), given, settings)
        report = Report(describe(), settings)
        report = FILE.resumed(report, out) if out else report
        line(str(report.machine))
        try:
            run(report, configs, out=out, progress=RowProgress(sentence))
        except ValueError as error:
            raise UserError(str(error)) from error
        show_reports([report], markdown_file, plot)


def bench_overhead(
    presets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET]...", help=f"Presets; by default {', '.join(overhead.PRESETS)}."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each, in turn.")] = 15,
    threads: options.Threads = None,
    markdown_file: options.MarkdownFile = None,
) -> None:
    """Time steps of masked sparse training beside dense ones: what masks and updates cost."""
    with one_line_errors():
        options.use_threads(threads)
        machine = describe()
        line(str(machine))
        rows = [overhead.measure(name, rounds) for name in presets or overhead.PRESETS]
        show([overhead.table(rows)])
        if markdown_file:
            write_text(markdown_file, overhead.page(rows, machine, this_command()))


def show_reports(reports: Sequence[Report], markdown_file: Path | None, plot: Path | None) -> None:
    """Print measurements of one machine as one set of tables; write them as Markdown and draw them where asked."""
    rows = [row for report in reports for row in report.rows]
    show(tables(rows))
    if markdown_file:
        write_text(markdown_file, markdown(reports, this_command()))
    if plot:
        presets = {row.preset for row in rows}
        of = f" of {rows[0].preset}" if len(presets) == 1 else ""
        # what they estimated is of networks for CIFAR-10
        mark = (f"the paper's largest estimate, {LARGEST_PUBLISHED:g}x", LARGEST_PUBLISHED)
        marks = {FLOAT32_PANEL: mark} if all(name.startswith("cifar10-") for name in presets) else {}
        plot_speed(speed_points(rows), plot, f"Training steps{of}, topology updates included", marks)
