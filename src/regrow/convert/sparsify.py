"""Turn a model sparse, and look at its topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regrow.convert.backend import Backend, check_backend, decide
from regrow.convert.choice import Choice, in_one_line, remember
from regrow.convert.eligible import Selector, Slot, eligible, slots_of
from regrow.convert.exchange import check_storable, store_sparsely
from regrow.convert.follow_layout import follow_layout
from regrow.convert.processes import leave_to_each
from regrow.core.distribution import DISTRIBUTIONS, Distribution, uniform
from regrow.core.units import Units, fitting_unit
from regrow.ops.layout import release_memory
from regrow.storage import Storage, mask_weight, sparse_weights

__all__ = ["Backend", "masks", "sparsify"]

_logger = getLogger("regrow")

Model = TypeVar("Model", bound=nn.Module)


def sparsify(
    model: Model,
    density: float | None = None,
    *,
    block: tuple[int, int] = (1, 1),
    masks: Mapping[str, Tensor] | None = None,
    distribution: Distribution | str = uniform,
    keep_dense: Sequence[Selector] = (),
    include: Sequence[Selector] = (),
    backend: Backend | Mapping[str, Backend] = "auto",
    example_input: Tensor | tuple[Any, ...] | None = None,
    batch_last: bool = True,
    seed: int = 0,
) -> Model:
    """Make a model sparse, in place: exactly `round(density * weights)` of its weights stay, the rest are zero.

    Sparse are the weights of Linear, Conv and transposed convolution layers, of `Conv1D` of transformers, of the
    projections of multi-head attention and of recurrent layers, the first and last layer included. Biases, norms and
    embeddings stay dense unless `include` asks for them; so do weights tied to an embedding. A weight shared by several
    modules is made sparse once, under its first name.

    The positions are drawn at random from `seed` alone, so processes that train together draw the same. Which
    weights are absent is enforced by a `TopologyUpdater`, the one for static training included.

    Args:
        model: any module; changed in place and returned.
        density: nonzeros over all weights that are sparse, in (0, 1]; give either this or `masks`.
        block: outputs and inputs of a unit, the block of weights at one position of the kernel that is dropped and
            grown whole. A layer whose sides it does not divide takes the largest divisors below. Where no choice of
            whole units makes the number of weights, the next number below counts.
        masks: the positions themselves, as from `regrow.masks`: a bool tensor for every weight to be sparse.
        distribution: how the nonzeros are spread over layers: a function of `regrow.distribution` or the name
            of one ("uniform", "erdos-renyi", "erdos-renyi-kernel").
        keep_dense: weights to leave dense and out of the count: globs over names of weights or modules
            ("head*"), types of modules (`nn.Conv1d`), "first", "last".
        include: further parameters to make sparse, by glob or type (`nn.Embedding`).
        backend: how sparse weights are stored. "masked" keeps them dense with zeros, for any layer, device and
            dtype. "cpu" stores what exists and nothing else: it replaces nn.Linear (Conv1D of transformers), nn.Conv1d
            and nn.Conv2d layers by sparse ones (so make the optimizer afterwards) and takes no others. "auto" takes for
            each weight what is faster, by a rule over layer, shape, density, dtype and device, and masks what cannot be
            stored sparsely; `regrow.summary` says why, and the logger "regrow" once. A mapping gives backends by globs
            over names of weights or modules, as `{"features.*": "cpu", "*": "masked"}`: the first that matches counts,
            and what none matches is under "auto".
        example_input: a batch of the size in training, as the model takes it (a tensor, or a tuple of arguments):
            "auto" then measures with it instead of going by the rule. The model is run on it some ten times and is
            left as it was.
        batch_last: exchange norms (with the ReLU and dropout after them), pools and dropout between sparsely stored
            convolutions for forms that compute in the layout of these, where `torch.fx` can follow the model;
            parameters, buffers and their names stay; dropout has other random numbers than PyTorch's. Reads the
            model's `forward` as it is: hooks on an exchanged norm, a call of it from elsewhere, or a slice of the model
            that ends with it, would see its output after ReLU and dropout. `regrow.summary` counts what was exchanged.
        seed: seed of the random positions.

    Raises:
        ValueError: if the model is sparse already; if the density is outside (0, 1] or leaves a layer without a
            weight; if a selector or glob matches nothing; if a weight is no parameter but computed from others (weight
            norm, spectral norm, pruning); if `masks` are those of another model or no whole units; if the backend is
            unknown or cannot hold some of the weights, or an example input is given to one that measures nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> model = sparsify(model, density=0.25)
        >>> {name: int(mask.sum()) for name, mask in masks(model).items()}
        {'0.weight': 32, '2.weight': 16}
    """
    check_backend(backend, example_input)
    if sparse_weights(model):
        raise ValueError("this model is sparse already: call regrow.densify(model) first")
    if (density is None) == (masks is None):
        raise ValueError("give either a density or masks")

    slots = eligible(model, include, keep_dense) if masks is None else _named(model, masks)
    units = {slot.name: Units(tuple(slot.weight.shape), _unit(slot, block)) for slot in slots}
    if masks is not None:
        _check_whole(masks, units)
        positions = dict(masks)
    else:
        assert density is not None
        positions = _draw(slots, units, density, distribution, seed)
    storages, choices = decide(model, slots, positions, units, backend, example_input, batch_last=batch_last)
    stored_sparsely = [slot for slot in slots if storages[slot.name] is Storage.SPARSE]
    check_storable(model, stored_sparsely)
    for slot in slots:
        if storages[slot.name] is Storage.MASKED:
            mask_weight(slot.module, slot.name, slot.parameter, positions[slot.name], units[slot.name].unit)
    store_sparsely(model, stored_sparsely, positions, units)
    if batch_last:
        follow_layout(model)
    leave_to_each(model, sparse_weights(model).values())
    _tell(model, storages, choices)
    if stored_sparsely:
        # The dense weights go, and what the C library would keep of them would be more than the sparse ones take.
        del slot, slots, stored_sparsely, positions
        release_memory()
    return model


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Return where the weights of a sparse model exist.

    Returns:
        For each sparse weight, by its name in the unsparsified model, a new bool tensor in its dense shape.

    Example:
        >>> model = sparsify(nn.Sequential(nn.Linear(4, 2)), density=0.5)
        >>> masks(model)["0.weight"].shape, int(masks(model)["0.weight"].sum())
        (torch.Size([2, 4]), 4)
    """
    return {name: weight.mask() for name, weight in sparse_weights(model).items()}


