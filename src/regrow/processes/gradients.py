"""What travels between processes of the gradients of masked weights: those of weights that exist, where that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, distributed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from regrow.storage import Weight, sparse_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Looking", "send_active"]


class Looking(Protocol):
    """An updater, as `regrow.TopologyUpdater`."""

    def looks_at(self) -> Mapping[str, int | None]:
        """Return at how many absent weights the next step's gradient is read, by layer; None for all of a layer."""


def send_active(wrapper: DistributedDataParallel, topology: Looking) -> None:
    """Let only gradients of weights that exist travel in the steps in which nobody looks at others.

    For masked storage, whose gradients are dense; sparse storage has no others. Where growth reads momentum, that is
    with `growth=regrow.growth.window(steps)` or `candidates`, outside of the window; with gradients or at random, in
    all steps but those of updates. In the other steps all travel, as without this.

    The gradients of absent weights are zero after a pass in which they did not travel. So a norm for clipping counts
    active weights alone then, as it does on sparse storage.

    Args:
        wrapper: the model, wrapped; it takes one communication hook, and this is one.
        topology: the updater of the model.

    Example:
        >>> import regrow
        >>> from regrow.processes import send_active
        >>> def train(model, optimizer, recipe):
        ...     model = DistributedDataParallel(model)
        ...     topology = regrow.TopologyUpdater(model, optimizer, recipe)
        ...     send_active(model, topology)
    """
    masked = {id(weight.weight): weight for weight in sparse_weights(wrapper).values() if weight.holds_absent}
    packing = _Packing(wrapper.process_group, masked, topology)
    # Without annotations: PyTorch compares them with types, and here they are text.
    wrapper.register_comm_hook(packing, lambda state, bucket: _send(state, bucket))


class _Packing:
    """What the hook knows.

    Args:
        group: the processes.
        masked: the masked weights by the `id` of their parameter.
        topology: says which of them are looked at.
    """

    def __init__(self, group: ProcessGroup, masked: Mapping[int, Weight], topology: Looking) -> None:
        self.group, self._masked, self._topology = group, masked, topology
        self._known: dict[int, tuple[tuple[int, int], Tensor]] = {}

    def packed(self, bucket: Any) -> list[tuple[Tensor, Weight | None, Tensor]]:
        """Return each gradient of a bucket; with its weight and the positions that travel if that is not all."""
        looks = self._topology.looks_at()
        parts: list[tuple[Tensor, Weight | None, Tensor]] = []
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            weight = self._masked.get(id(parameter))
            if weight is None or weight.name in looks:
                parts.append((gradient, None, gradient))
            else:
                parts.append((gradient, weight, self._positions(weight)))
        return parts

    def _positions(self, weight: Weight) -> Tensor:
        """Return where a weight is active; looked for only when its mask has changed."""
        mask = getattr(weight.module, weight.state_keys[1].rpartition(".")[2])
        version = (id(mask), mask._version)
        known = self._known.get(id(weight.weight))
        if known is None or known[0] != version:
            known = self._known[id(weight.weight)] = (version, weight.index())
        return known[1]


def _send(packing: _Packing, bucket: Any) -> Future[Tensor]:
    """Average a bucket over processes, and only what travels of it; a communication hook."""
    size = packing.group.size()
    parts = packing.packed(bucket)
    whole = all(weight is None for _, weight, _ in parts)
    sent = bucket.buffer() if whole else torch.cat([_taken(*part) for part in parts])
    sent.div_(size)
    future = distributed.all_reduce(sent, group=packing.group, async_op=True).get_future()

    def unpack(done: Future[list[Tensor]]) -> Tensor:
        done.value()
        if not whole:
            _put_back(parts, sent)
        averaged: Tensor = bucket.buffer()
        return averaged

    then: Callable[[Callable[[Future[list[Tensor]]], Tensor]], Future[Tensor]] = future.then
    return then(unpack)


def _taken(gradient: Tensor, weight: Weight | None, positions: Tensor) -> Tensor:
    return gradient.reshape(-1) if weight is None else weight.at(gradient, positions)


@torch.no_grad()
def _put_back(parts: list[tuple[Tensor, Weight | None, Tensor]], sent: Tensor) -> None:
    begin = 0
    for gradient, weight, positions in parts:
        numbers = sent[begin : begin + positions.numel()]
        begin += positions.numel()
        if weight is None:
            gradient.copy_(numbers.view_as(gradient))
        else:
            gradient.zero_()
            weight.put(gradient, positions, numbers)
