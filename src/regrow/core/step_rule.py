"""A sparse training algorithm that acts in every step: the second form beside `Recipe`.

A recipe moves weights at updates; between them a step is an ordinary one. A rule changes what the network computes with
(it trains weights that are outside of the network), or what a step does, or both. It works on dense tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from regrow.core.extreme import extreme

__all__ = ["StepLayer", "StepRule", "largest", "put"]


@dataclass(eq=False)
class StepLayer:
    """One weight as a rule sees it. Its tensors have its dense shape and are changed in place.

    Attributes:
        name: its full name.
        input_dimension: the dimension that counts inputs.
        weight: within a step what the optimizer trains: every position where the rule is `dense`, else the network's.
        mask: bool, where the network has a weight.
        gradient: that of the step; of the network's weight before, of `weight` after the rule's `before_step`.
        rate: the learning rate of the step.
        trained: bool, the positions that a step may change; None for all. Set by `train_only`.
        joined: bool, the positions that the last step let join those; their optimizer state starts anew.
        numbers: further tensors that the rule keeps, by name; saved with the updater.
        learned: scalars that the optimizer trains beside the weight, by name: it takes their `grad`.
    """

    name: str
    input_dimension: int
    weight: Tensor
    mask: Tensor
    gradient: Tensor | None = None
    rate: float | Tensor = 0.0
    trained: Tensor | None = None
    joined: Tensor | None = None
    numbers: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)

    def train_only(self, positions: Tensor) -> None:
        """Let steps change these positions alone from now on: bool, in the weight's shape.

        Others keep their value (in the network's own weight, zero) and have no optimizer state.
        """
        if self.trained is None:
            self.trained = torch.ones_like(self.mask)
        joined = positions & ~self.trained
        self.joined = joined if self.joined is None else self.joined | joined
        self.trained.copy_(positions)


class StepRule(Protocol):
    """What a method does in every step, as a small object of settings; `regrow.StepUpdater` carries it out.

    The network's weight stands in the model between steps, so passes, evaluation and checkpoints of the model see
    the sparse network. In a step the dense weight takes its place, if the rule trains one.

    Example of one that halves the gradient of a topology that stays:
        >>> class Half:
        ...     dense = reads_absent = False
        ...     def begin(self, layers, generator): ...
        ...     def before_step(self, layer, step):
        ...         layer.gradient.mul_(0.5).mul_(layer.mask)
        ...     def after_step(self, layers, step, generator): ...
        ...     def shrink(self, layer): ...
    """

    @property
    def dense(self) -> bool:
        """Whether weights outside of the network are trained, or kept, too."""

    @property
    def reads_absent(self) -> bool:
        """Whether it reads the gradient of weights outside of the network: of those that a step trains."""

    def begin(self, layers: Mapping[str, StepLayer], generator: torch.Generator) -> None:
        """Set masks, and numbers of the rule's own, before the first step.

        Args:
            layers: every weight by its name, in the order of the modules.
            generator: the only source of randomness, on the CPU.
        """

    def before_step(self, layer: StepLayer, step: int) -> None:
        """Make of the gradient of the network's weight that of `layer.weight`.

        Args:
            layer: a weight that has a gradient.
            step: steps taken before.
        """

    def after_step(self, layers: Mapping[str, StepLayer], step: int, generator: torch.Generator) -> None:
        """Change weights and masks after the optimizer's step.

        Args:
            layers: the weights that took part in it.
            step: steps taken, this one included.
            generator: the only source of randomness, on the CPU.
        """

    def shrink(self, layer: StepLayer) -> None:
        """Turn `layer.weight` into the network's, zero where it is absent."""


def largest(weight: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return where the weights of largest magnitude are, ties to the lower position.

    Args:
        weight: of any shape and memory format.
        counts: how many, for each result; none above the first.

    Returns:
        For each count a bool tensor in the weight's shape, each within the first.

    Example:
        >>> [mask.tolist() for mask in largest(torch.tensor([3.0, -4.0, 1.0, -3.0]), (3, 2))]
        [[True, True, False, True], [True, True, False, False]]
    """
    flat = weight.reshape(-1).abs()
    first = extreme(flat, counts[0], lambda numbers: numbers, largest=True)
    found = [first, *(first[extreme(flat[first], count, first.__getitem__, largest=True)] for count in counts[1:])]
    result = []
    for index in found:
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[index] = True
        result.append(mask.view(weight.shape))
    return result


def put(tensor: Tensor, positions: Tensor, numbers: Tensor | float | bool) -> None:
    """Set the numbers of a tensor of any memory format at flat positions."""
    tensor[torch.unravel_index(positions, tensor.shape)] = numbers
