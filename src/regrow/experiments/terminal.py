"""What every command shares: where it prints, and errors as one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from regrow.experiments import processes
from regrow.experiments.errors import (
    DivergedError,
    LostError,
    RankError,
    SaveError,
    StoppedError,
    ToldError,
    UserError,
    WrongResultError,
)

__all__ = ["ERR", "OUT", "line", "one_line_errors", "parse_densities", "parse_numbers", "say"]

# A table in a file or a pipe is not cut to the width of a terminal that is not there.
OUT = Console(width=None if sys.stdout.isatty() else 200)
ERR = Console(stderr=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that a user can do something about into one line and an exit status.

    2 is the user's mistake; 1 is a failure of the run (diverged, disk full, a wrong result); 130 is Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        say(str(error), from_any=isinstance(error, RankError))
        raise typer.Exit(2) from None
    except ToldError:
        raise typer.Exit(2) from None
    except (DivergedError, LostError, SaveError, WrongResultError) as error:
        say(str(error), from_any=isinstance(error, LostError))
        raise typer.Exit(1) from None
    except StoppedError as stopped:
        say(f"{stopped}; the same command goes on with it")
        raise typer.Exit(128 + stopped.signal_number) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(128 + signal.SIGINT) from None


def line(text: str) -> None:
    """Print a line as it is, however long; of several processes the first does."""
    if processes.is_first():
        OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def say(message: str, *, from_any: bool = False) -> None:
    """Write an error or a remark in one line to the standard error.

    Args:
        message: what to write.
        from_any: whether any process of a run writes it; else the first does for all.
    """
    if from_any or processes.is_first():
        sys.stderr.write(f"regrow: {' '.join(message.split())}\n")


def parse_densities(text: str) -> tuple[float, ...]:
    """Return densities that were given as `0.01,0.05`.

    Raises:
        UserError: if they are no numbers.
    """
    return parse_numbers(text, "--densities")


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers that were given for an option, separated by commas.

    Raises:
        UserError: if they are no numbers.
    """
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text}: give numbers separated by commas, as 0.01,0.05") from None
