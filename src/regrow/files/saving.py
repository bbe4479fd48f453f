"""Sparse models to files and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regrow.convert.densify import tell_of_losses
from regrow.core.units import Units
from regrow.files import container
from regrow.files.loading import load_into
from regrow.files.names import held
from regrow.files.optimizer import optimizer_part
from regrow.files.packing import pack, unpack
from regrow.files.stored import Layer, Stored
from regrow.files.tree import flatten, restore
from regrow.storage import Storage, Weight

__all__ = ["load", "read_notes", "save"]

Model = TypeVar("Model", bound=nn.Module)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer | None = None,
    topology: Any = None,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a compressed file, with all that training goes on from if that is given.

    The file has the format safetensors: the numbers of the weights that exist, their positions in few bits (as at 5 %
    in 5.8 each), everything else in the model's state as it is, and in the header as JSON the names, shapes, units and
    densities of layers, versions, and a checksum. Nothing in it is pickled. Equal models give equal files.

    It is written whole or not at all. Warns if absent weights are not zero: they are left out.

    Args:
        model: the model, in any storage; a dense one is written as it is.
        path: the file, `.safetensors` by custom; an older one is replaced.
        optimizer: the optimizer of its parameters, whose state is to go along.
        topology: what keeps the model sparse, a `TopologyUpdater` or `StepUpdater`, whose state is to go along.
        notes: data of your own that JSON can hold, as what the model is built from; `read_notes` returns it.

    Raises:
        ImportError: if the library safetensors is missing.
        OSError: if the file cannot be written.
        ValueError: if a state or the notes hold something that a file cannot.

    Example:
        >>> import tempfile, regrow
        >>> model = regrow.sparsify(nn.Sequential(nn.Linear(64, 32)), density=0.05)
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(model, file)
        >>> loaded = load(file, nn.Sequential(nn.Linear(64, 32)))
        >>> torch.equal(loaded[0].weight, model[0].weight)
        True
    """
    import regrow

    parts, tensors = held(model), dict[str, Tensor]()
    growing = None if topology is None else topology.state_dict()
    tell_of_losses(parts.weights.values())
    layers = {name: _layer(name, weight, tensors) for name, weight in parts.weights.items()}
    weights = sum(weight.numel for weight in parts.weights.values())
    content = {
        "library": regrow.__version__,
        "torch": str(torch.__version__),
        "density": sum(layer["nonzeros"] for layer in layers.values()) / weights if weights else 1.0,
        "layers": layers,
        "shared": parts.shared,
        "model": flatten(parts.rest, "model", tensors),
        "optimizer": None,
        "topology": None if growing is None else flatten(growing, "topology", tensors),
        "notes": None if notes is None else _plain(notes),
    }
    if optimizer is not None:
        state = optimizer_part(model, optimizer, parts.weights, growing)
        content["optimizer"] = flatten(state, "optimizer", tensors)
    container.write(Path(path), content, tensors)


def load(
    path: str | os.PathLike[str],
    model: Model,
    optimizer: torch.optim.Optimizer | None = None,
    topology: Any = None,
) -> Model:
    """Read a model from a file of `save`, and what training goes on from if that is given.

    A dense model is made sparse as the file's was, its storage chosen anew by the rule. A sparse one keeps its storage
    and takes the file's positions, whichever storage was saved. To go on with a training, make the model sparse, its
    optimizer and its topology as at first, and load all three at once.

    If anything is wrong, model, optimizer and topology stay as they were.

    Args:
        path: the file.
        model: as the saved one before `regrow.sparsify`, or after it; changed in place.
        optimizer: an optimizer of the model's parameters, in the order of the saved one.
        topology: an updater as the saved one.

    Returns:
        The model.

    Raises:
        ImportError: if the library safetensors is missing.
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, of another version or of another model, or holds no state of an optimizer
            or of a topology where one is given.
    """
    content, tensors = container.read(Path(path))
    shapes = held(model).shapes
    try:
        stored = _stored(content, tensors, shapes)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not fit this model: {error}; build the model that was saved") from error
    load_into(stored, str(path), model, optimizer, topology)
    return model


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the notes in a file of `save`, checked; None if there are none.

    Raises:
        ImportError: if the library safetensors is missing.
        OSError: if the file cannot be read.
        ValueError: if the file is damaged or of another version.
    """
    content, _ = container.read(Path(path))
    notes = content.get("notes")
    return notes if isinstance(notes, dict) else None


def _layer(name: str, weight: Weight, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add the numbers and positions of a weight to the tensors; return what else is to be known of it."""
    index, units = weight.index(), weight.units
    numbers = weight.existing(weight.weight.detach())
    bits, packed = pack(units.numbers_of(index).cpu())
    tensors[f"values/{name}"], tensors[f"positions/{name}"] = numbers.to("cpu", copy=True).contiguous(), packed
    return {
        "shape": list(weight.shape),
        "unit": list(units.unit),
        "nonzeros": len(index),
        "density": len(index) / weight.numel if weight.numel else 0.0,
        "storage": str(weight.storage),
        "bits": bits,
    }


def _stored(content: Mapping[str, Any], tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Stored:
    """Return what a file holds; positions are only read for shapes that the model has too."""
    layers = {}
    for name, entry in content["layers"].items():
        if name not in shapes:
            raise ValueError(f"the model has no {name!r}")
        if tuple(entry["shape"]) != shapes[name]:
            raise ValueError(f"{name!r} has shape {tuple(entry['shape'])} in the file, {shapes[name]} in the model")
        rows, columns, nonzeros, bits = (
            _whole(number) for number in (*entry["unit"], entry["nonzeros"], entry["bits"])
        )
        units = Units(shapes[name], (rows, columns))
        values = tensors[f"values/{name}"]
        if nonzeros % units.size or tuple(values.shape) != (nonzeros,) or not values.is_floating_point():
            raise ValueError(f"{name!r} has {nonzeros} weights of {values.dtype} in shape {tuple(values.shape)}")
        count = nonzeros // units.size
        numbers = unpack(tensors[f"positions/{name}"], bits, count, below=units.count)
        index = units.positions_of(numbers).sort().values
        layers[name] = Layer(values, index, units, Storage(entry["storage"]))
    rest, optimizer, topology = (restore(content[part], tensors) for part in ("model", "optimizer", "topology"))
    shared = content["shared"]
    if not all(type(name) is str for names in (rest, shared, shared.values()) for name in names):
        raise TypeError("a name of it is no text")
    if not (isinstance(rest, dict) and isinstance(optimizer, dict | None) and isinstance(topology, dict | None)):
        raise TypeError("a part of it is no state")
    return Stored(layers, shared, rest, optimizer, topology)


def _plain(notes: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(dict(notes), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"notes take what JSON can hold: {error}") from error


def _whole(number: Any) -> int:
    if type(number) is not int:
        raise ValueError(f"{str(number)[:60]} is no whole number")
    return number
