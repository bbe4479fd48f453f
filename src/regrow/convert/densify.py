"""Turn a sparse model back into an ordinary one, or its state."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from regrow.convert.choice import forget
from regrow.convert.exchange import replace_modules
from regrow.convert.follow_layout import restore_layout
from regrow.convert.processes import take_back
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage import Weight, sparse_weights, unwrapped, weights_of
from regrow.storage.holder import holder
from regrow.storage.sharded import own, whole

__all__ = ["dense_state_dict", "densify", "tell_of_losses"]

Model = TypeVar("Model", bound=nn.Module)


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the state dict of the model as if it were dense: loadable into the unsparsified model.

    Warns if absent weights are not zero, as in an average of masked models by PyTorch's own class: they are left out.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Linear(4, 2), density=0.5)
        >>> nn.Linear(4, 2).load_state_dict(dense_state_dict(model))
        <All keys matched successfully>
    """
    model = unwrapped(model)
    tell_of_losses(sparse_weights(model).values())
    state = model.state_dict()
    numbers, positions, by_address = {}, set(), {}
    # A module at several places stands in the state at each of them.
    for path, module in model.named_modules(remove_duplicate=False):
        for name, weight in weights_of(module, path).items():
            key, positions_key = weight.state_keys
            numbers[key] = name, weight.dense()
            positions.add(positions_key)
            by_address[own(state[key]).data_ptr()] = numbers[key][1]
    dense: dict[str, Any] = {}
    for key, value in state.items():
        if key in numbers:
            name, tensor = numbers[key]
            dense[name] = tensor
        elif key not in positions:
            # A shared parameter stands in the state under each of its names.
            is_tensor = isinstance(value, Tensor)
            shared = by_address.get(own(value).data_ptr()) if is_tensor and own(value).numel() else None
            dense[key] = (whole(value) if is_tensor else value) if shared is None else shared
    return dense


def densify(model: Model) -> Model:
    """Turn a sparse model back into an ordinary one, in place; absent weights are ordinary zeros from now on.

    A `TopologyUpdater` of the model must be removed first (`topology.remove()`). Sparsely stored layers are replaced by
    ordinary ones, so training on then wants a new optimizer; norms, activations and pools that followed their layout
    are ordinary again too. Warns if absent weights are not zero: they are left out.

    Raises:
        ValueError: if the model itself is a sparse layer, or a `TopologyUpdater` still keeps its topology.

    Example:
        >>> import regrow
        >>> model = densify(regrow.sparsify(nn.Linear(4, 2), density=0.5))
        >>> regrow.masks(model)
        {}
    """
    if unwrapped(model) is not model:
        raise ValueError("DistributedDataParallel holds on to the parameters of a model: densify its `module` instead")
    if isinstance(model, SparseLayer):
        raise ValueError("the model itself is a sparse layer, so nothing can hold its replacement: call its to_dense()")
    weights = sparse_weights(model).values()
    held = next((weight for weight in weights if holder(weight.module) is not None), None)
    if held is not None:
        raise ValueError(
            f"a {type(holder(held.module)).__name__} still keeps the topology of {held.name!r}: call its remove() "
            "first, or densify a copy (copy.deepcopy(model))"
        )
    tell_of_losses(weights)
    take_back(model, weights)
    replaced = {}
    for weight in weights:
        replaced[weight.module] = weight.to_dense()
        forget(weight.module)
    replace_modules(model, {module: dense for module, dense in replaced.items() if dense is not module})
    restore_layout(model)
    return model


def tell_of_losses(weights: Iterable[Weight]) -> None:
    """Warn if a model has absent weights that are not zero: it computes with them, and its dense form is without."""
    filled = [weight.name for weight in weights if weight.nonzero_absent()]
    if filled:
        warnings.warn(
            f"absent weights of {', '.join(filled)} are not zero, and the dense form is without them: take averages of "
            "models with regrow.AveragedModel, and train with a regrow.TopologyUpdater",
            stacklevel=3,
        )
