"""`regrow bench processes`."""

from __future__ import annotations

from typing import Annotated

import typer

from regrow.experiments.bench.common import options
from regrow.experiments.bench.common.machine import describe
from regrow.experiments.bench.common.tables import show, this_command
from regrow.experiments.bench.processes.measure import bench_processes, table
from regrow.experiments.files import write_text
from regrow.experiments.options import Settings, read_settings, split_names
from regrow.experiments.terminal import line, one_line_errors
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset

__all__ = ["bench_many_processes"]


def bench_many_processes(
    presets: Annotated[str, typer.Argument(help="Presets, separated by commas.")],
    density: Annotated[float, typer.Option(help="Share of the weights that exist.")] = 0.05,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together on this machine.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Ordinary steps of each kind.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    times: Annotated[bool, typer.Option(help="Show times: only where nothing else runs.")] = True,
    settings: Settings = None,
    markdown_file: options.MarkdownFile = None,
) -> None:
    """Measure what processes that train together send each other in a step, dense, masked and sparse."""
    with one_line_errors():
        options.check_densities((density,))
        changes = read_settings(settings)
        configs = [override(preset(name), changes) for name in split_names(presets)]
        found = table(bench_processes(configs, density, processes, steps, threads), density, processes, times=times)
        options.use_threads(threads)  # as each of the processes has
        machine = f"{describe()}, {processes} processes"
        line(machine)
        show([found])
        if markdown_file:
            write_text(markdown_file, f"{found.markdown()}\n`{this_command()}` on {machine}.\n")
