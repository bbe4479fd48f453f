"""What updaters refuse: optimizers without their weights, a second updater for these, and states of other models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from regrow.storage import Weight
from regrow.topology.optimizer_state import groups_of

__all__ = ["check_optimizer", "check_state"]

_TOLD = {"shapes": "sparse weights differ", "units": "units differ"}


def check_optimizer(weights: Sequence[Weight], optimizer: Optimizer) -> None:
    """See that an optimizer has all weights that train, and no updater that keeps them.

    Args:
        weights: what the new updater is to keep.
        optimizer: what it is to hang on.

    Raises:
        ValueError: if it has not, or has one.
    """
    groups = groups_of(optimizer)
    for weight in weights:
        if id(weight.weight) not in groups and weight.weight.requires_grad:
            raise ValueError(
                f"{weight.name!r} is sparse but not in the optimizer: make the optimizer after "
                "regrow.sparsify and give it model.parameters(); where several optimizers train the model, make "
                'an updater for each, with `weights=["..."]`, the names of those that its optimizer has'
            )
    parameters = {id(weight.weight) for weight in weights}
    for hook in optimizer._optimizer_step_post_hooks.values():
        other = getattr(hook, "__self__", None)
        if any(id(weight.weight) in parameters for weight in getattr(other, "_weights", ())):
            kind = type(other).__name__
            raise ValueError(f"this optimizer has a {kind} for these weights already: remove() it first")


def check_state(kind: str, state: Mapping[str, Any], own: Mapping[str, Any], needed: Collection[str]) -> None:
    """See that a state is one of an updater of this kind, with the same weights and units.

    Args:
        kind: name of the updater's class.
        state: what it is given.
        own: what its `state_dict` returns.
        needed: entries without which it is none.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(state, Mapping) or not set(needed) <= state.keys():
        raise ValueError(f"this is no state of a {kind}: load what its state_dict() returned")
    for what, differ in _TOLD.items():
        kept, given = own.get(what, {}), state.get(what, {})
        different = sorted(name for name in kept.keys() | given if kept.get(name) != given.get(name))
        if different:
            raise ValueError(
                f"this state is of another model: the {differ} in {', '.join(different)}; "
                "load it beside the model it was saved with"
            )
