"""`regrow bench memory`."""

from __future__ import annotations

from typing import Annotated

import typer

from regrow.experiments.bench.common import options
from regrow.experiments.bench.common.machine import describe
from regrow.experiments.bench.common.tables import show
from regrow.experiments.bench.memory.linear import KINDS, Problem, bench_memory
from regrow.experiments.files import write_text
from regrow.experiments.options import split_names
from regrow.experiments.terminal import line, one_line_errors

__all__ = ["bench_memory_of_a_layer"]


def bench_memory_of_a_layer(
    size: Annotated[int, typer.Option(min=1, help="Inputs and outputs of the layer.")] = 8192,
    density: Annotated[float, typer.Option(help="Share of the weights that exist.")] = 0.05,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 128,
    kinds: Annotated[str, typer.Option(help="What to measure beside dense, separated by commas.")] = ",".join(KINDS),
    out: options.Out = None,
    markdown_file: options.MarkdownFile = None,
) -> None:
    """Measure what training a linear layer holds: tensors, and the peak of a process of its own."""
    with one_line_errors():
        options.check_densities((density,))
        table = bench_memory(Problem(size, density, batch), split_names(kinds), out)
        line(str(describe()))
        show([table])
        if markdown_file:
            write_text(markdown_file, table.markdown())
