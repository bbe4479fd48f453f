"""Storage: how a sparse weight is held in a module. One meaning, several forms behind one small interface."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regrow.nn.sparse_layer import SparseLayer
from regrow.storage.masked import enforce, mask_weight, masked_weights
from regrow.storage.sparse import SparseWeight
from regrow.storage.weight import Storage, Weight


def sparse_weights(model: nn.Module) -> dict[str, Weight]:
    """Return a handle on every sparse weight of `model` by its full name, in the order of the modules.

    Names are those in the model that `DistributedDataParallel` wraps: the same in one process and in many.
    """
    handles: dict[str, Weight] = {}
    for path, module in unwrapped(model).named_modules():
        handles.update(weights_of(module, path))
    return handles


def weights_of(module: nn.Module, path: str) -> dict[str, Weight]:
    """Return a handle on every sparse weight that `module` itself owns, by its full name.

    Args:
        module: the module; its children are not looked at.
        path: its full name in the model.
    """
    if isinstance(module, SparseLayer):
        name = f"{path}.weight" if path else "weight"
        return {name: SparseWeight(name, module)}
    return masked_weights(module, path)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that `DistributedDataParallel` wraps; any other model as it is."""
    return model.module if isinstance(model, DistributedDataParallel) else model


__all__ = ["Storage", "Weight", "enforce", "mask_weight", "sparse_weights", "unwrapped", "weights_of"]
