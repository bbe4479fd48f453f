"""Weight decay of sparsely stored weights, whose parameter has one dimension and is not called `weight`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from regrow.storage import Weight, sparse_weights
from regrow.topology.optimizer_state import groups_of

__all__ = ["decay_groups", "undecayed"]


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups in which weights decay, and biases and norms do not.

    As by the usual rule, what has two dimensions or more decays; a sparse weight counts as the dense one, however it is
    stored.

    Args:
        model: the model, after `regrow.sparsify`.
        weight_decay: of the first group.

    Example:
        >>> import torch, regrow
        >>> model = regrow.sparsify(nn.Linear(8, 4), density=0.5)
        >>> optimizer = torch.optim.AdamW(decay_groups(model, weight_decay=0.1))
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.1), (1, 0.0)]
    """
    wide = {id(weight.weight) for weight in sparse_weights(model).values() if len(weight.shape) >= 2}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in model.parameters():
        parts[0 if parameter.ndim >= 2 or id(parameter) in wide else 1].append(parameter)
    return [{"params": parts[0], "weight_decay": weight_decay}, {"params": parts[1], "weight_decay": 0.0}]


def undecayed(weights: Sequence[Weight], optimizer: Optimizer) -> list[str]:
    """Return the sparsely stored weights if none of them decays, though other parameters do: a rule has missed them.

    Args:
        weights: sparse weights.
        optimizer: the optimizer that has them.
    """
    groups = groups_of(optimizer)
    stored = [weight for weight in weights if not weight.holds_absent and id(weight.weight) in groups]
    if any(groups[id(weight.weight)].get("weight_decay") for weight in stored):
        return []
    others = any(group.get("weight_decay") for group in optimizer.param_groups)
    return [weight.name for weight in stored] if others else []
