"""Masked storage: the parameter stays dense and is zero wherever its mask is.

The mask is a bool buffer `<parameter>_mask` beside the parameter: `state_dict`, `deepcopy`, `pickle` and `.to()` carry
it along, and nothing that averages buffers can make fractions of it. The gradient stays dense, which is what growth
reads for free. In exchange nothing is saved: memory and arithmetic are those of the dense layer. It serves any layer,
device and dtype, and is the reference for every other storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.units import Units
from regrow.nn.kinds import is_inputs_first_linear
from regrow.storage.aside import Aside
from regrow.storage.sharded import own, own_part, whole, write
from regrow.storage.weight import Storage, Weight

__all__ = ["MaskedWeight", "enforce", "mask_weight", "masked_weights"]

_SUFFIX = "_mask"
# Where a module notes which of its parameters are masked: for each its unit. The hook that loads states is beside it.
_UNITS, _HOOK = "_regrow_units", "_regrow_hook"


@dataclass
class _Factor:
    """A mask as numbers of the weight's dtype, None if it is full; made anew when the mask has changed."""

    numbers: Tensor | None = None
    made_from: tuple[object, ...] = ()

    def of(self, mask: Tensor, weight: Tensor) -> Tensor | None:
        made_from = (id(mask), mask._version, weight.dtype, weight.device, weight.stride())
        if self.made_from != made_from:
            full = bool(mask.all())
            part = own_part(mask, weight)
            self.numbers = None if full else torch.empty_like(own(weight), requires_grad=False).copy_(part)
            self.made_from = made_from
        return self.numbers


