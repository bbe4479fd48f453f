"""Train a network from its settings: steps, evaluation, checkpoints, and the result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch

from regrow.experiments.errors import StoppedError, UserError
from regrow.experiments.files import lock_folder, remove_left_overs, write_text
from regrow.experiments.train.checkpoint import load_latest, save_checkpoint
from regrow.experiments.train.config import TrainConfig, override, read_config
from regrow.experiments.train.interrupt import StopRequest, catch_stop_signals
from regrow.experiments.train.result import Result, result_of
from regrow.experiments.train.run import Metrics, Run

__all__ = ["MakeRun", "Reporter", "resume_config", "train"]

MakeRun = Callable[[TrainConfig, Path | None], Run]

# Settings that may differ when a run goes on: they do not change what it computes.
_FREE_ON_RESUME = frozenset({"device", "workers", "save_every_seconds", "tensorboard"})
# Steps between looks at the loss, each of which waits for the device.
_CHECK_LOSS_EVERY = 100


class Reporter(Protocol):
    """Something that shows how a run goes."""

    def start(self, run: Run) -> None:
        """Show that the run starts, or goes on."""

    def step(self, run: Run) -> None:
        """Show a step; called after each, so it must be cheap."""

    def epoch(self, run: Run, row: Metrics) -> None:
        """Show the metrics of an epoch."""

    def warn(self, message: str) -> None:
        """Show a warning."""

    def stop(self) -> None:
        """Stop showing, at the end or on an error."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    data_root: Path | None = None,
    reporters: tuple[Reporter, ...] = (),
    make_run: MakeRun = Run,
) -> Result:
    """Train, and write settings, metrics, checkpoints and the result to a folder.

    The folder then holds `config.yaml`, `metrics.jsonl` (one line an epoch), `checkpoints/` and at the end
    `result.json`. A run that was killed and goes on gives the same weights, masks and metrics, bit for bit, as one
    that was not (on the same machine with the same number of threads).

    Args:
        config: the settings.
        out: the folder; without `resume` it must not hold a run yet.
        resume: go on with the run in `out`; a finished one only returns its result.
        data_root: folder with the data sets; None looks in the usual places.
        reporters: what shows the progress.
        make_run: makes the run from settings and `data_root`.

    Returns:
        The contents of `result.json`.

    Raises:
        UserError: if the settings do not fit, or `out` holds another run or one that is under way.
        DivergedError: if the loss is no longer finite.
        SaveError: if a file cannot be written.
        StoppedError: if SIGINT or SIGTERM came; the run is saved.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder: take another --out")
    finished = out / "result.json"
    if resume and finished.exists():
        result: Result = json.loads(finished.read_text())
        return result
    if not resume and (out / "config.yaml").exists():
        kind = "a finished" if finished.exists() else "an unfinished"
        raise UserError(f"{out} holds {kind} run: add --resume to go on with it, or take another --out")

    run = make_run(config, data_root)
    with ExitStack() as stack:
        stack.enter_context(lock_folder(out))
        state, warnings = load_latest(out / "checkpoints") if resume else (None, [])
        if state is not None:
            run.load_state_dict(state)
        remove_left_overs(out)
        write_text(out / "config.yaml", config.to_yaml())
        for reporter in reporters:
            stack.callback(reporter.stop)
            for warning in warnings:
                reporter.warn(warning)
            reporter.start(run)
        stop = stack.enter_context(catch_stop_signals())
        _train_to_end(run, out, reporters, stop)
        result = result_of(run)
        write_text(finished, json.dumps(result, indent=1) + "\n")
    return result


def resume_config(config: TrainConfig, changes: dict[str, Any], out: Path) -> TrainConfig:
    """Return the settings with which the run in `out` goes on: those it was started with.

    Args:
        config: the preset that is asked for now.
        changes: the settings that are asked for now.
        out: folder of the run.

    Raises:
        UserError: if `out` holds no run, or one with other settings than asked for.
    """
    if not (out / "config.yaml").exists():
        raise UserError(f"{out} holds no run to go on with: leave --resume out, or name its folder with --out")
    saved = read_config(out / "config.yaml")
    wanted = override(saved, {**changes, "preset": config.preset})
    for name in TrainConfig.model_fields:
        before, now = getattr(saved, name), getattr(wanted, name)
        if before != now and name not in _FREE_ON_RESUME:
            raise UserError(f"the run in {out} has {name} = {before}, not {now}: take another --out for a new run")
    return wanted


def _train_to_end(run: Run, out: Path, reporters: tuple[Reporter, ...], stop: StopRequest) -> None:
    if run.device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    last_save = time.monotonic()
    _write_metrics(run, out)
    while not run.finished:
        started = time.perf_counter()
        for images, labels in run.data.train.epoch():
            run.train_step(images, labels)
            for reporter in reporters:
                reporter.step(run)
            if run.step % _CHECK_LOSS_EVERY == 0:
                run.train_metrics()
            if stop.signal_number or time.monotonic() - last_save > run.config.save_every_seconds:
                run.seconds += time.perf_counter() - started
                _save(run, out)
                if stop.signal_number:
                    where = f"stopped after step {run.step} of {run.steps} (epoch {run.epoch + 1}), saved"
                    raise StoppedError(where, stop.signal_number)
                last_save, started = time.monotonic(), time.perf_counter()
        run.train_metrics()  # waits for the device, so that the time is that of the steps
        run.seconds += time.perf_counter() - started
        row = run.finish_epoch()
        _write_metrics(run, out)
        for reporter in reporters:
            reporter.epoch(run, row)
    _save(run, out)


def _save(run: Run, out: Path) -> None:
    run.train_metrics()  # a diverged state must not replace a sound one
    save_checkpoint(out / "checkpoints", run.step, run.state_dict())


def _write_metrics(run: Run, out: Path) -> None:
    # Rewritten whole from the run's own rows: what a killed run wrote after its last checkpoint goes.
    write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in run.rows))
