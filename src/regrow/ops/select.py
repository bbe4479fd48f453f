"""Which backend serves an operation: the one place that decides.

A backend is a file of its name in the folder of every operation that it serves, and one line of `_BACKENDS`. It says
in words why it does not serve an operation on tensors of some device and type. What no backend serves, the operation's
`reference.py` computes with PyTorch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from regrow.ops import native

__all__ = ["Backends", "in_precision_of", "obstacle", "serving", "storage_obstacle"]

REFERENCE = "reference"

# The operation that computes a layer of exactly this type.
_OPERATIONS: Mapping[type[nn.Module], str] = {nn.Linear: "linear", nn.Conv1d: "conv2d", nn.Conv2d: "conv2d"}


def _cpu(operation: str, device: str, dtype: torch.dtype | None, unit: tuple[int, int]) -> str | None:
    """Say why the compiled kernels do not serve; units that they do not know are single weights to them."""
    if device != "cpu":
        return f"it is on {device}, and the kernels compute on the CPU"
    if native._kernels is None:
        return native.MISSING
    if dtype is not torch.float32 and dtype is not None:
        return f"no kernels for {dtype} on {device}"
    return None


# In the order in which they are asked: why a backend does not serve (operation, type of device, dtype, unit), or None.
_BACKENDS: Mapping[str, Callable[[str, str, torch.dtype | None, tuple[int, int]], str | None]] = {
    "cpu": _cpu,
}


class Backends:
    """The backends of one operation.

    Args:
        package: name of the operation's package, whose modules of the backends' names are loaded.

    Example:
        >>> Backends("regrow.ops.linear").select(torch.zeros(2, 3)).__name__
        'regrow.ops.linear.cpu'
        >>> Backends("regrow.ops.linear").select(torch.zeros(2, 3).double()).__name__
        'regrow.ops.linear.reference'
    """

    def __init__(self, package: str) -> None:
        self._operation = package.rpartition(".")[2]
        self._modules = {
            name: import_module(f"{package}.{name}")
            for name in (*_BACKENDS, REFERENCE)
            if find_spec(f"{package}.{name}") is not None
        }

    def select(self, x: Tensor, *others: Tensor | None, unit: tuple[int, int] = (1, 1)) -> ModuleType:
        """Return the module that computes the operation on these tensors."""
        return self._modules.get(serving(self._operation, x, *others, unit=unit)) or self._modules[REFERENCE]


def serving(operation: str, first: Tensor, *others: Tensor | None, unit: tuple[int, int] = (1, 1)) -> str:
    """Return the name of the backend that serves an operation on these tensors.

    The reference serves where they are not of one device and type, where there is nothing to compute, under
    `torch.jit.trace`, and under forward-mode differentiation.

    Args:
        operation: name of its folder.
        first: its input.
        *others: what else it computes with.
        unit: outputs and inputs of the weight's units.
    """
    device, dtype = first.device, first.dtype
    for other in others:
        if other is not None and (other.dtype is not dtype or other.device != device):
            return REFERENCE
    if not first.numel() or _needs_reference():
        return REFERENCE
    for name, refuses in _BACKENDS.items():
        if refuses(operation, device.type, dtype, unit) is None:
            return name
    return REFERENCE


def obstacle(
    operation: str, device: torch.device, dtype: torch.dtype | None, unit: tuple[int, int] = (1, 1)
) -> str | None:
    """Return why no backend serves an operation, in words, or None; a dtype of None stands for any."""
    reasons = [refuses(operation, device.type, dtype, unit) for refuses in _BACKENDS.values()]
    return None if None in reasons else "; ".join(map(str, reasons))


def storage_obstacle(
    kind: type[nn.Module], weight: Tensor, *, unit: tuple[int, int] = (1, 1), any_dtype: bool = False
) -> str | None:
    """Return why no backend serves the weight of a layer of this type, in words, or None.

    Args:
        kind: type of the ordinary layer.
        weight: its dense weight.
        unit: outputs and inputs of its units.
        any_dtype: whether types of numbers that backends leave to the reference are no obstacle.

    Example:
        >>> storage_obstacle(nn.Linear, torch.zeros(2, 3).double())
        'no kernels for torch.float64 on cpu'
        >>> storage_obstacle(nn.Linear, torch.zeros(2, 3))
    """
    if kind not in _OPERATIONS:
        names = ", ".join(f"nn.{known.__name__}" for known in _OPERATIONS)
        return f"only the weights of {names} have a sparse form, {kind.__name__} has none"
    found = obstacle(_OPERATIONS[kind], weight.device, None if any_dtype else weight.dtype, unit)
    if found is None and not any_dtype and torch.is_autocast_enabled(weight.device.type):
        return f"the kernels compute {str(weight.dtype).removeprefix('torch.')}, and autocast is on"
    return found


def in_precision_of(weight: Tensor, x: Tensor) -> Tensor:
    """Return an input as kernels take it: under autocast, where they serve the weight, in the weight's precision."""
    if x.dtype is weight.dtype or not torch.is_autocast_enabled(x.device.type) or not x.is_floating_point():
        return x
    return x if obstacle("linear", weight.device, weight.dtype) else x.to(weight.dtype)


def _needs_reference() -> bool:
    """Return whether something is at work that sees through PyTorch's own operations alone."""
    return not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0
    )
