"""What all layers with a sparsely stored weight share: values and positions as ordinary module state."""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regrow.core.positions import compact, find
from regrow.nn.numbers import checksum_of, has_numbers, rebind, version_of
from regrow.nn.open_sizes import leave_sizes_open
from regrow.nn.read_only import ReadOnly
from regrow.ops import gradient
from regrow.ops.gradient import watch
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.program import values_at
from regrow.ops.select import as_activation, obstacle

__all__ = ["Covered", "SparseLayer", "exclusive"]

# Held while numbers and positions of a layer change, and while a pass without gradient takes both: one thread may infer
# while another trains. One for all layers, for it is held for an instant.
exclusive = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A child has one thread only: whatever other threads held would be held for ever.
    os.register_at_fork(before=exclusive.acquire, after_in_parent=exclusive.release, after_in_child=exclusive.release)

_NO_ASSIGNMENT = (
    "the weight of a sparse layer is made from `values` and `index`: load another with "
    'layer.load_state_dict({"weight": ...}, strict=False), which takes it where weights exist'
)


class Covered(NamedTuple):
    """Positions that a layer's parameter has numbers for, beyond those of the active weights.

    Attributes:
        positions: sorted flat positions, those of active weights among them, int32 or int64; None for every position
            of the dense weight.
        active: where the numbers of the active weights stand in the parameter, int32 or int64, shape (nonzeros,).
        pattern: index structure of the positions; None for all.
    """

    positions: Tensor | None
    active: Tensor
    pattern: Pattern | None


