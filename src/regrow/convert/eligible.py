"""Which weights of a model may be sparse, and the selection of some of them by name or type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from regrow.nn.kinds import is_inputs_first_linear, keeps_inputs_first

__all__ = ["Selector", "Slot", "eligible", "slots_of", "some_names"]

Selector = str | type[nn.Module]
"""A glob over names of weights or modules, `"first"`, `"last"`, or a type of module."""

# Types whose weights are matrices or kernels, and the names of those weights.
_SPARSE_BY_DEFAULT: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, r"weight"),
    (nn.Bilinear, r"weight"),
    (_ConvNd, r"weight"),
    (nn.MultiheadAttention, r"(in|q|k|v)_proj_weight"),
    (nn.RNNBase, r"weight_(ih|hh|hr)_l\d+(_reverse)?"),
    (nn.RNNCellBase, r"weight_(ih|hh)"),
)


@dataclass(frozen=True)
class Slot:
    """A place of a parameter in a model.

    Attributes:
        name: full name of the parameter.
        module: the module that owns it.
        path: full name of that module.
        parameter: name of the parameter within the module.
    """

    name: str
    module: nn.Module
    path: str
    parameter: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter itself."""
        weight: nn.Parameter = getattr(self.module, self.parameter)
        return weight

    @property
    def inputs_first(self) -> bool:
        """Whether the first dimension counts inputs, as in transposed convolutions."""
        return keeps_inputs_first(self.module)

    @property
    def sides(self) -> tuple[int, int]:
        """Outputs and inputs that units may span: of one group, where a convolution has several."""
        first, second = (*self.weight.shape, 1)[:2]
        groups = self.module.groups if isinstance(self.module, _ConvNd) else 1
        return (second, first // groups) if self.inputs_first else (first // groups, second)


def eligible(model: nn.Module, include: Sequence[Selector] = (), keep_dense: Sequence[Selector] = ()) -> list[Slot]:
    """Return the parameters that are to be sparse, in the order of the modules, shared ones once.

    By default the weights of linear layers (`Conv1D` of transformers too), of convolutions (transposed ones too), of
    the projections of multi-head attention and of recurrent layers; never biases, norms and embeddings, nor a weight
    tied to an embedding.

    Args:
        model: the model.
        include: further parameters, asked for by glob or type of module.
        keep_dense: weights to leave dense, by glob, type, `"first"` or `"last"`.

    Raises:
        ValueError: if a selector matches nothing, nothing is left, a parameter is not initialised yet, or a weight is
            no parameter but computed from others, as by weight norm.
    """
    slots = list(slots_of(model))
    computed = _computed(model)
    embedded = {id(slot.weight) for slot in slots if isinstance(slot.module, nn.Embedding | nn.EmbeddingBag)}
    asked = {id(slot.weight) for selector in include for slot in _select(selector, slots, "include")}

    chosen: dict[int, Slot] = {}
    for slot in slots:
        identity = id(slot.weight)
        if identity in asked or (_is_sparse_by_default(slot) and identity not in embedded):
            chosen.setdefault(identity, slot)

    # A shared weight stays dense if any of its names is selected.
    order = {path: number for number, (path, _) in enumerate(model.named_modules(remove_duplicate=False))}
    candidates = [*(slot for slot in slots if id(slot.weight) in chosen), *computed]
    candidates.sort(key=lambda slot: order[slot.path])
    selected = [slot for selector in keep_dense for slot in _select(selector, candidates, "keep_dense")]
    for slot in computed:
        if slot not in selected:
            raise ValueError(
                f"{slot.name!r} cannot be sparse, for it is no parameter: {computed[slot]}; or name it in keep_dense"
            )
    kept = {id(slot.weight) for slot in selected if slot not in computed}
    result = [slot for identity, slot in chosen.items() if identity not in kept]
    if not result:
        raise ValueError(
            "no weight of this model is to be sparse: it has no linear, convolution, attention or recurrent "
            "weights outside keep_dense; name others in include"
        )
    for slot in result:
        if isinstance(slot.weight, UninitializedParameter):
            raise ValueError(f"{slot.name!r} is not initialised yet: run one batch through the lazy model first")
        if not slot.weight.is_floating_point():
            raise ValueError(f"{slot.name!r} has dtype {slot.weight.dtype}: only real weights can be sparse")
    return result


def slots_of(model: nn.Module) -> Iterator[Slot]:
    """Yield the place of every parameter of `model`, shared ones at each of their places."""
    for path, module in model.named_modules():
        for parameter, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            yield Slot(f"{path}.{parameter}" if path else parameter, module, path, parameter)


def some_names(slots: Sequence[Slot]) -> str:
    """Return the first names, for a message."""
    return (", ".join(slot.name for slot in slots[:8]) or "none") + (", ..." if len(slots) > 8 else "")


def _is_sparse_by_default(slot: Slot) -> bool:
    if is_inputs_first_linear(slot.module):
        return slot.parameter == "weight"
    return any(
        isinstance(slot.module, kind) and re.fullmatch(pattern, slot.parameter) for kind, pattern in _SPARSE_BY_DEFAULT
    )


def _computed(model: nn.Module) -> dict[Slot, str]:
    """Return the weights that would be sparse if they were parameters, with what computes them and how to end that."""
    computed = {}
    for path, module in model.named_modules():
        for name, why in _computed_by(module).items():
            slot = Slot(f"{path}.{name}" if path else name, module, path, name)
            if name not in module._parameters and _is_sparse_by_default(slot):
                computed[slot] = why
    return computed


def _computed_by(module: nn.Module) -> dict[str, str]:
    """Return what computes weights of a module from others before each pass, by the name of the weight."""
    found = {}
    if parametrize.is_parametrized(module):
        for name, steps in module.parametrizations.items():  # type: ignore[union-attr, operator]
            made_by = ", ".join(type(step).__name__.lstrip("_") for step in steps)
            found[name] = (
                f"a parametrization ({made_by}) computes it; call "
                f'torch.nn.utils.parametrize.remove_parametrizations(module, "{name}") first'
            )
    for parameter in module._parameters:
        name, _, suffix = parameter.rpartition("_")
        if suffix == "g" and f"{name}_v" in module._parameters:
            found[name] = "weight_norm computes it; call torch.nn.utils.remove_weight_norm(module) first"
        elif suffix == "orig" and f"{name}_mask" in module._buffers:
            found[name] = f'pruning computes it; call torch.nn.utils.prune.remove(module, "{name}") first'
        elif suffix == "orig":
            found[name] = "spectral_norm computes it; call torch.nn.utils.remove_spectral_norm(module) first"
    return found


def _select(selector: Selector, slots: Sequence[Slot], argument: str) -> list[Slot]:
    if selector == "first":
        matches = list(slots[:1])
    elif selector == "last":
        matches = list(slots[-1:])
    elif isinstance(selector, str):
        matches = [s for s in slots if fnmatchcase(s.name, selector) or fnmatchcase(s.path, selector)]
    else:
        matches = [slot for slot in slots if isinstance(slot.module, selector)]
    if not matches:
        shown = selector if isinstance(selector, str) else selector.__name__
        raise ValueError(f"{argument}: {shown!r} matches no weight; there are {some_names(slots)}")
    return matches
