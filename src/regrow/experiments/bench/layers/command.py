"""`regrow bench layers` and `regrow bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from regrow.experiments.bench.common import options
from regrow.experiments.bench.common.machine import describe
from regrow.experiments.bench.common.progress import RowProgress
from regrow.experiments.bench.common.tables import show, this_command
from regrow.experiments.bench.layers import compare
from regrow.experiments.bench.layers.contenders import BFLOAT16, CSR
from regrow.experiments.bench.layers.peers import peers as find_peers
from regrow.experiments.bench.layers.rates import measure_rates
from regrow.experiments.bench.layers.report import FILE, Report, Settings, run
from regrow.experiments.bench.layers.shapes import NETWORKS, shapes
from regrow.experiments.bench.layers.tables import markdown, sentence, tables
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.terminal import ERR, line, one_line_errors, say

__all__ = ["bench_layers", "compare_revisions", "show_report"]

_Network = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help=f"Only layers of this network: {', '.join(NETWORKS)}.")
]
_Layers = Annotated[str, typer.Option(metavar="TEXT", help="Only layers whose line holds this, as 'vgg16-d 512-512'.")]


def bench_layers(
    peers: Annotated[bool, typer.Option("--peers", help="Also sparseprop and sparselab, where installed.")] = False,
    network: _Network = None,
    layers: _Layers = "",
    densities: options.Densities = "0.01,0.02,0.05,0.1,0.2,0.3",
    blocks: options.Blocks = "",
    rounds: options.Rounds = 15,
    seconds: options.Seconds = 10,
    threads: options.Threads = None,
    only_dense: Annotated[bool, typer.Option("--only-dense", help="Beside float32 dense alone.")] = False,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Time of the processor instead of the wall: one thread, busy machine.")
    ] = False,
    out: options.Out = None,
    markdown_file: options.MarkdownFile = None,
) -> None:
    """Check every layer against dense, then time it: forward, input gradient, weight gradient."""
    with one_line_errors():
        options.use_threads(threads)
        if cpu_time and torch.get_num_threads() > 1:
            raise UserError("--cpu-time adds up the time of all threads, so it wants one alone: give --threads 1")
        found, missing = find_peers() if peers else ([], {})
        rivals = [*([] if only_dense else [BFLOAT16, CSR]), *found]
        clock = "processor" if cpu_time else "wall"
        units = options.read_blocks(blocks)
        settings = Settings(rounds, seconds, clock, tuple(rival.name for rival in rivals), units)
        chosen, values = shapes(network or (), layers), options.read_densities(densities)
        machine = describe(tuple(rival.name for rival in found))
        for name, reason in missing.items():
            say(f"{name} {reason}")
        report = Report(machine, measure_rates(settings.read_clock), settings, missing)
        report = FILE.resumed(report, out) if out else report
        line(f"{machine}; {report.rates}")
        run(report, chosen, values, rivals, out=out, progress=RowProgress(sentence))
        show_report(report, markdown_file)


def compare_revisions(
    first: Annotated[str, typer.Argument(help="A revision that git knows.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    network: _Network = None,
    layers: _Layers = "",
    densities: options.Densities = "0.02,0.05,0.1,0.2",
    rounds: Annotated[int, typer.Option(min=3, help="How often each pass runs in each revision.")] = 9,
    threads: options.Threads = None,
    repository: Annotated[Path, typer.Option(help="A folder in the repository of both revisions.")] = Path(),
) -> None:
    """Time the kernels of two git revisions in turn; each is built into a temporary folder."""
    with one_line_errors():
        table = compare.compare(
            (first, second),
            shapes(network or (), layers),
            options.read_densities(densities),
            rounds=rounds,
            threads=threads or torch.get_num_threads(),
            repository=repository,
            say=lambda text: ERR.print(text, markup=False, highlight=False),
        )
        line(str(describe()))
        show([table])


def show_report(report: Report, markdown_file: Path | None) -> None:
    """Print the tables of a measurement, and write them as Markdown if a file is given."""
    show(tables(report))
    if markdown_file:
        write_text(markdown_file, markdown(report, this_command()))
