"""Turn a model sparse, look at its topology, and turn it dense again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from regrow.convert.choose import choose, forget, remember
from regrow.convert.eligible import Selector, Slot, eligible, slots_of
from regrow.convert.exchange import store_densely, store_sparsely
from regrow.convert.follow_layout import follow_layout, restore_layout
from regrow.core.distribution import DISTRIBUTIONS, Distribution, uniform
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage import masked, sparse_weights
from regrow.storage.masked import MaskedWeight

Backend = Literal["auto", "masked", "cpu"]
Model = TypeVar("Model", bound=nn.Module)


def sparsify(
    model: Model,
    density: float | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    distribution: Distribution | str = uniform,
    keep_dense: Sequence[Selector] = (),
    include: Sequence[Selector] = (),
    backend: Backend = "auto",
    example_input: Tensor | tuple[Any, ...] | None = None,
    batch_last: bool = True,
    seed: int = 0,
) -> Model:
    """Make a model sparse, in place: exactly `round(density * weights)` of its weights stay, the rest are zero.

    Sparse are the weights of Linear, Conv and transposed convolution layers, of the projections of multi-head
    attention and of recurrent layers, the first and last layer included. Biases, norms and embeddings stay dense
    unless `include` asks for them; so do weights tied to an embedding. A weight shared by several modules is
    made sparse once, under its first name.

    The positions are drawn at random from `seed` alone, so processes that train together draw the same. Which
    weights are absent is enforced by a `TopologyUpdater`, the one for static training included.

    Args:
        model: any module; changed in place and returned.
        density: nonzeros over all weights that are sparse, in (0, 1]; give either this or `masks`.
        masks: the positions themselves, as from `regrow.masks`: a bool tensor for every weight to be sparse.
        distribution: how the nonzeros are spread over layers: a function of `regrow.distribution` or the name
            of one ("uniform", "erdos-renyi", "erdos-renyi-kernel").
        keep_dense: weights to leave dense and out of the count: globs over names of weights or modules
            ("head*"), types of modules (`nn.Conv1d`), "first", "last".
        include: further parameters to make sparse, by glob or type (`nn.Embedding`).
        backend: how sparse weights are stored. "masked" keeps them dense with zeros, for any layer, device and
            dtype. "cpu" stores what exists and nothing else: it replaces nn.Linear, nn.Conv1d and nn.Conv2d layers
            by sparse ones (so make the optimizer afterwards) and takes no others. "auto" takes for each layer what
            is faster, as it measures with `example_input`, and is "masked" without one; `regrow.summary` says why.
        example_input: a batch of the size in training, as the model takes it (a tensor, or a tuple of arguments), for
            "auto". The model is run on it some ten times and is left as it was.
        batch_last: exchange norms (with the ReLU and dropout after them), pools and dropout between sparsely stored
            convolutions for forms that compute in the layout of these, where `torch.fx` can follow the model;
            parameters, buffers and their names stay; dropout has other random numbers than PyTorch's. Reads the
            model's `forward` as it is now: hooks on an exchanged norm, or a call of it from elsewhere, would see its
            output after ReLU and dropout. `regrow.summary` counts what was exchanged.
        seed: seed of the random positions.

    Raises:
        ValueError: if the model is sparse already; if the density is outside (0, 1] or leaves a layer without a
            weight; if a selector matches nothing; if `masks` are those of another model; if the backend
            is unknown or cannot hold one of the weights, or an example input is given to one that measures nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> model = sparsify(model, density=0.25)
        >>> {name: int(mask.sum()) for name, mask in masks(model).items()}
        {'0.weight': 32, '2.weight': 16}
    """
    if backend not in get_args(Backend):
        raise ValueError(f"there is no backend {backend!r}: choose among {', '.join(get_args(Backend))}")
    if example_input is not None and backend != "auto":
        raise ValueError(f'example_input serves backend="auto", which measures with it; backend={backend!r} does not')
    if sparse_weights(model):
        raise ValueError("this model is sparse already: call regrow.densify(model) first")
    if (density is None) == (masks is None):
        raise ValueError("give either a density or masks")

    if masks is not None:
        slots = _named(model, masks)
        positions = dict(masks)
    else:
        assert density is not None
        slots = eligible(model, include, keep_dense)
        positions = _draw(slots, density, distribution, seed)
    storage = dict.fromkeys((slot.name for slot in slots), "sparse" if backend == "cpu" else "masked")
    choices = choose(model, slots, positions, example_input, batch_last=batch_last) if backend == "auto" else {}
    storage.update({name: choice.storage for name, choice in choices.items()})
    for slot in slots:
        if storage[slot.name] == "masked":
            masked.mask_weight(slot.module, slot.name, slot.parameter, positions[slot.name])
    store_sparsely(model, [slot for slot in slots if storage[slot.name] == "sparse"], positions)
    if batch_last:
        follow_layout(model)
    for name, weight in sparse_weights(model).items():
        if name in choices:
            remember(weight.module, name.rpartition(".")[2], choices[name])
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
    return {name: weight.positions() for name, weight in sparse_weights(model).items()}


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the state dict of the model as if it were dense: loadable into the unsparsified model.

    Example:
        >>> model = sparsify(nn.Linear(4, 2), density=0.5)
        >>> nn.Linear(4, 2).load_state_dict(dense_state_dict(model))
        <All keys matched successfully>
    """
    state = masked.dense_state_dict(model.state_dict(), _masked(model))
    # A layer at several places stands in the state at each of them.
    layers = {
        f"{path}." if path else "": module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLayer)
    }
    stored = {prefix + "values": (prefix + "weight", layer) for prefix, layer in layers.items()}
    positions = {prefix + "index" for prefix in layers}
    dense = {}
    for name, value in state.items():
        if name in stored:
            weight, layer = stored[name]
            dense[weight] = layer.dense_weight()
        elif name not in positions:
            dense[name] = value
    return dense