class SparseLayer(nn.Module, ABC):
    """A layer that stores the weights that exist, and no others.

    Its parameter is `values`, shape (nonzeros,), in the order of the buffer `index`, the sorted flat positions in the
    dense weight (int32 where that is enough): so gradients and optimizer state are as small, and `state_dict`,
    `deepcopy`, `pickle` and `.to()` carry both along. A state dict with another number of nonzeros can be loaded, and
    one of the ordinary layer, with its mask or, if that is missing, at the positions that the layer has. The parameter
    stays the same object.

    While growth gathers what it needs of absent weights, the parameter *covers* those too. Their numbers take no part
    in the output, but gradient and optimizer state are those that a dense weight would have there. A state dict holds
    the active weights alone, always.

    Positions change by `load_state_dict` or an updater, which take the values along. A write into `index` in place
    does not, as that of `torch.optim.swa_utils.AveragedModel`, whose values would be means over different weights: the
    next use of the layer raises.

    Other threads may compute without gradient (`torch.no_grad`, `torch.inference_mode`) while one trains: they see the
    positions from before an update or those after it.

    Args:
        values: the weights that exist, shape (nonzeros,).
        index: their flat positions in the dense weight, sorted, int32 or int64.
        bias: one number for each output, or None.
        unit: outputs and inputs of a unit of topology.

    Attributes:
        inputs_first: whether the ordinary layer keeps its weight as (inputs, outputs), the transpose of this one's. All
            that is as large as the dense weight then has the shape of the ordinary layer's; positions and `shape` are
            this layer's own.
        covered: which positions the parameter covers; None for those of the active weights.
        geometry: stride, padding, dilation and groups, as the kernels know them.
        times_rebound: how often the parameter has taken other numbers, for other positions.
    """

    inputs_first = False
    geometry: Geometry

    def __init__(
        self, values: Tensor, index: Tensor, bias: Tensor | None = None, unit: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.values = _parameter(values)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else _parameter(bias))
        self.index: Tensor
        self.register_buffer("index", index)
        self.covered: Covered | None = None
        self.times_rebound = 0
        self.unit = unit
        self._pattern: Pattern | None = None
        self._note_index()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, outputs first."""

    @abstractmethod
    def enter(self, x: Tensor) -> Tensor:
        """Return an input as the product takes it: of the dimensions that the kernels know, padded."""

    @abstractmethod
    def product(self, x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Return the output for an input that has entered and the active weights, shape (nonzeros,)."""

    @abstractmethod
    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """Return an output of the product as the ordinary layer returns it for the input `x`."""

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, with absent weights at zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to an input as the ordinary layer takes it."""
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None):
            with exclusive:
                values, pattern = self._active_values(), self.pattern
            return self.leave(self.product(self.enter(as_activation(x, values)), values, pattern), x)
        entered = self.enter(as_activation(x, self.values))
        covered = self.covered
        if covered is None:
            return self.leave(self.product(entered, self._held(self.values), self.pattern), x)
        output = self.product(entered, self._held(self._active_values()), self.pattern)
        if self.values.requires_grad and torch.is_grad_enabled():
            output = watch(output, entered, self.values, covered.pattern, self._pattern_shape, self.geometry)
        return self.leave(output, x)

    def _held(self, values: Tensor) -> Tensor:
        """Return values that a program, whose constants the positions become, takes for these positions alone."""
        if not (torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None):
            return values
        held: Tensor = values_at(values, self.index, self._known[2])
        return held

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew at each reading; gradients flow to the values, and a write into it raises."""
        self._check_index()
        values = self.values if self.covered is None else self.values[self.covered.active]
        dense = values.new_zeros(self._numel).index_put((self.index,), values).view(self.shape)
        dense = self.turned(dense)
        return dense.as_subclass(ReadOnly) if has_numbers(dense) else dense

    @weight.setter
    def weight(self, weight: Tensor | None) -> None:
        raise AttributeError(_NO_ASSIGNMENT)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter of any other name than that of the dense weight."""
        if name == "weight":
            raise AttributeError(_NO_ASSIGNMENT)
        super().register_parameter(name, param)

    @property
    def pattern(self) -> Pattern:
        """The index structure that the kernels use; made anew only when the positions change.

        Raises:
            RuntimeError: if something wrote other positions into `index` in place.
        """
        if not torch.compiler.is_compiling():  # a compiler would look at its own copy
            self._check_index()
        if self._pattern is None:
            self._pattern = self.pattern_of(self.index.cpu())
        return self._pattern

    def _note_index(self) -> None:
        """Remember the positions as they are."""
        self._known = (self.index, version_of(self.index), checksum_of(self.index))

    def _check_index(self) -> None:
        """See whether the positions are those that are known."""
        index, (known, version, checksum) = self.index, self._known
        if index is known and version_of(index) == version:
            return
        if not has_numbers(index):  # it stands for positions: something traces or transforms
            return
        now = checksum_of(index)
        if now != checksum and index is known:
            raise RuntimeError(
                "other positions were written into the index of a sparse layer in place, as "
                "torch.optim.swa_utils.AveragedModel does, and its values may be means over different weights: take "
                "averages with regrow.AveragedModel, and copies with load_state_dict"
            )
        if now != checksum:  # another tensor stands there, as under torch.func.functional_call
            self._pattern = None
        self._known = (index, version_of(index), now)

    def covering(self, positions: Tensor | None) -> Covered:
        """Return what `covered` takes, with its index structure made.

        Args:
            positions: sorted flat positions, those of active weights among them, int32 or int64; None for all.
        """
        if positions is None:
            return Covered(None, self.index, None)
        positions = compact(positions, self._numel)
        active, found = find(self.index, positions)
        if not bool(found.all()):
            raise ValueError("positions to be covered must hold those of all active weights")
        pattern = self.pattern_of(positions.cpu())
        gradient.prepare(pattern, self.values, self.geometry)
        return Covered(positions, compact(active, len(positions)), pattern)

    def hold(self, numbers: Tensor, covered: Covered | None) -> None:
        """Let the parameter hold the numbers of other covered positions; it stays the same object, without gradient.

        Args:
            numbers: one for each covered position.
            covered: as from `covering`; None for the positions of the active weights.
        """
        with exclusive:
            rebind(self.values, numbers)
            self.covered = covered
            self.times_rebound += 1

    def pattern_of(self, positions: Tensor) -> Pattern:
        """Return the index structure of other positions of this layer's weight."""
        return Pattern(self._pattern_shape, positions, self.unit)

    def prepare(self) -> None:
        """Make the index structures that the kernels will ask for: `torch.compile` would not see through that."""
        leave_sizes_open()
        if obstacle("conv2d", self.values.device, self.values.dtype) is None:
            self.pattern.index_of_product(self.geometry, input_gradient=True)

    @property
    def _pattern_shape(self) -> tuple[int, ...]:
        """The dense shape with the two or four dimensions that the kernels know."""
        return self.shape

    @property
    def _numel(self) -> int:
        return math.prod(self.shape)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """Return the weight as a new dense tensor, zero where weights are absent."""
        self._check_index()
        dense = self.values.new_zeros(self._numel)
        dense[self.index] = self._active_values()
        return self.turned(dense.view(self.shape)).contiguous()

    def turned(self, dense: Tensor) -> Tensor:
        """Return a dense weight of this layer as the ordinary layer keeps it, or the other way round."""
        return dense.t() if self.inputs_first else dense

    def _active_values(self) -> Tensor:
        values = self.values.detach()
        return values if self.covered is None else values.index_select(0, self.covered.active)

    def replace(self, index: Tensor, values: Tensor) -> None:
        """Take other positions and values, of any number; the parameter stays the same object.

        The gradient, which belonged to the old ones, is set to None, and nothing but active weights is covered.

        Args:
            index: flat positions in the dense weight, sorted, int32 or int64.
            values: the weights at these positions.
        """
        with exclusive:
            # The old structures go before the new ones are made: at no time are there both.
            self._pattern = None
            self.hold(values, None)
            self.index = index
            self._note_index()
            self.prepare()

    def replace_active(self, index: Tensor) -> None:
        """Let other weights be active, among the positions that the parameter covers; the gradient stays with those.

        Args:
            index: flat positions in the dense weight, sorted, int32 or int64.
        """
        assert self.covered is not None
        with exclusive:
            self._pattern = None
            self.index = index
            self._note_index()
            if self.covered.positions is None:
                self.covered = Covered(None, index, None)
            else:
                positions = self.covered.positions
                self.covered = self.covered._replace(active=compact(find(index, positions)[0], len(positions)))
            self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is not the layer's own: a copy covers its active weights alone and makes its own pattern."""
        state = {**self.__dict__, "covered": None, "_pattern": None, "_known": None}
        if self.covered is not None:
            values = nn.Parameter(self._active_values(), requires_grad=self.values.requires_grad)
            state["_parameters"] = {**self._parameters, "values": values}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state and make the pattern."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._note_index()
        self.prepare()

    def _apply(self, *args: Any, **kwargs: Any) -> SparseLayer:
        """Move or convert the layer; the kernels may serve it now, or no more."""
        self._check_index()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._note_index()
        self.prepare()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._check_index()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.covered is not None:
            destination[prefix + "values"] = self._active_values()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: list[str]
    ) -> None:
        missing, _, errors = lists
        names = {key: prefix + key for key in ("values", "index", "weight", "weight_mask")}
        found = {key: state_dict.pop(name) for key, name in names.items() if name in state_dict}
        try:
            loaded = self._loaded(**found)
        except ValueError as error:
            errors.append(f"{prefix}index does not fit this layer: {error}")
        else:
            if loaded is not None:
                # A tensor made under inference mode could never be trained.
                with torch.inference_mode(False), torch.no_grad():
                    self._take(*loaded)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        if found:  # and so it is in place, or refused, but not missing
            missing[:] = [name for name in missing if name not in names.values()]

    def _loaded(
        self,
        values: Tensor | None = None,
        index: Tensor | None = None,
        weight: Tensor | None = None,
        weight_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """Return values and positions from a state, whichever storage wrote it; None if it holds nothing of them."""
        if weight is not None and values is None and index is None:
            expected = self.shape[::-1] if self.inputs_first else self.shape
            if tuple(weight.shape) != expected or (weight_mask is not None and weight_mask.shape != weight.shape):
                raise ValueError(f"the dense weight has shape {tuple(weight.shape)} there, and {expected} here")
            weight, weight_mask = self.turned(weight), None if weight_mask is None else self.turned(weight_mask)
            index = self.index if weight_mask is None else weight_mask.reshape(-1).nonzero().squeeze(1)
            values = weight.reshape(-1)[index.to(weight.device, torch.int64)]
        if values is None and index is None:
            return None
        if values is None or index is None:
            raise ValueError("values and index belong together: load both")
        pattern = self.pattern_of(index.cpu())  # checks the positions
        if values.shape != (pattern.nonzeros,):
            raise ValueError(f"values of shape {tuple(values.shape)} stand at {pattern.nonzeros} positions")
        return values, index

    def _take(self, values: Tensor, index: Tensor) -> None:
        """Take copies of values and positions of a state."""
        values = values.to(self.values, copy=True)
        known, version, _ = self._known
        # What was written into the index in place is overwritten.
        if not self._has(index) or self.index is not known or version_of(self.index) != version:
            self.replace(compact(index, self._numel).to(self.index.device, copy=True), values)
        elif self.covered is None:
            self.values.copy_(values)
        else:
            self.values.zero_()
            self.values[self.covered.active] = values

    def _has(self, index: Tensor) -> bool:
        """Return whether these are the positions of the layer's weights."""
        return index.shape == self.index.shape and bool((index.cpu() == self.index.cpu()).all())


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=tensor.requires_grad)
