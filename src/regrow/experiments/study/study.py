"""Studies: many runs of one preset, resumable, summed up in one table and one plot."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from statistics import mean, stdev
from threading import Thread

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from regrow.experiments.errors import StoppedError
from regrow.experiments.files import write_text
from regrow.experiments.study.plots import plot_errors
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.interrupt import StopRequest, catch_stop_signals
from regrow.experiments.train.loop import MakeRun, Result, resume_config, train
from regrow.experiments.train.methods import check_method, run_name
from regrow.experiments.train.run import Run

_stopped: list[StoppedError] = []
"""In a worker process: why it starts no more runs."""


@dataclass(frozen=True)
class Study:
    """A grid of runs: every method at every density with every seed; dense once for each seed.

    Attributes:
        base: the settings they share.
        methods: names of methods, "dense" among them or not.
        densities: densities of the sparse methods.
        seeds: seeds.
    """

    base: TrainConfig
    methods: Sequence[str]
    densities: Sequence[float]
    seeds: Sequence[int]

    def runs(self) -> Iterator[TrainConfig]:
        """Yield the settings of every run, one seed of all before the next seed."""
        for seed in dict.fromkeys(self.seeds):
            for method in dict.fromkeys(self.methods):
                for density in (1.0,) if method == "dense" else dict.fromkeys(self.densities):
                    yield override(self.base, {"method": method, "density": density, "seed": seed})


@dataclass(frozen=True)
class Cell:
    """Test error over the seeds of one method at one density, in percent.

    Attributes:
        method: name of the method.
        density: nonzeros over all sparse weights.
        errors: the error of each seed.
    """

    method: str
    density: float
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean error in percent."""
        return mean(self.errors)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean in percent; 0 for one seed, which says nothing of it."""
        return stdev(self.errors) / len(self.errors) ** 0.5 if len(self.errors) > 1 else 0.0

    def __str__(self) -> str:
        spread = f" ± {self.standard_error:.2f}" if len(self.errors) > 1 else ""
        return f"{self.mean:.2f}{spread}"


def run_study(
    study: Study, out: Path, *, data_root: Path | None = None, jobs: int = 1, console: Console | None = None
) -> Table:
    """Run what is missing of a study, write `study.json`, `table.md` and `errors.png`, and return the table.

    Each run has a folder of its own in `out`; finished ones are kept and unfinished ones go on.

    Args:
        study: the grid.
        out: folder of the study.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time; each takes its share of the cores.
        console: where to show progress; nothing is shown unless it is a terminal.

    Raises:
        UserError: if a setting does not fit, or `out` holds runs with other settings.
    """
    for method in study.methods:
        check_method(method)
    configs = list(study.runs())
    results = run_all(configs, out, data_root=data_root, jobs=jobs, console=console)
    cells = collect(results)
    write_text(out / "study.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "table.md", markdown(cells) + "\n")
    plot_errors({(cell.method, cell.density): cell.errors for cell in cells}, out / "errors.png", study.base.preset)
    return _table(cells, study.base.preset)


def collect(results: Sequence[Result]) -> list[Cell]:
    """Group the results of runs by method and density, in the order in which they first appear."""
    errors: dict[tuple[str, float], list[float]] = {}
    for result in results:
        key = (result["method"], result["density"])
        errors.setdefault(key, []).append(100 * (1 - result["test_accuracy"]))
    return [Cell(method, density, tuple(values)) for (method, density), values in errors.items()]


def markdown(cells: Sequence[Cell]) -> str:
    """Return test error in percent, mean ± standard error, as a Markdown table: a row a method, a column a density.

    Example:
        >>> print(markdown([Cell("dense", 1.0, (1.0, 2.0)), Cell("set", 0.05, (3.0,))]))
        | method | 5 % | dense |
        |---|---|---|
        | dense |  | 1.50 ± 0.50 |
        | set | 3.00 |  |
    """
    densities = sorted({cell.density for cell in cells})
    titles = ["dense" if density == 1 else f"{100 * density:g} %" for density in densities]
    lines = [f"| method | {' | '.join(titles)} |", "|---" * (len(densities) + 1) + "|"]
    for method in dict.fromkeys(cell.method for cell in cells):
        found = {cell.density: str(cell) for cell in cells if cell.method == method}
        lines.append(f"| {method} | {' | '.join(found.get(density, '') for density in densities)} |")
    return "\n".join(lines)


def run_all(
    configs: Sequence[TrainConfig],
    out: Path,
    *,
    data_root: Path | None = None,
    jobs: int = 1,
    console: Console | None = None,
    make_run: MakeRun = Run,
) -> list[Result]:
    """Train what is missing of some runs, each in its folder `out / run_name(config)`, and return all results.

    Args:
        configs: the settings of each run.
        out: folder of the study.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time; each takes its share of the cores.
        console: where to show progress; nothing is shown unless it is a terminal.
        make_run: makes a run from its settings and `data_root`.

    Raises:
        UserError: if a setting does not fit, or `out` holds runs with other settings.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    results: list[Result | None] = [None] * len(configs)
    with Progress(console=console, disable=console is None or not console.is_terminal) as progress:
        task = progress.add_task(configs[0].preset, total=len(configs))
        if jobs == 1:
            for place, config in enumerate(configs):
                results[place] = _run_one(config, out, data_root, make_run)
                progress.advance(task)
        else:
            spawn = get_context("spawn")
            with (
                catch_stop_signals() as stop,
                ProcessPoolExecutor(jobs, spawn, initializer=_start_worker, initargs=(threads,)) as pool,
            ):
                places = {
                    pool.submit(_run_in_worker, config, out, data_root, make_run): n for n, config in enumerate(configs)
                }
                try:
                    for done in _as_completed(set(places), stop):
                        results[places[done]] = done.result()
                        progress.advance(task)
                except BaseException:
                    for worker in active_children():
                        worker.terminate()  # SIGTERM: the run at hand is saved
                    pool.shutdown(cancel_futures=True)
                    raise
    return [result for result in results if result is not None]


def _as_completed(waiting: set[Future[Result]], stop: StopRequest) -> Iterator[Future[Result]]:
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        if stop.signal_number:
            raise StoppedError("stopped: finished runs are kept, unfinished ones saved", stop.signal_number)
        yield from done


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and stops its workers
    Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed, and nobody waits for the run


def _run_in_worker(config: TrainConfig, out: Path, data_root: Path | None, make_run: MakeRun) -> Result:
    if _stopped:
        raise _stopped[0]
    try:
        return _run_one(config, out, data_root, make_run)
    except StoppedError as stopped:
        _stopped.append(stopped)  # the pool may have handed this process its next run already
        raise


def _run_one(config: TrainConfig, out: Path, data_root: Path | None, make_run: MakeRun) -> Result:
    folder = out / run_name(config)
    resume = (folder / "config.yaml").exists()
    if resume:
        config = resume_config(config, config.model_dump(), folder)
    return train(config, folder, resume=resume, data_root=data_root, make_run=make_run)


def _table(cells: Sequence[Cell], title: str) -> Table:
    table = Table("method", "density", "test error %", "seeds", title=f"{title}: mean ± standard error")
    for cell in cells:
        table.add_row(cell.method, f"{100 * cell.density:g} %", str(cell), str(len(cell.errors)))
    return table
