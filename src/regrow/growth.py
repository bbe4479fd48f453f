"""Sources of growth: where the gradient and momentum of absent weights come from."""

from regrow.core.growth import (
    Growth,
    candidates,
    exact,
    guided,
    window,
)

__all__ = [
    "Growth",
    "candidates",
    "exact",
    "guided",
    "window",
]