@dataclass(frozen=True)
class MaskedWeight:
    """A handle on one masked weight; the tensors themselves belong to the module.

    Attributes:
        name: full name of the parameter in the model.
        module: the module that owns it.
        parameter: its name within the module.
    """

    name: str
    module: nn.Module
    parameter: str
    _factor: _Factor = field(default_factory=_Factor, compare=False, repr=False)

    @property
    def storage(self) -> Storage:
        """How it is stored."""
        return Storage.MASKED

    @property
    def holds_absent(self) -> bool:
        """True: gradient and optimizer state are dense."""
        return True

    @property
    def weight(self) -> nn.Parameter:
        """The dense parameter.

        Raises:
            RuntimeError: if something else stands there, as after `torch.nn.utils.weight_norm`.
        """
        parameter = self.module._parameters.get(self.parameter)
        if parameter is None:
            raise RuntimeError(
                f"{self.name!r} is sparse, but its module has no parameter of that name: weight norm, spectral norm, "
                "pruning and parametrizations put other parameters in its place; remove them, or keep this weight "
                "dense (keep_dense of regrow.sparsify)"
            )
        return parameter

    @property
    def buffer(self) -> Tensor:
        """The mask itself, bool in the weight's shape."""
        mask: Tensor = getattr(self.module, self.parameter + _SUFFIX)
        return mask

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return tuple(self.weight.shape)

    @property
    def numel(self) -> int:
        """Number of elements of the dense weight."""
        return self.weight.numel()

    @property
    def units(self) -> Units:
        """The units in which its topology changes."""
        return Units(self.shape, self.module.__dict__[_UNITS][self.parameter])

    @property
    def bytes(self) -> int:
        """Bytes that the weight takes in memory, its mask included."""
        return self.weight.nbytes + self.buffer.nbytes

    @property
    def state_keys(self) -> tuple[str, str]:
        """Keys of parameter and mask in a state dict."""
        return self.name, self.name + _SUFFIX

    @torch.no_grad()
    def dense(self) -> Tensor:
        """Return the weight as a new dense tensor, zero where it is absent."""
        return whole(self.weight) * self.buffer

    def mask(self) -> Tensor:
        """Return a copy of the mask."""
        return self.buffer.clone()

    def nonzeros(self) -> int:
        """Return how many weights are active, zero-valued ones included."""
        return int(self.buffer.count_nonzero())

    def nonzero_absent(self) -> int:
        """Return how many absent weights are not zero: something other than the updater's optimizer changed them."""
        return int(whole(self.weight.detach()).masked_fill(self.buffer, 0).count_nonzero())

    def index(self) -> Tensor:
        """Return the flat positions of the active weights, sorted int64."""
        return self.buffer.reshape(-1).nonzero().squeeze(1)

    def index_version(self) -> object:
        """Return nothing: whatever replaces the mask, gradients and state keep their positions."""
        return None

    def parameter_version(self) -> int:
        """Return 0: the parameter covers every position, always."""
        return 0

    def factor(self) -> Tensor | None:
        """Return the mask in the weight's dtype and memory format; None if nothing is absent."""
        return self._factor.of(self.buffer, self.weight)

    def existing(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a dense tensor in the order of `index`."""
        return self.at(tensor, self.index())

    def everywhere(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a dense tensor, flat."""
        return whole(tensor).reshape(-1)

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a dense tensor at flat positions."""
        return whole(tensor).reshape(-1)[positions]

    def put(self, tensor: Tensor, positions: Tensor, numbers: Tensor) -> None:
        """Set the numbers of a dense tensor at flat positions."""
        # Coordinates instead of flat positions: the tensor may have any memory format.
        places = torch.unravel_index(positions, self.shape)
        write(tensor, lambda dense: dense.__setitem__(places, numbers))

    def cover(self, positions: Tensor | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with zeros at absent positions, in place: the parameter covers them as it is."""
        for tensor in state.values():
            own(tensor).mul_(own_part(self.buffer, tensor))
        return dict(state)

    def uncover(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state as it is: the parameter covers every position, always."""
        return dict(state)

    def clear_absent(self) -> None:
        """Do nothing: `enforce` does it for all masked weights at once."""

    def leave_active(self, state: Mapping[str, Tensor]) -> Aside | None:
        """Do nothing: the parameter covers every position by itself."""
        return None

    @torch.no_grad()
    def apply(self, change: Change, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change in place: dropped weights become zero and the mask follows; the state stays."""
        drop, grow = (torch.unravel_index(index, self.shape) for index in (change.drop, change.grow))
        write(self.weight, lambda dense: dense.__setitem__(drop, 0))
        self.buffer[drop] = False
        self.buffer[grow] = True
        return dict(state)

    def to_dense(self) -> nn.Module:
        """Return the module, its parameter an ordinary one again, in place; absent weights are zero."""
        enforce([self])
        units = self.module.__dict__[_UNITS]
        del units[self.parameter]
        delattr(self.module, self.parameter + _SUFFIX)
        if not units:
            self.module.__dict__.pop(_HOOK).remove()
            del self.module.__dict__[_UNITS]
        return self.module


def mask_weight(
    module: nn.Module, name: str, parameter: str, positions: Tensor, unit: tuple[int, int] = (1, 1)
) -> None:
    """Turn a parameter into a masked weight, in place.

    Args:
        module: the owner of the parameter.
        name: the parameter's full name, for the error.
        parameter: its name within the module.
        positions: bool tensor in the parameter's shape, true where the weight exists.
        unit: sides of a unit along the first two dimensions, divisors of the parameter's.

    Raises:
        ValueError: if the module already has an attribute of the mask's name.
    """
    if hasattr(module, parameter + _SUFFIX):
        raise ValueError(f"cannot mask {name!r}: its module already has an attribute {parameter + _SUFFIX!r}")
    weight = getattr(module, parameter)
    mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(positions)
    module.register_buffer(parameter + _SUFFIX, mask)
    if _UNITS not in module.__dict__:
        module.__dict__[_UNITS] = {}
        module.__dict__[_HOOK] = module.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _complete
        )
    module.__dict__[_UNITS][parameter] = unit
    with torch.no_grad():
        weight.mul_(mask)


def masked_weights(module: nn.Module, path: str) -> dict[str, Weight]:
    """Return a handle on every masked weight that `module` itself owns, by its full name.

    Args:
        module: the module; its children are not looked at.
        path: its full name in the model.
    """
    prefix = f"{path}." if path else ""
    return {
        prefix + parameter: MaskedWeight(prefix + parameter, module, parameter)
        for parameter in module.__dict__.get(_UNITS, ())
    }


def enforce(weights: Sequence[Weight]) -> None:
    """Zero every absent weight of masked storage, in place; allocates and syncs only after a mask has changed."""
    factors = [(own(weight.weight), factor) for weight in weights if (factor := weight.factor()) is not None]
    if factors:
        with torch.no_grad():
            # One call for all layers: on CUDA one kernel, on the CPU one loop outside Python.
            torch._foreach_mul_(*map(list, zip(*factors, strict=True)))


def _complete(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Make of a state of this module, from sparse storage or dense, one that masked storage loads.

    A dense weight is taken where the mask is known: the module's own.
    """
    *_, errors = rest
    for parameter, unit in module.__dict__.get(_UNITS, {}).items():
        name, mask_name = prefix + parameter, prefix + parameter + _SUFFIX
        own = getattr(module, parameter + _SUFFIX)
        values, index = (state.get(prefix + key) for key in ("values", "index"))
        try:
            if parameter == "weight" and name not in state and values is not None and index is not None:
                state[name], state[mask_name] = _from_sparse(values, index, module, tuple(own.shape))
                del state[prefix + "values"], state[prefix + "index"]
            if mask_name not in state and name in state and state[name].shape == own.shape:
                state[mask_name] = own.clone()
            elif mask_name in state:
                _check_units(state[mask_name], tuple(own.shape), unit)
        except ValueError as error:
            errors.append(f"{name} does not fit this layer: {error}")
            state[name], state[mask_name] = getattr(module, parameter), own
            continue
        if name in state and mask_name in state and state[name].shape == state[mask_name].shape:
            state[name] = state[name] * state[mask_name].bool().to(state[name].device)


def _from_sparse(values: Tensor, index: Tensor, module: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a dense weight and its mask from what the sparse form of a module holds."""
    if not is_inputs_first_linear(module):
        return _dense(values, index, shape)
    weight, mask = _dense(values, index, shape[::-1])
    return weight.t().contiguous(), mask.t().contiguous()


def _dense(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a dense weight and its mask from values at flat positions."""
    index = index.to(values.device, torch.int64)
    numel = torch.Size(shape).numel()
    if values.dim() != 1 or index.shape != values.shape:
        raise ValueError(f"{tuple(values.shape)} values stand at {tuple(index.shape)} positions")
    if len(index) and not (index[0] >= 0 and index[-1] < numel and bool((index.diff() > 0).all())):
        raise ValueError(f"positions must be sorted, distinct and within the shape {shape}")
    weight, mask = values.new_zeros(numel), torch.zeros(numel, dtype=torch.bool, device=values.device)
    weight[index], mask[index] = values, True
    return weight.view(shape), mask.view(shape)


def _check_units(mask: Tensor, shape: tuple[int, ...], unit: tuple[int, int]) -> None:
    if unit != (1, 1) and tuple(mask.shape) == shape:
        Units(shape, unit).numbers_of(mask.reshape(-1).nonzero().squeeze(1))
