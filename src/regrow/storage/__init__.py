"""Storage: how a sparse weight is held in a module. One meaning, several forms behind one small interface."""

from __future__ import annotations

from torch import nn

from regrow.nn.sparse_layer import SparseLayer
from regrow.storage.masked import masked_weights
from regrow.storage.sparse import SparseWeight
from regrow.storage.weight import Weight


def sparse_weights(model: nn.Module) -> dict[str, Weight]:
    """Return a handle on every sparse weight of `model` by its full name, in the order of the modules."""
    handles: dict[str, Weight] = {}
    for path, module in model.named_modules():
        if isinstance(module, SparseLayer):
            name = f"{path}.weight" if path else "weight"
            handles[name] = SparseWeight(name, module)
        else:
            handles.update(masked_weights(module, path))
    return handles


__all__ = ["Weight", "sparse_weights"]
