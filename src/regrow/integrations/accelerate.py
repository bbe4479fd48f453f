"""Accelerate: the updater of a prepared model and optimizer.

It is an extra: `pip install 'regrow[accelerate]'`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regrow.core.recipe import Recipe
from regrow.core.step_rule import StepRule
from regrow.topology.selected import selected
from regrow.topology.step_updater import StepUpdater
from regrow.topology.updater import TopologyUpdater
from regrow.topology.wrapped import stepping

try:
    from accelerate import Accelerator, DistributedType
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("this module needs Accelerate: pip install 'regrow[accelerate]'") from error

__all__ = ["topology_updater"]

_SHARDING = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


def topology_updater(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, method: Recipe | StepRule, **settings: Any
) -> TopologyUpdater | StepUpdater:
    """Return the updater of a model and an optimizer from `accelerator.prepare`.

    It counts the steps that `accelerator.accumulate` lets through. The optimizer's state carries its own, so
    `accelerator.save_state` and `load_state` do too. A step after `load_state` from a folder that has none raises, for
    the schedule would begin anew. Several processes train both storages; give `regrow.sparsify` one seed in all.

    Args:
        accelerator: what prepared them.
        model: the model, after `regrow.sparsify` and `accelerator.prepare`.
        optimizer: its optimizer, likewise.
        method: a recipe or a rule.
        settings: further arguments of `regrow.TopologyUpdater` or `regrow.StepUpdater`, as `seed`.

    Raises:
        ValueError: if the optimizer has stepped already, as after `load_state`; if parameters are sharded.

    Example:
        >>> import regrow, torch
        >>> accelerator = Accelerator(cpu=True)
        >>> model = regrow.sparsify(nn.Sequential(nn.Linear(8, 4)), density=0.25)
        >>> model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        >>> topology = topology_updater(accelerator, model, optimizer, regrow.set(every=10, steps=100))
    """
    kind = accelerator.distributed_type
    if kind in _SHARDING:
        raise ValueError(f"{kind.value} shards parameters, and a topology is over whole ones: take DDP or one device")
    model = _distributed(model) or accelerator.unwrap_model(model, keep_torch_compile=False)
    weights = selected(model, settings.get("weights"))
    inner = stepping(optimizer, {id(weight.weight) for weight in weights})
    if any(inner.state.get(weight.weight) for weight in weights):
        raise ValueError(
            "the optimizer has stepped already, and the schedule would begin anew: make the updater before "
            "accelerator.load_state, which then gives it its state"
        )
    if isinstance(method, Recipe):
        return TopologyUpdater(model, optimizer, method, **settings)
    return StepUpdater(model, inner, method, **settings)


def _distributed(model: nn.Module) -> nn.Module | None:
    """Return what lets processes train a prepared model together, whatever stands around it; None if nothing does."""
    return next((module for module in model.modules() if isinstance(module, DistributedDataParallel)), None)
