"""Hooks of modules that belong to whoever set them: copies and pickles of the module are without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Hook"]


class Hook:
    """A hook of a module, which its copies and pickles do not have.

    Args:
        call: what is called with `first` and the arguments of the hook.
        first: the first arguments.
    """

    def __init__(self, call: Callable[..., None], *first: Any) -> None:
        self._call, self._first = call, first

    def __call__(self, *given: Any) -> None:
        """Call what the hook calls."""
        self._call(*self._first, *given)

    def __reduce__(self) -> tuple[type[_Idle], tuple[()]]:
        return _Idle, ()


class _Idle:
    """What a copy of a module has in the place of a hook."""

    def __call__(self, *_: Any) -> None:
        return
