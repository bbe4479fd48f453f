"""How an optimizer's averages of gradients go on in a step, for weights that take no step themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regrow.topology.step_hooks import gradient_scale

__all__ = ["Average", "average_of"]

Average = Callable[[Mapping[str, Tensor], Tensor], None]


def average_of(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Average | None:
    """Return what takes the averages of a parameter one step on, in place, given them and the gradient.

    It does for weights of zero what the optimizer does, without the weights: one pass over each average in the place
    of several over all.

    Args:
        optimizer: the optimizer.
        group: the parameter group.
        state: tensors of its state in the parameter's shape.

    Returns:
        None for an optimizer that is not known, or does with these settings, or in its first step, more than that; and
        for one that is fused, which makes one pass over all itself.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.5)
        >>> state = {"momentum_buffer": torch.tensor([4.0, 0.0])}
        >>> average = average_of(optimizer, optimizer.param_groups[0], state)
        >>> average(state, torch.tensor([1.0, 1.0]))
        >>> state
        {'momentum_buffer': tensor([3., 1.])}
    """
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return None
    if any(group.get(key) for key in ("fused", "maximize", "differentiable", "capturable", "amsgrad")):
        return None
    if gradient_scale(optimizer) is not None or getattr(optimizer, "found_inf", None) is not None:
        return None
    if kind is torch.optim.SGD:
        known = {"momentum_buffer"} if group["momentum"] else set()
        return partial(_sgd, group) if state.keys() == known else None
    betas_are_numbers = all(isinstance(beta, float) for beta in group["betas"])
    return partial(_adam, group) if betas_are_numbers and state.keys() == {"exp_avg", "exp_avg_sq"} else None


def _sgd(group: Mapping[str, Any], state: Mapping[str, Tensor], gradient: Tensor) -> None:
    for momentum in state.values():
        if group["dampening"]:
            momentum.mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])
        else:
            torch.add(gradient, momentum, alpha=group["momentum"], out=momentum)


def _adam(group: Mapping[str, Any], state: Mapping[str, Tensor], gradient: Tensor) -> None:
    beta1, beta2 = group["betas"]
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
