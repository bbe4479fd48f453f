"""What hooks on an optimizer's step have to mind: closures, and a GradScaler whose work the optimizer does itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["acts_last", "gradient_scale", "once_gradients_are_there", "was_skipped"]


def once_gradients_are_there(args: Any, kwargs: Any, act: Callable[[], None]) -> tuple[Any, Any] | None:
    """Act before a step: at once, or where a closure makes the gradients in the step, as soon as it returns.

    Args:
        args: positional arguments of the step, as a hook before it is given them: the optimizer is the first.
        kwargs: the others.
        act: what to do.

    Returns:
        For the hook to return: the step's arguments with another closure, or None where there is none.

    Example:
        >>> once_gradients_are_there(("optimizer",), {}, lambda: print("now"))
        now
        >>> _, with_another = once_gradients_are_there(("optimizer",), {"closure": lambda: 0.5}, lambda: print("then"))
        >>> with_another["closure"]()
        then
        0.5
    """

    def then_acting(closure: Callable[[], Any]) -> Callable[[], Any]:
        def acting() -> Any:
            value = closure()
            act()
            return value

        return acting

    if kwargs.get("closure") is not None:
        return args, {**kwargs, "closure": then_acting(kwargs["closure"])}
    if len(args) > 1 and callable(args[1]):
        return (args[0], then_acting(args[1]), *args[2:]), kwargs
    act()
    return None


def acts_last(optimizer: Optimizer, hook: RemovableHandle) -> bool:
    """Return whether no other hook comes between this one and the optimizer's step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        >>> hook = optimizer.register_step_pre_hook(lambda *_: None)
        >>> acts_last(optimizer, hook)
        True
        >>> _ = optimizer.register_step_pre_hook(lambda *_: None)
        >>> acts_last(optimizer, hook)
        False
    """
    return next(reversed(optimizer._optimizer_step_pre_hooks), None) == hook.id


def gradient_scale(optimizer: Optimizer) -> Tensor | None:
    """Return what a GradScaler has multiplied the gradients by that the optimizer is to unscale by itself."""
    return getattr(optimizer, "grad_scale", None)


def was_skipped(optimizer: Optimizer) -> bool:
    """Return whether a step was none: optimizers that unscale are called even if the GradScaler found an infinity."""
    infinities = getattr(optimizer, "found_inf", None)
    return infinities is not None and bool(infinities)
