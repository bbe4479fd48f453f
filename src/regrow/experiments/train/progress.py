"""What shows a run: a progress bar in a terminal, a line an epoch elsewhere, TensorBoard on request."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from regrow.experiments.errors import UserError
from regrow.experiments.train.run import Metrics, Run

__all__ = ["Lines", "ProgressBar", "TensorBoard"]

# Reading the loss waits for the device, so it is done a few times a second and not at every step.
_REFRESH_SECONDS = 0.25


class ProgressBar:
    """A bar with loss, accuracy, steps a second and time left, and a line for each tenth of the epochs.

    It fits 80 columns.

    Args:
        console: where to draw it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("", figures="")
        self._last = time.perf_counter()
        self._last_step = 0

    def start(self, run: Run) -> None:
        """Show the bar at the step where the run stands."""
        _show_storage(self._console, run)
        self._last_step = run.step
        self._progress.update(self._task, total=run.steps, completed=run.step, description=_epoch(run))
        self._progress.start()

    def step(self, run: Run) -> None:
        """Show the step, a few times a second."""
        now = time.perf_counter()
        if now - self._last < _REFRESH_SECONDS:
            return
        loss, accuracy = run.train_metrics(of_all=False)
        rate = (run.step - self._last_step) / (now - self._last)
        self._last, self._last_step = now, run.step
        figures = f"loss {loss:.3f}  {accuracy:.1%}  {rate:.{0 if rate >= 10 else 1}f} steps/s"
        self._progress.update(self._task, completed=run.step, description=_epoch(run), figures=figures)

    def epoch(self, run: Run, row: Metrics) -> None:
        """Print a line now and then."""
        self._progress.update(self._task, completed=run.step)
        every = max(1, run.config.epochs // 10)
        if run.epoch % every == 0 or run.finished:
            _print_epoch(self._console, run, row)

    def warn(self, message: str) -> None:
        """Print a warning above the bar."""
        self._console.print("[yellow]warning:[/]", Text(message), highlight=False)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


class Lines:
    """How weights are stored, and a line for each epoch, for output that is not a terminal.

    Args:
        console: where the lines go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, run: Run) -> None:
        """Show nothing."""

    def step(self, run: Run) -> None:
        """Show nothing."""

    def epoch(self, run: Run, row: Metrics) -> None:
        """Print a line."""
        _print_epoch(self._console, run, row)

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Show nothing."""


class TensorBoard:
    """Write every epoch's metrics for TensorBoard.

    Args:
        folder: where the event files go.

    Raises:
        UserError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard is not installed: pip install 'regrow[tensorboard]'") from None
        self._make_writer = SummaryWriter
        self._folder = folder

    def start(self, run: Run) -> None:
        """Open the event file; what an interrupted run wrote beyond this epoch no longer counts."""
        self._writer = self._make_writer(str(self._folder), purge_step=run.epoch + 1)

    def step(self, run: Run) -> None:
        """Write nothing."""

    def epoch(self, run: Run, row: Metrics) -> None:
        """Write every number of the row, and the density of every layer."""
        for name, value in row.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, row["epoch"])
        for name, nonzeros in row["nonzeros_by_layer"].items():
            self._writer.add_scalar(f"nonzeros/{name}", nonzeros, row["epoch"])

    def warn(self, message: str) -> None:
        """Write nothing."""

    def stop(self) -> None:
        """Write out what is still held back."""
        self._writer.close()


def _show_storage(console: Console, run: Run) -> None:
    if run.stored:
        console.print(run.stored, markup=False, highlight=False, soft_wrap=True)


def _print_epoch(console: Console, run: Run, row: Metrics) -> None:
    console.print(
        f"epoch {row['epoch']}/{run.config.epochs}  loss {row['train_loss']:.4f}  train {row['train_accuracy']:.2%}"
        f"  valid {_percent(row['valid_accuracy'])}  learning rate {row['learning_rate']:.2g}",
        highlight=False,
        soft_wrap=True,
    )


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.2%}"


def _epoch(run: Run) -> str:
    return f"epoch {min(run.epoch + 1, run.config.epochs)}/{run.config.epochs}"
