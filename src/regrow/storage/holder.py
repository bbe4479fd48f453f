"""Which object keeps the topology of which module: noted outside of the modules, for a copy of one has no keeper."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from weakref import WeakKeyDictionary, ref

from torch import nn

__all__ = ["hold", "holder", "is_held_by", "release"]

_holders: WeakKeyDictionary[nn.Module, ref[object]] = WeakKeyDictionary()


def hold(modules: Iterable[nn.Module], keeper: object) -> None:
    """Note that `keeper` keeps the topology of these modules, until `release` or its end."""
    for module in modules:
        _holders[module] = ref(keeper)


def release(modules: Iterable[nn.Module], keeper: object) -> None:
    """Forget a keeper; those of others stay."""
    for module in modules:
        if module in _holders and _holders[module]() is keeper:
            del _holders[module]


def is_held_by(module: nn.Module, keeper: object) -> bool:
    """Return whether an object was the last to take a module's topology; quickly, and whether alive or not."""
    known = _holders.get(module)
    return known is not None and known() is keeper


def holder(module: nn.Module) -> object | None:
    """Return the object that keeps the topology of a module; None if there is none alive.

    Example:
        >>> holder(nn.Linear(2, 2)) is None
        True
    """
    known = _holders.get(module)
    if known is None or known() is None:
        return None
    # An optimizer and its hooks refer to each other: they may be out of reach and not collected yet.
    gc.collect()
    return known()
