"""The entry point of the `regrow` command: says what is missing when the experiments extra is not installed."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from regrow.experiments.cli import app
    except ModuleNotFoundError as error:
        missing = (error.name or "regrow").partition(".")[0]
        if missing == "regrow":
            raise
        sys.stderr.write(f"regrow: the command line needs {missing}: pip install 'regrow[experiments]'\n")
        sys.exit(2)
    app()
