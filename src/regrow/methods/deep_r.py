"""DeepR: weights that would change their sign go, and as many come at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from regrow.core.positions import draw_absent
from regrow.core.schedule import Schedule, constant
from regrow.core.step_rule import StepLayer, put

__all__ = ["DeepR", "deep_r"]

Scope = Literal["layer", "network"]


@dataclass(frozen=True)
class DeepR:
    """The settings of `deep_r`, and what it does in a step.

    Attributes:
        drift: how far a weight goes towards zero in a step, in learning rates.
        noise: standard deviation of its random walk in a step, in learning rates.
        scope: where as many come as have gone.
        dense: false, for what is outside of the network is zero.
        reads_absent: false, for nothing else moves than what the network has.
    """

    dense = False
    reads_absent = False

    drift: Schedule
    noise: Schedule
    scope: Scope

    def begin(self, layers: Mapping[str, StepLayer], generator: torch.Generator) -> None:
        """Draw the sign of every position; that of a weight is its own."""
        for layer in layers.values():
            drawn = torch.rand(layer.weight.shape, generator=generator) < 0.5
            layer.numbers["positive"] = torch.where(layer.mask, layer.weight >= 0, drawn.to(layer.weight.device))
            layer.train_only(layer.mask)

    def before_step(self, layer: StepLayer, step: int) -> None:
        """Do nothing: the gradient of what is outside of the network is left out."""

    def after_step(self, layers: Mapping[str, StepLayer], step: int, generator: torch.Generator) -> None:
        """Move the weights, drop those on the wrong side of zero, and draw as many."""
        left = {name: self._move_and_drop(layer, step, generator) for name, layer in layers.items()}
        parts = [list(layers)] if self.scope == "network" else [[name] for name in layers]
        for names in parts:
            _activate({name: layers[name] for name in names}, {name: left[name] for name in names}, generator)

    def shrink(self, layer: StepLayer) -> None:
        """Do nothing: the weight is the network's."""

    def _move_and_drop(self, layer: StepLayer, step: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Return the sorted positions that are left in a layer, and how many have gone."""
        index = layer.mask.reshape(-1).nonzero().squeeze(1)
        weight = layer.weight.reshape(-1)[index]
        sign = layer.numbers["positive"].reshape(-1)[index].to(weight.dtype).mul_(2).sub_(1)
        noise = torch.randn(len(index), generator=generator).to(weight)
        weight += layer.rate * (self.noise(step) * noise - self.drift(step) * sign)
        gone = weight * sign < 0
        put(layer.weight, index, weight.masked_fill_(gone, 0))
        dropped = index[gone]
        if len(dropped):
            put(layer.mask, dropped, False)
            layer.train_only(layer.mask)  # what is drawn again at once begins anew too
        return index[~gone], len(dropped)


def _activate(
    layers: Mapping[str, StepLayer], left: Mapping[str, tuple[Tensor, int]], generator: torch.Generator
) -> None:
    """Draw as many positions of some layers, all absent ones alike, as they have dropped."""
    count = sum(dropped for _, dropped in left.values())
    if not count:
        return
    sizes = [layer.weight.numel() for layer in layers.values()]
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    everything = torch.cat([index.cpu() + start for (index, _), start in zip(left.values(), starts, strict=False)])
    drawn = draw_absent(everything, starts[-1], count, generator)
    for layer, start, end in zip(layers.values(), starts, starts[1:], strict=False):
        own = drawn[(drawn >= start) & (drawn < end)] - start
        if len(own):
            put(layer.mask, own.to(layer.mask.device), True)
            layer.train_only(layer.mask)


def deep_r(
    every: int = 1,  # noqa: ARG001 - every factory can be called alike
    steps: int = 1,  # noqa: ARG001
    *,
    drift: float | Schedule = 1e-5,
    noise: float | Schedule = 1e-5,
    scope: Scope = "layer",
) -> DeepR:
    """Deep Rewiring: drop a weight when it would change its sign, and draw another at random.

    **What it does.** Every position has a sign for good: a weight's own at the start, a random one elsewhere. After
    each optimizer step a weight moves on, `learning rate * drift` towards zero and `learning rate * noise` times a
    normal random number. If it is then on the wrong side of zero, it is dropped, and in its stead a position is drawn
    from all that are absent, at zero, its optimizer state anew. The number of weights stays.

    **When to use it.** To compare with: it samples topologies by a random walk, with proven convergence, and rewires in
    every step. It reads no gradient of absent weights.

    **Settings.** Drift and noise 1e-5 in the authors' code for MNIST, at a learning rate of 0.5. In the paper's terms
    the noise is `sqrt(2 * temperature / learning rate)`. Either may be a schedule, as `regrow.schedule.linear(1e-4,
    steps)`. `scope="network"` draws from all layers together, as the paper does; its code draws in the layer.

    **Watch for.** What has been drawn at zero is often gone after its next step: at high learning rates a large part of
    a layer changes at each. Drift and noise are added to the weight and not to the gradient, so momentum does not
    multiply them; with plain SGD that is the paper's rule.

    **Cost and information.** Weights alone. Every step waits for the device, and looks for the weights of each layer.

    **Credit.** Bellec et al. 2018, "Deep Rewiring: Training very sparse deep networks", arXiv:1711.05136, and its
    code `deep_rewiring`.

    Args:
        every: accepted so that all factories can be called alike; without effect.
        steps: likewise.
        drift: how far a weight goes towards zero in a step, in learning rates.
        noise: standard deviation of its random walk in a step, in learning rates.
        scope: where as many are drawn as were dropped: in the same "layer", or in the whole "network".

    Raises:
        ValueError: if there is no such scope.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(torch.nn.Linear(8, 4), density=0.25, backend="masked")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> topology = regrow.StepUpdater(model, optimizer, deep_r(drift=0.1))
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(16, 8)).square().sum().backward()
        ...     optimizer.step()
        >>> int(regrow.masks(model)["weight"].sum())
        8
    """
    if scope not in get_args(Scope):
        raise ValueError(f"there is no scope {scope!r}: choose among {', '.join(get_args(Scope))}")
    return DeepR(_schedule(drift), _schedule(noise), scope)


def _schedule(value: float | Schedule) -> Schedule:
    return value if callable(value) else constant(float(value))
