"""`regrow bench`: one line registers a bench; its command lies in its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.experiments.bench.accuracy.command import bench_time_to_accuracy
from regrow.experiments.bench.common import options
from regrow.experiments.bench.layers import command as layers
from regrow.experiments.bench.layers.report import FILE as LAYERS
from regrow.experiments.bench.memory.command import bench_memory_of_a_layer
from regrow.experiments.bench.processes.command import bench_many_processes
from regrow.experiments.bench.steps import command as steps
from regrow.experiments.bench.steps.report import FILE as STEPS
from regrow.experiments.errors import UserError
from regrow.experiments.terminal import line, one_line_errors

__all__ = ["bench_app"]

bench_app = typer.Typer(help="Measure sparse layers beside dense ones and other libraries.", no_args_is_help=True)


def show(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="JSON of `bench layers`, or one or several of `bench train`."),
    ],
    markdown_file: options.MarkdownFile = None,
    plot: options.Plot = None,
) -> None:
    """Show the tables of earlier measurements; those of training steps in several files become one."""
    with one_line_errors():
        if not STEPS.holds(files[0]):
            report = LAYERS.load(files[0])
            if len(files) > 1 or plot:
                raise UserError("only measurements of training steps are shown together, or drawn: give those")
            line(f"{report.machine}; {report.rates}")
            layers.show_report(report, markdown_file)
            return
        reports = [STEPS.load(file) for file in files]
        for file, each in zip(files, reports, strict=True):
            if each.machine != reports[0].machine:
                raise UserError(
                    f"{file} was measured with {each.machine}, and {files[0]} with {reports[0].machine}: "
                    "show them one by one"
                )
        line(str(reports[0].machine))
        steps.show_reports(reports, markdown_file, plot)


bench_app.command("layers")(layers.bench_layers)
bench_app.command("train")(steps.bench_train)
bench_app.command("overhead")(steps.bench_overhead)
bench_app.command("accuracy")(bench_time_to_accuracy)
bench_app.command("memory")(bench_memory_of_a_layer)
bench_app.command("processes")(bench_many_processes)
bench_app.command("compare")(layers.compare_revisions)
bench_app.command("show")(show)
