"""Which backend serves an operation: the one place that decides.

A backend is a file of its name in the folder of every operation that it serves, and one line of `_BACKENDS`. It says
in words why it does not serve an operation on tensors of some device and types: activations, as the inputs and outputs
of layers are called here, may have another type than weights. What no backend serves, the operation's `reference.py`
computes with PyTorch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from regrow.ops import native

__all__ = ["Backends", "as_activation", "obstacle", "serving", "storage_obstacle"]

REFERENCE = "reference"

# The operation that computes a layer of exactly this type.
_OPERATIONS: Mapping[type[nn.Module], str] = {nn.Linear: "linear", nn.Conv1d: "conv2d", nn.Conv2d: "conv2d"}


_Types = tuple[torch.dtype | None, torch.dtype | None]


def _cpu(operation: str, device: str, types: _Types, unit: tuple[int, int]) -> str | None:
    """Say why the compiled kernels do not serve; units that they do not know are single weights to them."""
    if device != "cpu":
        return f"it is on {device}, and the kernels compute on the CPU"
    if native._kernels is None:
        return native.MISSING
    activations, weights = types
    if weights is not torch.float32 and weights is not None:
        return f"no kernels for {weights} on {device}"
    if activations not in (torch.float32, torch.bfloat16, None):
        return f"no kernels for {activations} on {device}"
    return None


# In the order in which they are asked: why a backend does not serve (operation, type of device, dtypes of activations
# and of weights, unit), or None. A dtype of None stands for any.
_BACKENDS: Mapping[str, Callable[[str, str, _Types, tuple[int, int]], str | None]] = {
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

    def select(
        self, *activations: Tensor | None, weights: Sequence[Tensor | None] = (), unit: tuple[int, int] = (1, 1)
    ) -> ModuleType:
        """Return the module that computes the operation on these tensors; arguments as for `serving`."""
        name = serving(self._operation, *activations, weights=weights, unit=unit)
        return self._modules.get(name) or self._modules[REFERENCE]


def serving(
    operation: str,
    *activations: Tensor | None,
    weights: Sequence[Tensor | None] = (),
    unit: tuple[int, int] = (1, 1),
) -> str:
    """Return the name of the backend that serves an operation on these tensors.

    The reference serves where they are not of one device, activations or weights not of one type, where there is
    nothing to compute, under `torch.jit.trace`, and under forward-mode differentiation.

    Args:
        operation: name of its folder.
        *activations: its input first, and others of the same type.
        weights: what else it computes with.
        unit: outputs and inputs of the weight's units.
    """
    first, of_weights = activations[0], None
    assert first is not None
    device, dtype = first.device, first.dtype
    for other in activations:
        if other is not None and (other.dtype is not dtype or other.device != device):
            return REFERENCE
    for weight in weights:
        if weight is not None:
            of_weights = of_weights or weight.dtype
            if weight.dtype is not of_weights or weight.device != device:
                return REFERENCE
    if not first.numel() or _needs_reference():
        return REFERENCE
    for name, refuses in _BACKENDS.items():
        if refuses(operation, device.type, (dtype, of_weights), unit) is None:
            return name
    return REFERENCE


def obstacle(
    operation: str,
    device: torch.device,
    dtype: torch.dtype | None,
    unit: tuple[int, int] = (1, 1),
    *,
    activations: torch.dtype | None = None,
) -> str | None:
    """Return why no backend serves an operation with weights of a type, in words, or None.

    Args:
        operation: name of its folder.
        device: of all tensors.
        dtype: of weights; None stands for any.
        unit: outputs and inputs of the weight's units.
        activations: type of what goes in and out; None stands for any.
    """
    reasons = [refuses(operation, device.type, (activations, dtype), unit) for refuses in _BACKENDS.values()]
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
    device = weight.device
    if any_dtype:
        return obstacle(_OPERATIONS[kind], device, None, unit)
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return obstacle(_OPERATIONS[kind], device, weight.dtype, unit, activations=autocast)


def as_activation(x: Tensor, weight: Tensor) -> Tensor:
    """Return an input as a layer with this weight takes it.

    Under autocast, where a backend serves the weight, that is in autocast's type if it serves that too, else in the
    weight's. Elsewhere the input stays as it is, and must have the weight's type.

    Raises:
        ValueError: if it has another, and nothing is there to convert it.
    """
    same = x.dtype is weight.dtype
    if not torch.is_autocast_enabled(x.device.type):
        if not same and x.is_floating_point():
            raise ValueError(
                f"an input of {x.dtype} does not fit weights of {weight.dtype}: convert one of them, or compute under "
                f"torch.autocast"
            )
        return x
    if not x.is_floating_point() or obstacle("linear", weight.device, weight.dtype) is not None:
        return x
    autocast = torch.get_autocast_dtype(x.device.type)
    served = obstacle("linear", weight.device, weight.dtype, activations=autocast) is None
    return x.to(autocast if served else weight.dtype)


def _needs_reference() -> bool:
    """Return whether something is at work that sees through PyTorch's own operations alone."""
    return not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0
    )