def densify(model: Model) -> Model:
    """Turn a sparse model back into an ordinary one, in place; absent weights are ordinary zeros from now on.

    A `TopologyUpdater` of the model must be removed first (`topology.remove()`) if training goes on. Sparsely stored
    layers are replaced by ordinary ones, so training on then wants a new optimizer; norms, activations and pools that
    followed their layout are ordinary again too.

    Example:
        >>> model = densify(sparsify(nn.Linear(4, 2), density=0.5))
        >>> masks(model)
        {}
    """
    if isinstance(model, SparseLayer):
        raise ValueError("the model itself is a sparse layer, so nothing can hold its replacement: call its to_dense()")
    for weight in _masked(model).values():
        masked.unmask(weight)
        forget(weight.module)
    store_densely(model)
    restore_layout(model)
    return model


def _masked(model: nn.Module) -> dict[str, MaskedWeight]:
    return {name: weight for name, weight in sparse_weights(model).items() if isinstance(weight, MaskedWeight)}


def _draw(slots: Sequence[Slot], density: float, distribution: Distribution | str, seed: int) -> dict[str, Tensor]:
    """Draw exactly as many random positions in each weight as the distribution says."""
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"there is no distribution {distribution!r}: choose among {', '.join(DISTRIBUTIONS)}")
        distribution = DISTRIBUTIONS[distribution]
    counts = distribution({slot.name: tuple(slot.weight.shape) for slot in slots}, density)
    generator = torch.Generator().manual_seed(seed)
    positions = {}
    for slot in slots:
        # drawn on the CPU, so that every device gets the same
        flat = torch.zeros(slot.weight.numel(), dtype=torch.bool)
        flat[torch.randperm(slot.weight.numel(), generator=generator)[: counts[slot.name]]] = True
        positions[slot.name] = flat.view(slot.weight.shape)
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
