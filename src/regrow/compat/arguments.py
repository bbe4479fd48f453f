"""The flags of the authors' scripts."""

from __future__ import annotations

from typing import Any, Protocol

from regrow.compat.recipe import GROWTH, PRUNE, REDISTRIBUTION

__all__ = ["add_sparse_args"]


class _Parser(Protocol):
    def add_argument(self, *names: str, **settings: Any) -> Any: ...


def add_sparse_args(parser: _Parser) -> None:
    """Add the flags of sparse training to a parser, with the names and defaults that `sparselearning` gives them.

    Args:
        parser: an `argparse.ArgumentParser`, or what has its `add_argument`.

    Example:
        >>> import argparse
        >>> parser = argparse.ArgumentParser()
        >>> add_sparse_args(parser)
        >>> arguments = parser.parse_args(["--density", "0.1"])
        >>> arguments.density, arguments.prune_rate, arguments.growth
        (0.1, 0.5, 'momentum')
    """
    for flag, default, modes, about in (
        ("--growth", "momentum", GROWTH, "what grows"),
        ("--prune", "magnitude", PRUNE, "what is dropped"),
        ("--redistribution", "momentum", REDISTRIBUTION, "what each layer grows of all that was dropped"),
    ):
        parser.add_argument(flag, default=default, help=f"{about}: {', '.join(modes)} (default: {default})")
    for flag, number, about in (
        ("--prune-rate", 0.5, "share of the weights of a layer that the first update drops"),
        ("--density", 0.05, "weights that exist, as a share of all"),
    ):
        parser.add_argument(flag, type=float, default=number, help=f"{about} (default: {number})")
    parser.add_argument("--dense", action="store_true", help="train every weight")
    parser.add_argument("--verbose", action="store_true", help="print the numbers of nonzeros at every update")
