"""Checkpoints by `torch.distributed.checkpoint`, read as they were written, whatever is to load them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["read_checkpoint"]


def read_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Return all that `torch.distributed.checkpoint.save` wrote to a folder, on the CPU.

    `torch.distributed.checkpoint.load` fills tensors that are there in the right shapes. Those of sparse storage have
    the shapes that the topology gave them, which only the checkpoint knows. It may have been written by another number
    of processes; each reads all of it, and none waits for another.

    Args:
        folder: the `checkpoint_id` that was saved to.

    Returns:
        The nested dictionaries that were saved, for `load_state_dict` of model, optimizer and updater, in this order.
        Dictionaries that were empty are missing.

    Example:
        >>> import tempfile, regrow
        >>> from torch.distributed import checkpoint
        >>> model = regrow.sparsify(torch.nn.Linear(8, 4), density=0.5)
        >>> folder = tempfile.mkdtemp()
        >>> checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder, no_dist=True)  # doctest: +ELLIPSIS
        Metadata(...)
        >>> model.load_state_dict(read_checkpoint(folder)["model"])
        <All keys matched successfully>
    """
    # What imports regrow does not wait for all this.
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    known = reader.read_metadata()
    flat: dict[str, Any] = {
        name: "" if isinstance(each, BytesStorageMetadata) else torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in known.state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that no process waits for another, as is meant
        load(flat, storage_reader=reader, no_dist=True)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = (known.planner_data or {}).get(name, (name,))
        place = nested
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    result: dict[str, Any] = _as_written(nested)
    return result


def _as_written(value: Any) -> Any:
    """Return nested dictionaries with numbers as keys where they were: those of lists, and of an optimizer's state."""
    if not isinstance(value, Mapping):
        return value
    inner = {key: _as_written(each) for key, each in value.items()}
    if inner and all(isinstance(key, int) for key in inner):
        return [inner[place] for place in range(len(inner))]
    if inner and all(isinstance(key, str) and key.isdecimal() for key in inner):
        return {int(key): each for key, each in inner.items()}
    return inner
