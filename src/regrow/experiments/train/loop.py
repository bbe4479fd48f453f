"""Train a network from its settings: steps, evaluation, checkpoints, and the result."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch

from regrow.experiments import processes
from regrow.experiments.errors import StoppedError, UserError
from regrow.experiments.files import lock_folder, remove_left_overs, write_text
from regrow.experiments.train.checkpoint import list_checkpoints, load_latest, save_checkpoint
from regrow.experiments.train.config import TrainConfig, override, read_config
from regrow.experiments.train.interrupt import StopRequest, catch_stop_signals
from regrow.experiments.train.methods import recipe_file, with_digest
from regrow.experiments.train.result import Result, read_result, result_of
from regrow.experiments.train.run import Metrics, Run

__all__ = ["MakeRun", "Reporter", "resume_config", "train"]

MakeRun = Callable[[TrainConfig, Path | None], Run]

# Settings that may differ when a run goes on: they do not change what it computes.
_FREE_ON_RESUME = frozenset({"device", "workers", "save_every_seconds", "tensorboard", "wait_seconds"})
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

    Where `torchrun` has started several processes, each calls this and takes its share of every batch; the first reads
    and writes the folder.

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
        LostError: if another process of the run has ended or does not answer.
    """
    with ExitStack() as stack:
        stack.enter_context(processes.joined(config.wait_seconds))
        wanted = config
        config, finished = processes.from_first(lambda: _open(wanted, out, resume, stack))
        if finished is not None:
            return finished
        run = processes.in_all(lambda: make_run(config, data_root))
        state, warnings = processes.from_first(lambda: load_latest(out / "checkpoints") if resume else (None, []))
        if state is not None:
            run.load_state_dict(state)
        if processes.is_first():
            remove_left_overs(out)
            write_text(out / "config.yaml", config.to_yaml())
            processes.mark(out)
        else:
            reporters = ()
        for reporter in reporters:
            stack.callback(reporter.stop)
            for warning in warnings:
                reporter.warn(warning)
            reporter.start(run)
        _show_warnings(run, reporters)
        stop = stack.enter_context(catch_stop_signals())
        _train_to_end(run, out, reporters, stop)
        result = result_of(run)
        if processes.is_first():
            write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
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
    saved = _read_settings(out)
    if recipe_file(saved.method) is not None and "method" not in changes:
        raise UserError(
            f"the run in {out} says that its recipe is in a file, and no file runs on the word of a folder: "
            f"if that is what you want, add --method {shlex.quote(saved.method)}"
        )
    return _same_run(saved, override(saved, {**changes, "preset": config.preset}), out)


def _open(config: TrainConfig, out: Path, resume: bool, stack: ExitStack) -> tuple[TrainConfig, Result | None]:
    """Hold the folder of a run; return the settings with which it starts or goes on, and the result if it is over."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder: take another --out")
    stack.enter_context(lock_folder(out))  # before anything is read: what is there must not change under way
    if not resume:
        _require_no_run(out)
        return with_digest(config), None
    config, finished = _same_run(_read_settings(out), config, out), out / "result.json"
    return config, read_result(finished) if finished.exists() else None


def _read_settings(out: Path) -> TrainConfig:
    if not (out / "config.yaml").exists():
        raise UserError(f"{out} holds no run to go on with: leave --resume out, or name its folder with --out")
    return read_config(out / "config.yaml")


def _same_run(saved: TrainConfig, wanted: TrainConfig, out: Path) -> TrainConfig:
    """Return the settings that are wanted, if they and the recipe's file are those of the run."""
    wanted = wanted.model_copy(update={"method_digest": wanted.method_digest or saved.method_digest})
    for name in TrainConfig.model_fields:
        before, now = getattr(saved, name), getattr(wanted, name)
        if before != now and name not in _FREE_ON_RESUME:
            raise UserError(f"the run in {out} has {name} = {before}, not {now}: take another --out for a new run")
    if recipe_file(saved.method) is not None and saved.method_digest is None:
        raise UserError(f"the settings of {out} lack the digest of {saved.method}: take another --out for a new run")
    return with_digest(wanted)


def _require_no_run(out: Path) -> None:
    finished = (out / "result.json").exists()
    if finished or (out / "config.yaml").exists() or list_checkpoints(out / "checkpoints"):
        kind = "a finished" if finished else "an unfinished"
        raise UserError(f"{out} holds {kind} run: add --resume to go on with it, or take another --out")


def _train_to_end(run: Run, out: Path, reporters: tuple[Reporter, ...], stop: StopRequest) -> None:
    if run.device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    last_save = time.monotonic()
    _write_metrics(run, out)
    while not run.finished:
        started = time.perf_counter()
        for images, labels in run.waited.through(run.data.train.epoch()):
            run.train_step(images, labels)
            for reporter in reporters:
                reporter.step(run)
            _show_warnings(run, reporters)
            if run.step % _CHECK_LOSS_EVERY == 0:
                run.train_metrics()
            due = processes.is_first() and time.monotonic() - last_save > run.config.save_every_seconds
            signal_number, save = processes.largest(stop.signal_number, due)
            if signal_number or save:
                run.seconds += time.perf_counter() - started
                _save(run, out)
                if signal_number:
                    where = f"stopped after step {run.step} of {run.steps} (epoch {run.epoch + 1}), saved"
                    raise StoppedError(where, signal_number)
                last_save, started = time.monotonic(), time.perf_counter()
        run.train_metrics()  # waits for the device, so that the time is that of the steps
        run.seconds += time.perf_counter() - started
        row = run.finish_epoch()
        _write_metrics(run, out)
        for reporter in reporters:
            reporter.epoch(run, row)
    _save(run, out)


def _show_warnings(run: Run, reporters: tuple[Reporter, ...]) -> None:
    for warning in run.warnings:
        for reporter in reporters:
            reporter.warn(warning)
    run.warnings = []


def _save(run: Run, out: Path) -> None:
    run.train_metrics()  # a diverged state must not replace a sound one
    state = run.state_dict()
    if processes.is_first():
        save_checkpoint(out / "checkpoints", run.step, state)


def _write_metrics(run: Run, out: Path) -> None:
    # Rewritten whole from the run's own rows: what a killed run wrote after its last checkpoint goes.
    if processes.is_first():
        write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in run.rows))
