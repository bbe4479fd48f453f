"""STR: a threshold for each layer, learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from regrow.core.step_rule import StepLayer

__all__ = ["SoftThreshold", "soft_threshold"]


@dataclass(frozen=True)
class SoftThreshold:
    """The settings of `soft_threshold`, and what it does in a step.

    Attributes:
        initial: what every threshold is the sigmoid of at the start.
        decay: how strongly that is pulled to zero.
        dense: true, for a weight below the threshold keeps its value.
        reads_absent: false, for below the threshold the gradient is zero.
    """

    dense = True
    reads_absent = False

    initial: float
    decay: float

    def begin(self, layers: Mapping[str, StepLayer], generator: torch.Generator) -> None:
        """Make a learned number for each layer."""
        for layer in layers.values():
            layer.learned["threshold"] = torch.full_like(layer.weight[(0,) * layer.weight.dim()], self.initial)
            self._choose(layer)

    def before_step(self, layer: StepLayer, step: int) -> None:
        """Give the threshold its gradient, and the weights theirs: of those above it."""
        gradient, number = layer.gradient, layer.learned["threshold"]
        assert gradient is not None
        gradient.mul_(layer.mask)
        threshold = number.sigmoid()
        slope = threshold * (1 - threshold)
        number.grad = -slope * (gradient * layer.weight.sign()).sum() + self.decay * number

    def after_step(self, layers: Mapping[str, StepLayer], step: int, generator: torch.Generator) -> None:
        """Find the weights above the threshold."""
        for layer in layers.values():
            self._choose(layer)

    def shrink(self, layer: StepLayer) -> None:
        """Bring every weight nearer to zero by the threshold, at most to zero."""
        threshold = layer.learned["threshold"].sigmoid()
        layer.weight.sub_(layer.weight.clamp(-threshold, threshold))

    def _choose(self, layer: StepLayer) -> None:
        layer.mask.copy_(layer.weight.abs() > layer.learned["threshold"].sigmoid())


def soft_threshold(every: int = 1, steps: int = 1, *, initial: float = -10.0, decay: float = 0.0) -> SoftThreshold:  # noqa: ARG001
    """STR: learn for each layer below which magnitude its weights are zero.

    **What it does.** The network computes with `sign(w) * max(|w| - sigmoid(s), 0)`. The number s of each layer is
    trained by the same optimizer, in the parameter group of the weight: by the loss, and by weight decay, which draws
    it towards 0, that is the threshold to 0.5. A weight below the threshold has no gradient and keeps its value.

    **When to use it.** Where layers are to find their own densities, and the network may start dense. How many weights
    are left is an outcome: `regrow.summary` tells.

    **Settings.** `initial` and weight decay together decide when and how much is removed: s shrinks by the factor `1 -
    learning rate * (weight decay + decay)` a step, and weights begin to go where `sigmoid(s)` reaches their size (s of
    about -5). The paper starts ResNet-50 at -3200 and MobileNet at -12800, for a hundred epochs of ImageNet.

    **Watch for.** Too strong a decay removes whole layers; the loss holds against it only as long as weights are left.
    Weights are held twice.

    **Cost and information.** Dense weights and gradients. Every step takes some eight more passes over them.

    **Credit.** Kusupati et al. 2020, "Soft Threshold Weight Reparameterization for Learnable Sparsity",
    arXiv:2002.03231, and its code `STR`.

    Args:
        every: accepted so that all factories can be called alike; without effect.
        steps: likewise.
        initial: what every threshold is the sigmoid of at the start.
        decay: weight decay of that number alone, added to the optimizer's own.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(torch.nn.Linear(8, 2), density=1.0, backend="masked")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> topology = regrow.StepUpdater(model, optimizer, soft_threshold(initial=-2.0))
        >>> bool((model.weight.count_nonzero() == regrow.masks(model)["weight"].sum()))
        True
    """
    return SoftThreshold(float(initial), float(decay))
