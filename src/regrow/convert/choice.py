"""How a weight is stored and why, as it is kept with the module that owns the weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from regrow.storage import Storage

__all__ = ["Choice", "forget", "in_one_line", "remember", "remembered"]


@dataclass(frozen=True)
class Choice:
    """How a weight is to be stored, and why.

    Attributes:
        storage: how.
        reason: why, in a few words.
        gain: time of the dense layer over that of the sparse one, forward and backward; None if it was not measured.
    """

    storage: Storage
    reason: str
    gain: float | None = None


def remember(module: nn.Module, parameter: str, choice: Choice) -> None:
    """Keep a choice with the module that owns the weight, in whatever storage it is now."""
    choices = {**module.__dict__.get("_storage_choices", {}), parameter: choice}
    module.__dict__["_storage_choices"] = choices


def remembered(module: nn.Module, parameter: str) -> Choice | None:
    """Return the choice that was made for a weight; None if it was not chosen but asked for."""
    choice: Choice | None = module.__dict__.get("_storage_choices", {}).get(parameter)
    return choice


def forget(module: nn.Module) -> None:
    """Forget the choices made for a module's weights."""
    module.__dict__.pop("_storage_choices", None)


def in_one_line(stored: Iterable[tuple[Storage, str]]) -> str:
    """Say how many weights are stored in which way, and why some are masked.

    Args:
        stored: of each weight its storage and the reason, empty where there is none.

    Example:
        >>> in_one_line([(Storage.SPARSE, "density up to 0.2"), (Storage.MASKED, "a side below 32")])
        '1 of 2 weights stored sparsely, 1 masked (a side below 32)'
    """
    stored = list(stored)
    masked = [reason for storage, reason in stored if storage is Storage.MASKED]
    counted = Counter(reason for reason in masked if reason).most_common()
    reasons = "; ".join(reason if count == 1 else f"{count}: {reason}" for reason, count in counted)
    sparse = f"{len(stored) - len(masked)} of {len(stored)} weights stored sparsely"
    return f"{sparse}, {len(masked)} masked" + (f" ({reasons})" if reasons else "") if masked else sparse
