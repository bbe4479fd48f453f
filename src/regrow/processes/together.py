"""What an updater minds where processes train its model together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from regrow.convert.hook import Hook
from regrow.processes.agreement import add_up, differing, digest
from regrow.processes.reducer import active_wrapper, built_for, renew
from regrow.storage import Weight, unwrapped
from regrow.storage.sharded import group_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Together"]

_ADVICE = {
    "generator": "their random numbers differ: give the updaters of all processes one seed and one state",
    "step": "they have taken different numbers of steps: let every process step as often",
}
_POSITIONS = (
    "its weights are at other positions: begin in all processes with one seed of sparsify or one checkpoint, with one "
    "recipe and one seed of the updater, and let no gradient reach the optimizer that is not averaged over processes"
)


class Together:
    """Keep processes that train a model together in step with each other.

    Nothing is to be set for `DistributedDataParallel`: it is found when the model is called in its forward pass, or in
    the model given. Then

    - its reducer is made anew where parameters have changed their size, before the next forward pass,
    - positions are not sent around with the other buffers,
    - before the first pass of training and at every `check` all processes compare their positions.

    Args:
        model: what the updater was given: the model, or its wrapper.
        weights: the weights of the updater.
        generator: its source of random numbers.
        group: processes that train together without `DistributedDataParallel`; they compare at once.

    Raises:
        RuntimeError: if a group is given, and its processes differ.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[Weight],
        generator: torch.Generator,
        group: ProcessGroup | None = None,
    ) -> None:
        self._weights, self._generator, self._group = weights, generator, group
        self._compared = False
        self._built_for: WeakKeyDictionary[DistributedDataParallel, tuple[object, ...]] = WeakKeyDictionary()
        self._hooks: list[RemovableHandle] = []
        if distributed.is_available() and distributed.is_initialized():
            self._hooks.append(unwrapped(model).register_forward_pre_hook(Hook(self._before_pass)))
            for module in model.modules():
                if isinstance(module, DistributedDataParallel):
                    self._join(module)
        if self._group is None and weights:
            self._group = group_of(weights[0].weight)
        if group is not None:
            self.check()

    def check(self, step: int | None = None) -> None:
        """Compare positions, random numbers and steps with those of the other processes; nothing if there are none.

        Args:
            step: optimizer steps taken; None before the first of this training.

        Raises:
            RuntimeError: in every process, if they differ.
        """
        if self._group is None or self._group.size() == 1:
            return
        self._compared = True
        own = {weight.name: digest(weight.index()) for weight in self._weights}
        own |= {"generator": digest(self._generator.get_state()), "step": step or 0}
        found = differing(self._group, self._device, own)
        if found:
            name, ranks = next(iter(found.items()))
            others = f" (and in {len(found) - 1} more)" if len(found) > 1 else ""
            when = "before the first step" if step is None else f"after step {step}"
            raise RuntimeError(
                f"processes that train together differ in {name!r}{others} {when}, "
                f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))} from rank 0: "
                f"{_ADVICE.get(name, _POSITIONS)}"
            )

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return some numbers summed over all processes; every process must call it."""
        return list(numbers) if self._group is None else add_up(self._group, self._device, numbers)

    def close(self) -> None:
        """Mind nothing more."""
        for hook in self._hooks:
            hook.remove()

    @property
    def _device(self) -> torch.device:
        return self._weights[0].weight.device

    def _before_pass(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling():
            return
        wrapper = module if isinstance(module, DistributedDataParallel) else active_wrapper()
        if wrapper is None:
            self._compare_once(module)
            return
        if wrapper not in self._built_for:
            self._join(wrapper)
        wanted = built_for(wrapper, self._weights)
        if self._built_for[wrapper] != wanted:
            renew(wrapper)
            self._built_for[wrapper] = wanted
        self._compare_once(module)

    def _compare_once(self, module: nn.Module) -> None:
        """Compare before the first pass of training."""
        if self._group is not None and not self._compared and module.training and torch.is_grad_enabled():
            self.check()

    def _join(self, wrapper: DistributedDataParallel) -> None:
        self._group = self._group or wrapper.process_group
        self._built_for[wrapper] = ()  # not known: the wrapper may be older than the updater
        self._hooks.append(wrapper.register_forward_pre_hook(Hook(self._before_pass)))
        positions = {id(_positions(weight)) for weight in self._weights}
        names = dict(wrapper.module.named_buffers())
        wrapper.parameters_to_ignore.update(name for name, buffer in names.items() if id(buffer) in positions)


def _positions(weight: Weight) -> Tensor:
    """Return the buffer that says where a weight exists."""
    buffer: Tensor = getattr(weight.module, weight.state_keys[1].rpartition(".")[2])
    return buffer
