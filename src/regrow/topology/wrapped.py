"""Optimizers that stand around another, as SAM, Lookahead and Accelerate's: which one steps, and what to mind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from torch.optim import Optimizer

__all__ = ["enforce_after", "parameters_of", "stands_around", "stepping"]

# What changes weights between the steps in the implementations of SAM, ASAM and GSAM.
_PERTURBING = ("first_step", "ascent_step", "perturb_weights")


def parameters_of(optimizer: Any) -> set[int]:
    """Return the `id` of each parameter of an optimizer."""
    return {id(parameter) for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]}


def stepping(optimizer: Any, parameters: Collection[int]) -> Optimizer:
    """Return the optimizer that steps some parameters: the given one, or the innermost that it stands around.

    Args:
        optimizer: an optimizer, or an object with one as an attribute.
        parameters: the `id` of each parameter that is looked for.

    Raises:
        ValueError: if there is no optimizer with step hooks.
    """
    known = parameters_of(optimizer) & set(parameters) or set(parameters)
    for inner in _inside(optimizer):
        if known <= parameters_of(inner):
            return stepping(inner, parameters)
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ValueError(
            f"{type(optimizer).__name__} has no step hooks of torch.optim.Optimizer, nor an optimizer of these weights "
            "as an attribute: give the torch.optim.Optimizer that steps them"
        )
    return optimizer


def stands_around(outer: Any, inner: Optimizer) -> bool:
    """Return whether an optimizer is another, or has it as an attribute, at any depth."""
    return outer is inner or any(stands_around(each, inner) for each in _inside(outer))


def enforce_after(outer: Any, inner: Optimizer, enforce: Callable[[], None]) -> list[Callable[[], None]]:
    """Have absent weights zeroed after whatever the optimizers around one do to weights; return what ends that.

    That is after their own steps, and after the first step of SAM, before the pass at the perturbed weights.
    """
    ends: list[Callable[[], None]] = []
    while outer is not inner:
        if hasattr(outer, "_optimizer_step_post_hooks"):
            ends.append(outer.register_step_post_hook(lambda *_: enforce()).remove)
        for name in _PERTURBING:
            if callable(getattr(outer, name, None)):
                setattr(outer, name, _then(getattr(outer, name), enforce))
                ends.append(functools.partial(delattr, outer, name))
        outer = next(each for each in _inside(outer) if stands_around(each, inner))
    return ends


def _inside(optimizer: Any) -> list[Any]:
    """Return the optimizers that are attributes of one, or of an object."""
    return [each for each in getattr(optimizer, "__dict__", {}).values() if isinstance(each, Optimizer)]


def _then(method: Callable[..., Any], enforce: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def both(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        enforce()
        return result

    return both
