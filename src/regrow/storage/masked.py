"""Masked storage: the parameter stays dense and is zero wherever its mask is.

The mask is a buffer `<parameter>_mask` beside the parameter, in its dtype and memory format: so `state_dict`,
`deepcopy`, `pickle` and `.to()` carry it along, and applying it is one multiplication without conversion. The
gradient stays dense, which is what growth reads for free. In exchange nothing is saved: memory and arithmetic are
those of the dense layer. It serves any layer, device and dtype, and is the reference for every other storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.entries import Change

_SUFFIX = "_mask"


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

    @property
    def storage(self) -> str:
        """How it is stored, in a word."""
        return "masked"

    @property
    def holds_absent(self) -> bool:
        """True: gradient and optimizer state are dense."""
        return True

    @property
    def weight(self) -> nn.Parameter:
        """The dense parameter."""
        parameter: nn.Parameter = getattr(self.module, self.parameter)
        return parameter

    @property
    def mask(self) -> Tensor:
        """Ones and zeros in the weight's dtype and shape."""
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
    def bytes(self) -> int:
        """Bytes that the weight takes in memory, its mask included."""
        return self.weight.nbytes + self.mask.nbytes

    def positions(self) -> Tensor:
        """Return the mask as a bool tensor in the shape of the weight."""
        return self.mask != 0

    def nonzeros(self) -> int:
        """Return how many weights exist, zero-valued ones included."""
        return int(self.mask.count_nonzero())

    def index(self) -> Tensor:
        """Return the flat positions of the weights that exist, sorted int64."""
        return self.mask.reshape(-1).nonzero().squeeze(1)

    def existing(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a dense tensor in the order of `index`."""
        return self.at(tensor, self.index())

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a dense tensor at flat positions."""
        return tensor.reshape(-1)[positions]

    @torch.no_grad()
    def apply(self, change: Change, numbers: Mapping[str, Tensor], joining: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change in place: dropped and grown weights become zero, the mask and the state follow."""
        # Coordinates instead of flat positions: the tensors may have any memory format.
        drop, grow = (torch.unravel_index(index, self.shape) for index in (change.drop, change.grow))
        self.weight[drop] = 0
        self.mask[drop] = 0
        self.mask[grow] = 1
        for key, tensor in numbers.items():
            tensor[grow] = joining[key]
        return dict(numbers)


def mask_weight(module: nn.Module, name: str, parameter: str, positions: Tensor) -> None:
    """Turn a parameter into a masked weight, in place.

    Args:
        module: the owner of the parameter.
        name: the parameter's full name, for the error.
        parameter: its name within the module.
        positions: bool tensor in the parameter's shape, true where the weight exists.

    Raises:
        ValueError: if the module already has an attribute of the mask's name.
    """
    if hasattr(module, parameter + _SUFFIX):
        raise ValueError(f"cannot mask {name!r}: its module already has an attribute {parameter + _SUFFIX!r}")
    weight = getattr(module, parameter)
    mask = torch.empty_like(weight, requires_grad=False).copy_(positions)
    module.register_buffer(parameter + _SUFFIX, mask)
    with torch.no_grad():
        weight.mul_(mask)


def masked_weights(module: nn.Module, path: str) -> dict[str, MaskedWeight]:
    """Return a handle on every masked weight that `module` itself owns, by its full name.

    Args:
        module: the module; its children are not looked at.
        path: its full name in the model.
    """
    handles = {}
    for parameter, weight in module.named_parameters(recurse=False, remove_duplicate=False):
        mask = module._buffers.get(parameter + _SUFFIX)
        if mask is not None and mask.shape == weight.shape:
            name = f"{path}.{parameter}" if path else parameter
            handles[name] = MaskedWeight(name, module, parameter)
    return handles


def unmask(weight: MaskedWeight) -> None:
    """Turn a masked weight back into an ordinary parameter, in place; absent weights stay zero."""
    enforce([weight])
    delattr(weight.module, weight.parameter + _SUFFIX)


def enforce(weights: Sequence[MaskedWeight]) -> None:
    """Zero every absent weight, in place, without allocation or host sync."""
    if weights:
        with torch.no_grad():
            # One call for all layers: on CUDA one kernel, on the CPU one loop outside Python.
            torch._foreach_mul_([w.weight for w in weights], [w.mask for w in weights])


def dense_state_dict(state: Mapping[str, Any], weights: Mapping[str, MaskedWeight]) -> dict[str, Any]:
    """Return `state`, a state dict of the masked model, without its masks and with absent weights at zero."""
    masks = {name + _SUFFIX for name in weights}
    # by address, for a shared weight stands in the state under each of its names
    applied = {state[name].data_ptr(): state[name] * weight.mask for name, weight in weights.items()}
    return {
        name: applied.get(value.data_ptr(), value) if isinstance(value, Tensor) else value
        for name, value in state.items()
        if name not in masks
    }
