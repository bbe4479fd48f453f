"""What an optimizer keeps for a parameter: its group, its state, and the momentum in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.recipe import ResetState
from regrow.storage import Weight
from regrow.storage.sharded import own

__all__ = [
    "apply_change",
    "check_momentum",
    "correction",
    "groups_of",
    "keeps_momentum",
    "momentum",
    "numbers_of",
    "reset_numbers",
    "restart",
]

_ADVICE = "use SGD with momentum, Adam or AdamW, or a method without momentum (regrow.set, regrow.rigl)"

# The averages that are corrected for their number of steps, and which of the betas each decays with.
_AVERAGES = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}

# What optimizers divide a step by, or by the root of: a weight whose own begins at zero takes far too long a step.
_MOMENTA = ("momentum_buffer", "exp_avg")
_DIVISORS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")


def keeps_momentum(group: dict[str, Any]) -> bool:
    """Return whether the settings of a parameter group say that the optimizer will keep momentum.

    Example:
        >>> keeps_momentum({"lr": 0.1, "momentum": 0.9}), keeps_momentum({"lr": 0.1, "momentum": 0})
        (True, False)
        >>> keeps_momentum({"beta1": 0.9}), keeps_momentum({"beta1": None})  # Adafactor
        (True, False)
    """
    return bool(group.get("momentum")) or "betas" in group or group.get("beta1") is not None


def groups_of(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return the parameter group of each parameter by the parameter's `id`."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def numbers_of(state: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """Return every tensor of a parameter's optimizer state that has a number for each of its elements."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}


def reset_numbers(weight: Weight, state: Mapping[str, Tensor], *, warm: bool) -> dict[str, Tensor]:
    """Return what each tensor of optimizer state is set to for a weight that grows.

    Zero; but where `warm`, for what the optimizer divides by, the mean over the active weights. That of an Adam-type
    optimizer is corrected for the same number of steps as theirs, so it reads as their mean; from zero the first step
    would be (1 - beta1) / sqrt(1 - beta2) learning rates long, 3.2 with the usual betas.

    Args:
        weight: the weight, before it changes.
        state: tensors of optimizer state in the parameter's shape.
        warm: whether to start from the mean.

    Returns:
        For each a tensor without dimensions.
    """
    return {
        key: weight.existing(tensor).mean()
        if warm and key in _DIVISORS and weight.nonzeros()
        else own(tensor).new_zeros(())
        for key, tensor in state.items()
    }


def apply_change(
    weight: Weight, change: Change, state: Mapping[str, Any], reset: ResetState | bool
) -> dict[str, Tensor]:
    """Carry out a change of a weight; return the tensors of its optimizer state, which begins anew for what grew.

    Args:
        weight: the weight.
        change: what leaves and joins.
        state: the optimizer's state of its parameter.
        reset: what becomes of the state of a grown weight, as `Recipe.reset_state` says.
    """
    before = numbers_of(state, weight.weight)
    beginnings = {} if reset == "keep" else reset_numbers(weight, before, warm=reset != "zero")
    numbers = weight.apply(change, before)
    for key, number in beginnings.items():
        weight.put(numbers[key], change.grow, number)
    if reset == "all" and len(change.grow):
        _forget_momentum(numbers)
    return numbers


def restart(state: dict[str, Any], parameter: Tensor, trained: Tensor, joined: Tensor) -> None:
    """Let some positions of a parameter begin anew: they have no momentum, and what is not trained has no state.

    What the optimizer divides by starts at the mean over those that were trained before, as `reset_numbers` says.

    Args:
        state: the optimizer's state of the parameter; its tensors are changed in place.
        parameter: the parameter.
        trained: the positions that are trained now, bool in its shape.
        joined: those among them that are new.
    """
    stays = trained & ~joined
    for key, tensor in numbers_of(state, parameter).items():
        tensor.mul_(stays)
        if key in _DIVISORS:
            mean = tensor.sum() / stays.sum().clamp_(min=1)
            tensor.add_(joined * mean)


def momentum(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, group: dict[str, Any], steps: float | None = None
) -> Tensor:
    """Return the momentum of `weight`, in its shape.

    SGD's `momentum_buffer`; for the Adam family `exp_avg / (sqrt(exp_avg_sq) + eps)`, both bias-corrected; for
    optimizers with `exp_avg` alone (Lion, Adamax) that. Zero where the weight has not been stepped yet.

    Args:
        optimizer: the optimizer that holds the state.
        weight: one of its parameters.
        group: the parameter group of the weight.
        steps: steps that the averages have seen since they were zero; None takes the optimizer's own count.

    Raises:
        ValueError: if the optimizer keeps neither `momentum_buffer` nor `exp_avg`.
    """
    state: dict[str, Any] = optimizer.state.get(weight, {})
    buffer: Tensor | None = state.get("momentum_buffer")
    if buffer is not None:
        return buffer.detach()
    if "exp_avg" in state:
        return _adaptive(state, group, float(state.get("step", 0)) if steps is None else steps)
    if not state or "momentum_buffer" in state:
        return torch.zeros_like(weight)
    raise ValueError(
        f"{type(optimizer).__name__} keeps neither 'momentum_buffer' nor 'exp_avg' in its state: {_ADVICE}"
    )


def check_momentum(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Raise a ValueError if the optimizer will keep no momentum for the parameters of `group`."""
    if not keeps_momentum(group):
        raise ValueError(
            f"this recipe needs momentum, and {type(optimizer).__name__} keeps none with these settings: {_ADVICE}"
        )


def correction(name: str, group: dict[str, Any], steps: float, into: float) -> float:
    """Return the factor that turns an average of `steps` steps into one that reads the same after `into` steps.

    The averages of the Adam family start at zero and are corrected for that by their number of steps, which all
    weights of a parameter share. So an average that joins them must be as far from its limit as they are.

    Args:
        name: name of the tensor in the optimizer's state.
        group: the parameter group, for its betas.
        steps: steps that the average has seen.
        into: steps that those which it joins have seen.

    Example:
        >>> correction("exp_avg", {"betas": (0.5, 0.9)}, steps=1, into=2)
        1.5
    """
    betas = group.get("betas")
    if name not in _AVERAGES or betas is None or steps == into or not steps:
        return 1.0
    beta = float(betas[_AVERAGES[name]])
    return float((1 - beta**into) / (1 - beta**steps))


def _forget_momentum(numbers: Mapping[str, Tensor]) -> None:
    """Set the momentum among the tensors of optimizer state to zero, in place."""
    for key in _MOMENTA:
        if key in numbers:
            numbers[key].zero_()


def _adaptive(state: dict[str, Any], group: dict[str, Any], step: float) -> Tensor:
    average: Tensor = state["exp_avg"].detach()
    if "exp_avg_sq" not in state or "betas" not in group:
        return average
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if step == 0:  # its only gradient came in a step that was skipped
        return torch.zeros_like(average)
    variance: Tensor = (state["exp_avg_sq"].detach() / (1 - beta2**step)).sqrt_()
    corrected: Tensor = average / (1 - beta1**step)
    return corrected / variance.add_(group.get("eps", 1e-8))