def _tell(model: nn.Module, storages: Mapping[str, Storage], choices: Mapping[str, Choice]) -> None:
    """Keep with each weight why it is stored so, and log it."""
    for name, weight in sparse_weights(model).items():
        if name in choices:
            remember(weight.module, name.rpartition(".")[2], choices[name])
    reasons = {name: choice.reason for name, choice in choices.items()}
    _logger.info("sparsify: %s", in_one_line((each, reasons.get(name, "")) for name, each in storages.items()))


def _unit(slot: Slot, block: tuple[int, int]) -> tuple[int, int]:
    """Return the sides of a unit along the first two dimensions of a weight, the largest divisors that fit."""
    outputs, inputs = fitting_unit(slot.sides, block)
    return (inputs, outputs) if slot.inputs_first else (outputs, inputs)


def _check_whole(masks: Mapping[str, Tensor], units: Mapping[str, Units]) -> None:
    for name, mask in masks.items():
        try:
            units[name].numbers_of(mask.reshape(-1).nonzero().squeeze(1))
        except ValueError as error:
            raise ValueError(f"the mask of {name!r} does not fit this block: {error}") from error


def _draw(
    slots: Sequence[Slot], units: Mapping[str, Units], density: float, distribution: Distribution | str, seed: int
) -> dict[str, Tensor]:
    """Draw exactly as many random units of each weight as the distribution says; return bool tensors."""
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"there is no distribution {distribution!r}: choose among {', '.join(DISTRIBUTIONS)}")
        distribution = DISTRIBUTIONS[distribution]
    shapes = {name: each.shape for name, each in units.items()}
    if any(each.size > 1 for each in units.values()):
        counts = distribution(shapes, density, {name: each.size for name, each in units.items()})
    else:
        counts = distribution(shapes, density)
    generator = torch.Generator().manual_seed(seed)
    positions = {}
    for slot in slots:
        each = units[slot.name]
        # drawn on the CPU, so that every device gets the same
        drawn = torch.randperm(each.count, generator=generator)[: counts[slot.name] // each.size]
        flat = torch.zeros(each.numel, dtype=torch.bool)
        flat[each.positions_of(drawn)] = True
        positions[slot.name] = flat.view(each.shape)
    return positions


def _named(model: nn.Module, masks: Mapping[str, Tensor]) -> list[Slot]:
    """Return the parameters that `masks` name, checked to be of this model."""
    slots = {slot.name: slot for slot in slots_of(model)}
    for name, mask in masks.items():
        if name not in slots:
            raise ValueError(
                f"the masks are of another model: this one has no parameter {name!r}; "
                "build it as the model they were taken from"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask of {name!r} has dtype {mask.dtype}: masks are bool tensors")
        if mask.shape != slots[name].weight.shape:
            raise ValueError(
                f"the masks are of another model: {name!r} has shape {tuple(slots[name].weight.shape)} here, "
                f"but {tuple(mask.shape)} in the masks; build it as the model they were taken from"
            )
    chosen = [slots[name] for name in masks]
    if len({id(slot.weight) for slot in chosen}) < max(len(chosen), 1):
        raise ValueError("the masks must name at least one weight, and a shared weight by one of its names only")
    return chosen
