"""How the weights of a model are to be stored: as was asked for, by rule, or as an example input measures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from regrow.convert.choice import Choice
from regrow.convert.choose import choose_by_time
from regrow.convert.eligible import Slot, some_names
from regrow.convert.rule import choose_by_rule
from regrow.core.units import Units
from regrow.ops import native
from regrow.storage import Storage

__all__ = ["Backend", "check_backend", "decide"]

Backend = Literal["auto", "masked", "cpu"]
# What a backend by name stores weights as; "auto" chooses for each weight.
_STORAGE = {storage.backend: storage for storage in Storage}


def check_backend(backend: Backend | Mapping[str, Backend], example: object) -> None:
    """Raise a ValueError if there is no such backend, or an example is given to one that measures nothing."""
    names = list(backend.values()) if isinstance(backend, Mapping) else [backend]
    for name in names:
        if name not in get_args(Backend):
            raise ValueError(f"there is no backend {name!r}: choose among {', '.join(get_args(Backend))}")
    if example is not None and not isinstance(backend, Mapping) and backend != "auto":
        raise ValueError(f'example_input serves backend="auto", which measures with it; backend={backend!r} does not')


def decide(
    model: nn.Module,
    slots: Sequence[Slot],
    positions: Mapping[str, Tensor],
    units: Mapping[str, Units],
    backend: Backend | Mapping[str, Backend],
    example: Any,
    *,
    batch_last: bool,
) -> tuple[dict[str, Storage], dict[str, Choice]]:
    """Return for every weight by name its storage, and for those under "auto" the choice with its reason.

    Args:
        model: the model, still dense.
        slots: the weights that are to be sparse.
        positions: for each by name a bool tensor in its shape, true where the weight exists.
        units: for each by name the units in which its topology changes.
        backend: name of a backend for all, or names by globs.
        example: a batch as the model takes it, to measure with; None lets the rule choose.
        batch_last: whether norms and pools between sparse convolutions are to follow their layout.

    Raises:
        ValueError: if a glob matches no weight.
    """
    names = _by_glob(slots, backend) if isinstance(backend, Mapping) else {slot.name: backend for slot in slots}
    storages = {name: _STORAGE[each] for name, each in names.items() if each != "auto"}
    free = [slot for slot in slots if slot.name not in storages]
    if not free:
        _warn_once(_shortcoming(storages, {}))
        return storages, {}
    if example is None:
        asked = [slot for slot in slots if storages.get(slot.name) is Storage.SPARSE]
        choices = choose_by_rule(model, free, positions, units, beside=asked)
    else:
        choices = choose_by_time(model, free, positions, units, example, batch_last=batch_last)
    storages |= {name: choice.storage for name, choice in choices.items()}
    _warn_once(_shortcoming(storages, choices))
    return storages, choices


def _shortcoming(storages: Mapping[str, Storage], choices: Mapping[str, Choice]) -> str | None:
    """Return what this installation of regrow lacks to serve these weights well, or None."""
    if any(native.MISSING in choice.reason for choice in choices.values()):
        return f"{native.MISSING}. Until then weights are stored masked, which is no faster than dense"
    if Storage.SPARSE in storages.values() and torch.get_num_threads() > 1 and native.on_one_thread():
        return native.ONE_THREAD
    return None


@cache
def _warn_once(message: str | None) -> None:
    if message is not None:
        warnings.warn(message, stacklevel=4)


def _by_glob(slots: Sequence[Slot], backends: Mapping[str, Backend]) -> dict[str, Backend]:
    """Return for each weight the backend of the first glob that matches its name or its module's, else "auto"."""
    found: dict[str, Backend] = {}
    for glob, backend in backends.items():
        matches = [slot.name for slot in slots if fnmatchcase(slot.name, glob) or fnmatchcase(slot.path, glob)]
        if not matches:
            raise ValueError(f"backend: {glob!r} matches no weight that is to be sparse; there are {some_names(slots)}")
        for name in matches:
            found.setdefault(name, backend)
    return {slot.name: found.get(slot.name, "auto") for slot in slots}
