"""The reducer of `DistributedDataParallel`, made anew when parameters have changed their size.

Its reducer sorts parameters into buckets of fixed sizes, and hangs on the node of each that accumulates its gradient.
Sparse storage changes both when positions change. PyTorch makes a reducer for a wrapper that was unpickled; the same
steps are taken here. They take no message between processes: the buckets are put in order after the next backward pass,
as after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from regrow.storage import Weight

__all__ = ["active_wrapper", "built_for", "renew"]


def active_wrapper() -> DistributedDataParallel | None:
    """Return the wrapper whose forward pass is under way, as `torch.compile` asks for it; None if there is none."""
    active: DistributedDataParallel | None = DistributedDataParallel._active_ddp_module
    return active


def built_for(wrapper: DistributedDataParallel, weights: Sequence[Weight]) -> tuple[object, ...]:
    """Return what a reducer is built for; it must be made anew when this differs."""
    trained = tuple(parameter.requires_grad for parameter in wrapper._module_parameters)
    return (tuple(weight.parameter_version() for weight in weights), trained)


def renew(wrapper: Any) -> None:
    """Give a wrapper a reducer for its parameters as they are now, with the communication hooks of the one before.

    Args:
        wrapper: a `DistributedDataParallel`, outside of a backward pass.
    """
    # The old one goes before the new one is made: at no time are there the buckets of both.
    wrapper.reducer._remove_autograd_hooks()
    wrapper.reducer = wrapper.logger = None
    parameters, sparse_gradients = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, sparse_gradients, names, wrapper.static_graph)
    wrapper._has_rebuilt_buckets = False
    if wrapper.static_graph:
        wrapper.reducer._set_static_graph()
        wrapper.logger._set_static_graph()
        wrapper._static_graph_delay_allreduce_enqueued = False
    for hook, state in wrapper._comm_hooks:
        torch.distributed._register_comm_hook(wrapper.reducer, state, hook)  # type: ignore[attr-defined]
