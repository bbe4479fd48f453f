"""`regrow study`: one line registers a study; its command follows from its description."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from regrow.experiments.options import DataRoot, Epochs, Preset, Seeds, Settings, read_settings, split_names
from regrow.experiments.study.adam import AdamSettings, run_adam_study
from regrow.experiments.study.compute import COMPUTE_STUDY
from regrow.experiments.study.growth import GROWTH_STUDY
from regrow.experiments.study.methods import DENSITY_STUDY, METHODS_STUDY
from regrow.experiments.study.mnist import PARTS, run_part, write_page
from regrow.experiments.study.study import Study, run_study
from regrow.experiments.study.units import UNITS_STUDY
from regrow.experiments.terminal import ERR, OUT, one_line_errors
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset as find_preset

__all__ = ["STUDIES", "command_of", "study_app"]

STUDIES = (DENSITY_STUDY, METHODS_STUDY, GROWTH_STUDY, UNITS_STUDY, COMPUTE_STUDY)
"""Every study that is a command of its own."""

study_app = typer.Typer(help="Many runs, resumable, one table and one plot.", no_args_is_help=True)

_Out = Annotated[Path, typer.Option(help="Folder of the study; run again, it goes on where it was.")]
_Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time, each with its share of the cores.")]


def command_of(study: Study) -> Callable[..., None]:
    """Return the command of a study: the options that all have, and one for each of its axes."""

    def command(**given: Any) -> None:
        with one_line_errors():
            changes = read_settings(given["settings"])
            if given["epochs"] is not None:
                changes["epochs"] = given["epochs"]
            base = override(find_preset(given["preset"]), changes)
            values = {axis.name: axis.parse(given[axis.option]) for axis in study.axes}
            where = {"data_root": given["data"], "jobs": given["jobs"], "console": ERR}
            OUT.print(run_study(study, base, values, range(given["seeds"]), given["out"], **where))

    empty = Parameter.empty
    own = [(axis.option, axis.default, Annotated[str, typer.Option(help=axis.help)]) for axis in study.axes]
    options: list[tuple[str, Any, Any]] = [
        *(("preset", empty, Preset), ("out", empty, _Out), *own, ("seeds", 3, Seeds), ("epochs", None, Epochs)),
        *(("data", None, DataRoot), ("jobs", 1, _Jobs), ("settings", None, Settings)),
    ]
    kind = Parameter.POSITIONAL_OR_KEYWORD
    # typer reads a command's options from its signature and its annotations
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, kind, default=default, annotation=option) for name, default, option in options]
    )
    command.__annotations__ = {name: option for name, _, option in options}
    return command


def _mnist(
    part: Annotated[str, typer.Option(help=f"{', '.join(PARTS)}, or `page`, which shows what is finished.")],
    out: _Out,
    seeds: Seeds = 3,
    data: DataRoot = None,
    jobs: _Jobs = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    page: Annotated[Path, typer.Option(help="The page that `--part page` writes, its plot beside it.")] = Path(
        "docs/results/mnist.md"
    ),
) -> None:
    """Run a part of the paper's studies on MNIST, or write the page of all."""
    with one_line_errors():
        if part == "page":
            write_page(out, page)
        else:
            OUT.print(run_part(part, seeds, out, device=device, data_root=data, jobs=jobs, console=ERR))


def _adam(
    out: _Out,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "rigl,set",
    states: Annotated[str, typer.Option(help="Optimizer states of grown weights: zero, warm, keep.")] = "zero,warm",
    seeds: Seeds = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a run.")] = AdamSettings.steps,
    every: Annotated[int, typer.Option(min=1, help="Steps between updates.")] = AdamSettings.every,
    density: Annotated[float, typer.Option(help="Nonzeros over all sparse weights.")] = AdamSettings.density,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up.")] = AdamSettings.learning_rate,
    data: DataRoot = None,
) -> None:
    """Show the loss of a small transformer around updates: grown weights whose AdamW state starts at zero or warm."""
    with one_line_errors():
        settings = AdamSettings(steps=steps, every=every, density=density, learning_rate=learning_rate)
        names = split_names(methods), split_names(states)
        run_adam_study(settings, *names, range(seeds), out, data_root=data, console=OUT)


for _study in STUDIES:
    study_app.command(_study.name, help=_study.about)(command_of(_study))
study_app.command("mnist")(_mnist)
study_app.command("adam")(_adam)
