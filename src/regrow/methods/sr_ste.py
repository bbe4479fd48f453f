"""SR-STE: N of every M inputs, trained through the dense weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.core.step_rule import StepLayer

__all__ = ["SrSte", "largest_of_groups", "sr_ste"]


@dataclass(frozen=True)
class SrSte:
    """The settings of `sr_ste`, and what it does in a step.

    Attributes:
        keep: weights of each group that are in the network.
        of: weights in a group.
        penalty: how strongly those outside are pulled to zero.
        dense: true, for every weight is trained.
        reads_absent: true, for every weight is trained by the gradient.
    """

    dense = True
    reads_absent = True

    keep: int
    of: int
    penalty: float

    def begin(self, layers: Mapping[str, StepLayer], generator: torch.Generator) -> None:
        """Find the groups, and the largest weights in them."""
        for name, layer in layers.items():
            shape, dimension = layer.weight.shape, layer.input_dimension
            if len(shape) <= dimension or shape[dimension] % self.of:
                raise ValueError(
                    f"{name!r} has the shape {tuple(shape)}: {self.of} does not divide the inputs; keep it dense"
                )
            self._choose(layer)

    def before_step(self, layer: StepLayer, step: int) -> None:
        """Pull the weights outside of the network to zero; the gradient passes to all as it is."""
        assert layer.gradient is not None
        layer.gradient.add_(layer.weight, alpha=self.penalty).addcmul_(layer.weight, layer.mask, value=-self.penalty)

    def after_step(self, layers: Mapping[str, StepLayer], step: int, generator: torch.Generator) -> None:
        """Choose the largest of each group anew."""
        for layer in layers.values():
            self._choose(layer)

    def shrink(self, layer: StepLayer) -> None:
        """Leave the weights of the network."""
        layer.weight.mul_(layer.mask)

    def _choose(self, layer: StepLayer) -> None:
        layer.mask.copy_(largest_of_groups(layer.weight, self.keep, self.of, layer.input_dimension))


def largest_of_groups(weight: Tensor, keep: int, of: int, dimension: int = 1) -> Tensor:
    """Return where the `keep` largest magnitudes of every `of` neighbours along a dimension are, ties to the first.

    Example:
        >>> largest_of_groups(torch.tensor([[1.0, -3.0, 3.0, 3.0]]), keep=2, of=4)
        tensor([[False,  True,  True, False]])
    """
    last = weight.abs().movedim(dimension, -1)
    groups = last.reshape(-1, of)
    # Two of a group at a time, for all groups at once: far quicker than to sort many short rows.
    columns = [column.contiguous() for column in groups.unbind(1)]
    ranks = [torch.zeros(len(groups), dtype=torch.int16, device=weight.device) for _ in columns]
    for first in range(of):
        for second in range(first + 1, of):
            ahead = columns[first] >= columns[second]
            ranks[second].add_(ahead)
            ranks[first].add_(ahead.logical_not_())
    mask = torch.empty(groups.shape, dtype=torch.bool, device=weight.device)
    for number, rank in enumerate(ranks):
        torch.lt(rank, keep, out=mask[:, number])
    return mask.view(last.shape).movedim(-1, dimension)


def sr_ste(every: int = 1, steps: int = 1, *, keep: int = 2, of: int = 4, penalty: float = 2e-4) -> SrSte:  # noqa: ARG001
    """SR-STE: keep N of every M inputs (2 of 4), the pattern that sparse tensor cores take.

    **What it does.** Every weight is trained. The network computes with the `keep` largest of every `of` consecutive
    weights along the input; for convolutions these are input channels at one position of the kernel. The gradient of
    the network's weight goes to all (straight-through), and those outside are pulled to zero by `penalty * weight`.
    The pattern is chosen anew after every step.

    **When to use it.** For 2:4 sparsity, which GPUs since Ampere multiply faster
    (`torch.sparse.to_sparse_semi_structured`, after `regrow.densify`), at nearly the accuracy of the dense network.

    **Settings.** 2 of 4, penalty 2e-4. The density is `keep / of`, the same in every layer.

    **Watch for.** Layers whose inputs `of` does not divide stay dense (`keep_dense`), the first convolution most of
    all. Training takes the time and twice the memory of a dense one: the pattern pays when the network is used.

    **Cost and information.** Dense weights and gradients. A step takes some five more passes over them, and compares
    the weights of each group in pairs.

    **Credit.** Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    arXiv:2102.04010, and its code `NM-sparsity`.

    Args:
        every: accepted so that all factories can be called alike; without effect.
        steps: likewise.
        keep: weights of a group that are in the network.
        of: weights in a group.
        penalty: how strongly those outside are pulled to zero.

    Raises:
        ValueError: if `keep` is not between 1 and `of`.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(torch.nn.Linear(8, 2), density=1.0, backend="masked")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> topology = regrow.StepUpdater(model, optimizer, sr_ste())
        >>> regrow.masks(model)["weight"].view(4, 4).sum(1)
        tensor([2, 2, 2, 2])
    """
    if not 1 <= keep <= of:
        raise ValueError(f"{keep} of {of} is no pattern: keep at least 1 and at most all of a group")
    return SrSte(keep, of, float(penalty))
