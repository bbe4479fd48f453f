"""Top-KAST: compute with the largest weights, train some more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from regrow.core.distribution import DISTRIBUTIONS, Distribution
from regrow.core.step_rule import StepLayer, largest

__all__ = ["TopKast", "top_kast"]


@dataclass(frozen=True)
class TopKast:
    """The settings of `top_kast`, and what it does in a step.

    Attributes:
        density: of the network.
        backward_density: of the weights that are trained.
        every: steps between choices of the two sets.
        penalty: strength of the regularisation.
        until: from this step on only the weights of the network are trained; None for never.
        distribution: how both are spread over layers.
        dense: true, for weights outside of both sets keep their value.
        reads_absent: true, at the weights outside of the network that a step trains.
    """

    dense = True
    reads_absent = True

    density: float
    backward_density: float
    every: int
    penalty: float
    until: int | None
    distribution: Distribution | str = "uniform"

    def begin(self, layers: Mapping[str, StepLayer], generator: torch.Generator) -> None:
        """Choose the two sets."""
        spread = DISTRIBUTIONS[self.distribution] if isinstance(self.distribution, str) else self.distribution
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        forward, backward = spread(shapes, self.density), spread(shapes, self.backward_density)
        for name, layer in layers.items():
            counts = torch.tensor([max(forward[name], backward[name]), forward[name]])
            layer.numbers["counts"] = counts  # on the CPU: reading it waits for nothing
            self._choose(layer, step=0)

    def before_step(self, layer: StepLayer, step: int) -> None:
        """Add the gradient of the regularisation."""
        gradient, counts = layer.gradient, layer.numbers["counts"]
        assert gradient is not None
        assert layer.trained is not None
        if self.penalty:
            # first as if all were outside of the network: 1 / density times as strong
            outside = layer.weight.numel() / int(counts[1])
            gradient.addcmul_(layer.weight, layer.trained, value=2 * self.penalty * outside)
            gradient.addcmul_(layer.weight, layer.mask, value=2 * self.penalty * (1 - outside))

    def after_step(self, layers: Mapping[str, StepLayer], step: int, generator: torch.Generator) -> None:
        """Choose the sets anew, every so many steps."""
        if step % self.every == 0 or step == self.until:
            for layer in layers.values():
                self._choose(layer, step)

    def shrink(self, layer: StepLayer) -> None:
        """Leave the weights of the network."""
        layer.weight.mul_(layer.mask)

    def _choose(self, layer: StepLayer, step: int) -> None:
        trained, network = largest(layer.weight, layer.numbers["counts"].tolist())
        layer.mask.copy_(network)
        layer.train_only(network if self.until is not None and step >= self.until else trained)


def top_kast(
    every: int = 100,
    steps: int | None = None,
    *,
    density: float,
    backward_density: float | None = None,
    penalty: float = 1e-4,
    explore: float = 1.0,
    distribution: Distribution | str = "uniform",
) -> TopKast:
    """Top-KAST: compute with the largest weights, train some more that may overtake them.

    **What it does.** Every weight is kept. The network computes with the A = `density` largest of each layer; steps
    change the B = `backward_density` largest, A among them. What is outside of B keeps its value and has no optimizer
    state. The sets are chosen anew every `every` steps. The loss has the term `penalty * (|A|^2 + |B without A|^2 / D)`
    with the layer's density D: it holds back what is not needed, and weights that just miss A most of all.

    **When to use it.** Where no dense gradient may ever be computed, and weights may be kept in slow memory: gradients
    are read at B alone. Any optimizer.

    **Settings.** Sets every 1 to 100 steps make no difference in the paper. `backward_density` is 0.5 at a density of
    0.2, and 0.2 at 0.1; twice the density if not given. `explore=0.5` trains A alone in the second half.

    **Watch for.** The optimizer's own weight decay acts on B too: make it 0, or the penalty. Here masked storage
    computes the dense gradient all the same, and holds the weights twice.

    **Cost and information.** Weights alone. A step takes some seven more passes over the dense weight; a choice of the
    sets takes a selection of the largest.

    **Credit.** Jayakumar et al. 2020, "Top-KAST: Top-K Always Sparse Training", arXiv:2106.03517.

    Args:
        every: optimizer steps between choices of the sets.
        steps: optimizer steps of the whole training; needed for `explore` below 1.
        density: of the network, in (0, 1].
        backward_density: of what is trained, from `density` to 1.
        penalty: strength of the regularisation.
        explore: part of the training in which more is trained than the network has.
        distribution: how both sets are spread over layers: a function of `regrow.distribution`, or its name.

    Raises:
        ValueError: if `every`, a density or `explore` is outside its range, or `explore` is given without `steps`.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(torch.nn.Linear(8, 4), density=1.0, backend="masked")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> topology = regrow.StepUpdater(model, optimizer, top_kast(every=10, density=0.25))
        >>> int(model.weight.count_nonzero())
        8
    """
    backward = min(2 * density, 1.0) if backward_density is None else backward_density
    if every < 1:
        raise ValueError(f"sets cannot be chosen every {every} steps: the interval is at least 1")
    if not 0 < density <= backward <= 1:
        raise ValueError(
            f"density {density:g} and backward_density {backward:g} must be in (0, 1], the first no larger"
        )
    if not 0 <= explore <= 1 or (explore < 1 and steps is None):
        raise ValueError(f"explore={explore:g} is a part of the training, in [0, 1], and below 1 it needs steps")
    until = None if steps is None or explore == 1 else round(explore * steps)
    return TopKast(density, backward, every, float(penalty), until, distribution)
