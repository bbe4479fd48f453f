"""`regrow study`: one line registers a study; its command follows from its description."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from regrow.experiments import processes
from regrow.experiments.bench.common.tables import show
from regrow.experiments.options import (
    DataRoot,
    Epochs,
    Seeds,
    Settings,
    Vary,
    read_settings,
    read_varied,
    split_names,
)
from regrow.experiments.study.ablation import ABLATION_STUDY
from regrow.experiments.study.adam import AdamSettings, run_adam_study
from regrow.experiments.study.compute import COMPUTE_STUDY
from regrow.experiments.study.density import DENSITY_STUDY
from regrow.experiments.study.execute import Finished, bases_of, run_study
from regrow.experiments.study.features import FEATURES_STUDY
from regrow.experiments.study.growth import GROWTH_STUDY
from regrow.experiments.study.methods import METHODS_STUDY
from regrow.experiments.study.mnist import PARTS, run_part, write_page
from regrow.experiments.study.sensitivity import SENSITIVITY_STUDY
from regrow.experiments.study.study import Study
from regrow.experiments.study.units import UNITS_STUDY
from regrow.experiments.terminal import ERR, OUT, one_line_errors, say
from regrow.experiments.train.config import WAIT_SECONDS, override
from regrow.experiments.train.presets import preset as find_preset

__all__ = ["STUDIES", "command_of", "study_app"]

STUDIES = (
    DENSITY_STUDY,
    METHODS_STUDY,
    ABLATION_STUDY,
    SENSITIVITY_STUDY,
    FEATURES_STUDY,
    GROWTH_STUDY,
    UNITS_STUDY,
    COMPUTE_STUDY,
)
"""Every study that is a command of its own."""

study_app = typer.Typer(help="Many runs, resumable, one table and one plot.", no_args_is_help=True)

_Out = Annotated[Path, typer.Option(help="Folder of the study; run again, it goes on where it was.")]
_Presets = Annotated[str, typer.Argument(help="Name of a preset, or several, separated by commas.")]
_Jobs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at a time, each with its share of the cores; as many as there are cores if left out."
    ),
]


def command_of(study: Study) -> Callable[..., None]:
    """Return the command of a study: the options that all have, and one for each of its axes."""

    def command(**given: Any) -> None:
        with one_line_errors():
            changes = read_settings(given["settings"])
            if given["epochs"] is not None:
                changes["epochs"] = given["epochs"]
            presets = [override(find_preset(name), changes) for name in split_names(given["preset"])]
            bases = bases_of(presets, read_varied(given["vary"]))
            values = {axis.name: axis.parse(given[axis.option]) for axis in study.axes}
            where = {"data_root": given["data"], "jobs": given["jobs"], "console": ERR, "command": _call(study, given)}
            with processes.joined(presets[0].wait_seconds):
                finished = run_study(study, bases, values, range(given["seeds"]), given["out"], **where)
            _finish(finished)

    empty = Parameter.empty
    own = [(axis.option, axis.default, Annotated[str, typer.Option(help=axis.help)]) for axis in study.axes]
    options: list[tuple[str, Any, Any]] = [
        *(("preset", empty, _Presets), ("out", empty, _Out), *own, ("seeds", 3, Seeds), ("epochs", None, Epochs)),
        *(("data", None, DataRoot), ("jobs", None, _Jobs), ("settings", None, Settings), ("vary", None, Vary)),
    ]
    kind = Parameter.POSITIONAL_OR_KEYWORD
    # typer reads a command's options from its signature and its annotations
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, kind, default=default, annotation=option) for name, default, option in options]
    )
    command.__annotations__ = {name: option for name, _, option in options}
    return command


def _call(study: Study, given: Mapping[str, Any]) -> str:
    """Return the command that makes a study, with what decides its results."""
    words = ["regrow", "study", study.name, given["preset"], "--out", str(given["out"])]
    for axis in study.axes:
        words += [f"--{axis.option}", given[axis.option]]
    words += ["--seeds", str(given["seeds"])]
    words += [] if given["epochs"] is None else ["--epochs", str(given["epochs"])]
    for option, name in (("--set", "settings"), ("--vary", "vary")):
        words += [word for setting in given[name] or () for word in (option, setting)]
    return shlex.join(words)


def _finish(finished: Finished) -> None:
    """Show what a study has found, and end with an error if a run failed."""
    show(finished.tables)
    if finished.failures:
        count = len(finished.failures)
        named = ", ".join(finished.failures)
        say(f"{count} run{'s' if count > 1 else ''} failed: {named}; the same command tries again")
        raise typer.Exit(1)


def _mnist(
    part: Annotated[str, typer.Option(help=f"{', '.join(PARTS)}, or `page`, which shows what is finished.")],
    out: _Out,
    seeds: Seeds = 3,
    data: DataRoot = None,
    jobs: _Jobs = None,
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
            with processes.joined(WAIT_SECONDS):
                finished = run_part(part, seeds, out, device=device, data_root=data, jobs=jobs, console=ERR)
            _finish(finished)


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
