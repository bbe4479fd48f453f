"""Prune rates that fall step by step, as objects that count the steps themselves."""

from __future__ import annotations

from typing import Protocol

from regrow.core import schedule

__all__ = ["CosineDecay", "Decay", "LinearDecay"]


class Decay(Protocol):
    """What `Masking` asks of a decay."""

    def step(self) -> None:
        """Count a step."""

    def get_dr(self, prune_rate: float) -> float:
        """Return the prune rate now, given the one of the step before."""


class CosineDecay:
    """Let the prune rate fall along half a cosine, and stay at its end.

    Args:
        prune_rate: the rate at the start.
        T_max: steps until the end.
        eta_min: the rate at the end.
        last_epoch: the last step that is over; -1 before the first.

    Example:
        >>> decay = CosineDecay(0.5, T_max=2, eta_min=0.0)
        >>> decay.step()
        >>> decay.get_dr(0.5)
        0.25
    """

    def __init__(self, prune_rate: float, T_max: int, eta_min: float = 0.005, last_epoch: int = -1) -> None:
        self._rate = schedule.cosine(prune_rate, T_max, end=eta_min)
        self._step = last_epoch + 1

    def step(self) -> None:
        """Count a step."""
        self._step += 1

    def get_dr(self, prune_rate: float) -> float:
        """Return the prune rate now; what is given does not count."""
        return self._rate(self._step)


class LinearDecay:
    """Let the prune rate fall in a straight line to zero, and stay there.

    Args:
        prune_rate: the rate at the start.
        T_max: steps until the end.

    Example:
        >>> decay = LinearDecay(0.5, T_max=4)
        >>> decay.step()
        >>> decay.get_dr(0.5)
        0.375
    """

    def __init__(self, prune_rate: float, T_max: int) -> None:
        self._rate = schedule.linear(prune_rate, T_max)
        self._step = 0

    def step(self) -> None:
        """Count a step."""
        self._step += 1

    def get_dr(self, prune_rate: float) -> float:
        """Return the prune rate now; what is given does not count."""
        return self._rate(self._step)
