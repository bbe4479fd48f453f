"""Notices when weights change without the optimizer that the updater hangs on: then they would no longer be sparse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from regrow.nn.numbers import version_of
from regrow.storage import Weight
from regrow.storage.holder import is_held_by
from regrow.topology.wrapped import parameters_of, stands_around

__all__ = ["Watch"]

# Backward passes without a step after which one weight is looked at for the first time.
_PATIENCE = 4

_watches: WeakSet[Watch] = WeakSet()


class Watch:
    """Watch the weights of an updater, at the cost of a few comparisons in Python a step.

    - Another optimizer that is about to step one of the weights raises.
    - Backward passes are counted, by a hook on the smallest weight. After `_PATIENCE` of them without a step, as when
      gradients are accumulated, that weight is noted, and compared after twice as many: if it has changed, a warning
      comes.
    - Where a pass meets a masked weight that was changed since the step, its absent weights are looked at.

    Args:
        weights: the weights of the updater.
        optimizer: the optimizer that it hangs on.
        keeper: the updater; it is not kept alive.
    """

    def __init__(self, weights: Sequence[Weight], optimizer: Optimizer, keeper: object) -> None:
        self._weights, self._optimizer, self._keeper = weights, ref(optimizer), ref(keeper)
        self._names = {id(weight.weight): weight.name for weight in weights}
        self._strangers: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        training = [weight for weight in weights if weight.weight.requires_grad]
        self._weight = min(training or weights, key=lambda weight: weight.weight.numel())
        self._changed, self._warned = 0, False
        self._noted: Tensor | None = None
        self._handle: RemovableHandle = self._weight.weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            _weakly(ref(self))
        )
        self.stepped()
        _watches.add(self)
        _watch_optimizers()

    def stepped(self) -> None:
        """Note that the optimizer has stepped, and that the weights are as the updater left them."""
        self._passes, self._look_at, self._noted = 0, _PATIENCE, None
        self._version = version_of(self._weight.weight)

    def close(self) -> None:
        """Watch no more."""
        self._handle.remove()
        _watches.discard(self)

    def before_step_of(self, optimizer: Optimizer) -> None:
        """Raise a RuntimeError if another optimizer is about to step a weight of the updater."""
        own = self._optimizer()
        if optimizer is own or own is None:
            return
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._strangers.get(optimizer) == count:
            return
        shared = parameters_of(optimizer) & self._names.keys()
        if not shared or stands_around(optimizer, own):
            self._strangers[optimizer] = count
            return
        for weight in self._weights:
            if (
                id(weight.weight) in shared
                and weight.weight.grad is not None
                and is_held_by(weight.module, self._keeper())
            ):
                raise RuntimeError(
                    f"{type(optimizer).__name__} is about to step {weight.name!r}, which the TopologyUpdater of "
                    f"another optimizer ({type(own).__name__}) keeps sparse: the topology would not be updated, "
                    "and absent weights could fill up; call remove() of that updater and make one with this optimizer"
                )

    def after_backward(self, parameter: Tensor) -> None:
        """Note a backward pass, and look at the weight from time to time."""
        self._passes += 1
        if version_of(parameter) != self._version:
            self._look_at_absent(parameter)
        if self._passes == self._look_at:
            self._look_at *= 2
            self._look_at_changes(parameter.detach())

    def _look_at_absent(self, parameter: Tensor) -> None:
        self._version = version_of(parameter)
        self._changed += 1
        # Looking waits for the device: the more often nothing was found, the more rarely.
        if self._changed & (self._changed - 1) == 0 and self._weight.nonzero_absent():
            self._warn(
                f"absent weights of {self._weight.name!r} were not zero in a training pass: something changes weights "
                "between the optimizer's steps, as SAM does; give the optimizer that does to TopologyUpdater, or call "
                "the updater's enforce() after each such change"
            )

    def _look_at_changes(self, values: Tensor) -> None:
        if self._noted is None or self._noted.shape != values.shape:
            self._noted = values.clone()
        elif not torch.equal(self._noted, values):
            own = type(self._optimizer()).__name__
            self._warn(
                f"the weights of {self._weight.name!r} change, but the {own} that the TopologyUpdater hangs on has not "
                f"stepped in {self._passes} backward passes: the topology is not updated, and absent weights may fill "
                "up; make the updater with the optimizer that steps, and step it by its step()"
            )

    def _warn(self, message: str) -> None:
        if not self._warned and is_held_by(self._weight.module, self._keeper()):
            warnings.warn(message, stacklevel=2)
            self._warned = True


def _weakly(watch: ref[Watch]) -> Callable[[Tensor], None]:
    """Return the hook of a parameter that does not keep a watch alive."""

    def hook(parameter: Tensor) -> None:
        alive = watch()
        if alive is not None:
            alive.after_backward(parameter)

    return hook


@cache
def _watch_optimizers() -> None:
    """Hang on all optimizers, once: a hook that ended with its watch could do so while PyTorch goes through them."""
    register_optimizer_step_pre_hook(_before_any_step)


def _before_any_step(optimizer: Optimizer, *_: Any) -> None:
    for watch in list(_watches):
        watch.before_step_of(optimizer)
