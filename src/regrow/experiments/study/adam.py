"""The loss around updates with an Adam-type optimizer, by what the optimizer's state of grown weights starts at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import regrow
from regrow.core.recipe import ResetState
from regrow.experiments.errors import UserError
from regrow.experiments.files import lock_folder, write_text
from regrow.experiments.study.intervals import interval
from regrow.experiments.study.language import Text, Transformer, read_text
from regrow.experiments.study.plots import plot_around_updates
from regrow.methods import METHODS

__all__ = ["AdamSettings", "around_updates", "run_adam_study", "train_transformer"]

_AROUND = 20
_SHOWN = (-20, -10, -5, -1, 0, 1, 2, 3, 5, 10, 20)
_VALID_BATCHES = 50

Losses = Mapping[str, Any]
"""What is kept of a run: `losses` of each step, `updates` (steps that carried one out), and `valid` at its end."""


@dataclass(frozen=True)
class AdamSettings:
    """How the transformer is trained.

    Attributes:
        steps: optimizer steps.
        every: steps between updates.
        density: nonzeros over all sparse weights.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps over which the rate rises.
        batch_size: pieces of text in a step.
        context: characters of each.
    """

    steps: int = 2_000
    every: int = 50
    density: float = 0.1
    learning_rate: float = 2e-3
    warmup: int = 100
    batch_size: int = 32
    context: int = 32


def train_transformer(settings: AdamSettings, method: str, reset_state: ResetState, seed: int, text: Text) -> Losses:
    """Train the transformer, sparse from the first step, and return its losses.

    Runs of one seed start from the same weights and see the same batches.

    Args:
        settings: of the training.
        method: name of the method.
        reset_state: `Recipe.reset_state`.
        seed: of weights, topology and batches.
        text: what to train on.
    """
    torch.manual_seed(seed)
    recipe = replace(METHODS[method](every=settings.every, steps=settings.steps), reset_state=reset_state)
    model = Transformer(text.characters, settings.context)
    model = regrow.sparsify(model, settings.density, distribution=recipe.distribution, backend="masked", seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    losses: list[float] = []
    updates: list[int] = []
    regrow.TopologyUpdater(model, optimizer, recipe, seed=seed, on_update=lambda _, __: updates.append(len(losses)))
    generator = torch.Generator().manual_seed(seed)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / settings.warmup)
        optimizer.zero_grad()
        loss = _loss(model, text.train, settings, generator)
        loss.backward()  # type: ignore[no-untyped-call]  # in PyTorch's stubs
        losses.append(loss.item())
        optimizer.step()
    model.eval()
    held_out = torch.Generator().manual_seed(0)
    with torch.no_grad():
        valid = mean(_loss(model, text.valid, settings, held_out).item() for _ in range(_VALID_BATCHES))
    return {"losses": losses, "updates": updates, "valid": valid}


def around_updates(losses: Sequence[float], updates: Sequence[int], around: int = _AROUND) -> list[float]:
    """Return the mean loss at each of the steps around updates, over that of the steps before each.

    Args:
        losses: of every step.
        updates: for each update the number of losses before it: `losses[update]` is the first that sees it.
        around: steps before and after.

    Returns:
        One number for each of the steps from `-around` to `around`; step 0 is the first that sees the update.

    Raises:
        UserError: if there is no update with so many steps around it.

    Example:
        >>> around_updates([2.0, 2.0, 5.0, 3.0, 2.0], [2], around=2)
        [0.0, 0.0, 3.0, 1.0, 0.0]
    """
    windows = [
        losses[update - around : update + around + 1] for update in updates if around <= update < len(losses) - around
    ]
    if not windows:
        raise UserError(f"no update has {around} steps before and after it: take more --steps")
    before = [mean(window[:around]) for window in windows]
    over = [[loss - level for loss in window] for window, level in zip(windows, before, strict=True)]
    return [mean(column) for column in zip(*over, strict=True)]


def run_adam_study(
    settings: AdamSettings,
    methods: Sequence[str],
    states: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    data_root: Path | None = None,
    console: Console | None = None,
) -> str:
    """Train what is missing, write `table.md` and `around.png`, and return the table.

    Args:
        settings: of each training.
        methods: names of methods.
        states: what `Recipe.reset_state` is.
        seeds: one run for each.
        out: folder of the study; finished runs in it stay.
        data_root: folder with the data sets.
        console: where to say which run is finished.

    Raises:
        UserError: if there is no such method or state, the text is not there, or `out` holds a study with other
            settings.
    """
    _require_known("method", methods, [name for name in METHODS if name != "static"])
    _require_known("state", states, get_args(ResetState))
    runs: dict[tuple[str, str], list[Losses]] = {}
    with lock_folder(out):
        text = Text.of(read_text(data_root))
        for method in methods:
            for state in states:
                runs[method, state] = [_run(settings, method, state, seed, text, out, console) for seed in seeds]
        table = _table(runs, methods, states)
        write_text(out / "table.md", table)
        _plot(runs, methods, states, out / "around.png")
    if console is not None:
        console.print(table, markup=False, highlight=False, soft_wrap=True)
    return table


def _run(
    settings: AdamSettings, method: str, state: str, seed: int, text: Text, out: Path, console: Console | None
) -> Losses:
    path = out / f"{method}-{state}-seed{seed}.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["settings"] != asdict(settings):
            raise UserError(f"{path} is of other settings, {known['settings']}: take another --out")
        losses: Losses = known["losses"]
        return losses
    losses = train_transformer(settings, method, state, seed, text)  # type: ignore[arg-type]  # checked before
    write_text(path, json.dumps({"settings": asdict(settings), "losses": losses}) + "\n")
    if console is not None:
        console.print(f"{path.stem}: validation loss {losses['valid']:.4f}", highlight=False, soft_wrap=True)
    return losses


def _loss(model: torch.nn.Module, text: Tensor, settings: AdamSettings, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - settings.context, (settings.batch_size, 1), generator=generator)
    pieces = text[starts + torch.arange(settings.context + 1)]
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def _require_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"there is no {what} {name!r}: choose among {', '.join(known)}")


def _with_error(values: Sequence[float]) -> str:
    """Return mean and standard error, which one value does not have."""
    return interval(values).text(3)


def _table(runs: Mapping[tuple[str, str], list[Losses]], methods: Sequence[str], states: Sequence[str]) -> str:
    """Return Markdown tables: the loss around updates, and losses at the end."""
    curves = {key: [around_updates(run["losses"], run["updates"]) for run in of] for key, of in runs.items()}
    lines = []
    for method in methods:
        lines += [f"{method}:", "", f"| step | {' | '.join(states)} | {states[0]} - {states[-1]} |"]
        lines.append("|---" * (len(states) + 2) + "|")
        for step in _SHOWN:
            values = {state: [curve[step + _AROUND] for curve in curves[method, state]] for state in states}
            apart = [a - b for a, b in zip(values[states[0]], values[states[-1]], strict=True)]
            cells = [*(_with_error(values[state]) for state in states), _with_error(apart)]
            lines.append(f"| {step:+d} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| method | state | training loss, last 200 steps | validation loss |", "|---" * 4 + "|"]
    for (method, state), of in runs.items():
        ends = _with_error([mean(run["losses"][-200:]) for run in of]), _with_error([run["valid"] for run in of])
        lines.append(f"| {method} | {state} | {' | '.join(ends)} |")
    return "\n".join(lines) + "\n"


def _plot(
    runs: Mapping[tuple[str, str], list[Losses]], methods: Sequence[str], states: Sequence[str], path: Path
) -> None:
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for method in methods:
        for state in states:
            seeds = [around_updates(run["losses"], run["updates"]) for run in runs[method, state]]
            found = [interval(column) for column in zip(*seeds, strict=True)]
            curves.setdefault(method, {})[state] = (
                [each.mean for each in found],
                [each.error if each.count > 1 else 0.0 for each in found],
            )
    plot_around_updates(curves, range(-_AROUND, _AROUND + 1), path)
