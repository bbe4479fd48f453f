"""What processes that train together need not send each other: every one has the same positions."""

from __future__ import annotations

from collections.abc import Iterable

from torch import distributed, nn

from regrow.storage import Weight

__all__ = ["leave_to_each", "take_back", "train_together"]

# Distributed data parallel reads here which buffers not to send around at every forward pass.
_IGNORED = "_ddp_params_and_buffers_to_ignore"


def train_together() -> bool:
    """Return whether this is one of several processes that train one model."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def leave_to_each(model: nn.Module, weights: Iterable[Weight]) -> None:
    """Keep distributed data parallel from sending positions around; what the user has named stays named."""
    ignored = [*getattr(model, _IGNORED, ()), *(weight.state_keys[1] for weight in weights)]
    setattr(model, _IGNORED, list(dict.fromkeys(ignored)))


def take_back(model: nn.Module, weights: Iterable[Weight]) -> None:
    """Undo `leave_to_each`; call it while the weights are sparse."""
    ours = {weight.state_keys[1] for weight in weights}
    kept = [name for name in getattr(model, _IGNORED, ()) if name not in ours]
    if kept:
        setattr(model, _IGNORED, kept)
    else:
        model.__dict__.pop(_IGNORED, None)
