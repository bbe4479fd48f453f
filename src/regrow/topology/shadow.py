"""The momentum of weights that do not exist: what the user's optimizer would keep for them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.core.entries import Change
from regrow.storage import Weight
from regrow.topology.absent import Absent
from regrow.topology.momentum import correction, momentum

_NOT_SETTINGS = ("params", "param_names")


class Shadow:
    """Absent weights of several layers, and a second optimizer that steps them as the first would.

    The second optimizer is of the same class, with the settings of the first at every step. Its weights are zero
    after each step as absent weights are, so its state is the state that they would have.

    Args:
        optimizer: the user's optimizer.
        weights: the weights whose absent positions are looked at.
        positions: the positions by name of the weight, each sorted; None for all that are absent.
        with_momentum: whether momentum is wanted, or the gradient alone.
        existing: by name the positions of the weights that exist, where they are others than now.

    Raises:
        ValueError: if a second optimizer cannot be made from the settings of the first.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        weights: Iterable[Weight],
        positions: Mapping[str, Tensor | None],
        *,
        with_momentum: bool,
        existing: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        self._first = optimizer
        existing = existing or {}
        self._absent = {
            weight.name: Absent(weight, positions[weight.name], existing.get(weight.name)) for weight in weights
        }
        self._second = _like(optimizer, self._absent.values()) if with_momentum else None
        for absent in self._absent.values():
            absent.open()

    def __contains__(self, weight: Weight) -> bool:
        return weight.name in self._absent

    @property
    def sees_all(self) -> bool:
        """Whether all absent positions are looked at."""
        return all(absent.positions is None for absent in self._absent.values())

    def positions(self, weight: Weight) -> Tensor | None:
        """Return the absent positions that are looked at, sorted int64; None for all."""
        return self._absent[weight.name].positions

    def fits(self, weight: Weight, index: Tensor) -> bool:
        """Return whether what is looked at is absent if the weights at `index`, sorted int64, exist."""
        return self._absent[weight.name].fits(index)

    def gradient(self, weight: Weight) -> Tensor:
        """Return the gradient at the positions, or at every position of the dense weight where all are looked at.

        Call it after `collect` and before `step`.
        """
        parameter = self._absent[weight.name].parameter
        if parameter.grad is None:
            return torch.zeros_like(parameter)
        # SGD's foreach form changes gradients when it steps.
        return parameter.grad if self._second is None else parameter.grad.clone()

    def momentum(self, weight: Weight) -> Tensor:
        """Return the momentum at the positions, or at every position of the dense weight where all are looked at."""
        assert self._second is not None
        parameter = self._absent[weight.name].parameter
        return momentum(self._second, parameter, groups_of(self._second)[id(parameter)])

    def collect(self) -> None:
        """Take the gradients as the user's optimizer is about to see them."""
        # Optimizers that unscale by themselves are handed the scale of the GradScaler for the step.
        scale = getattr(self._first, "grad_scale", None)
        for absent in self._absent.values():
            absent.collect(scale)

    def step(self) -> None:
        """Step as the user's optimizer just did, and let go of the gradients."""
        if self._second is not None:
            firsts = groups_of(self._first)
            weight_of = {id(absent.parameter): absent.weight.weight for absent in self._absent.values()}
            for group in self._second.param_groups:
                group.update(_settings(firsts[id(weight_of[id(group["params"][0])])]))
            self._second.step()
        for absent in self._absent.values():
            absent.parameter.grad = None
            absent.parameter.data.zero_()

    def joining(self, weight: Weight, key: str, tensor: Tensor, grow: Tensor) -> Tensor:
        """Return the numbers of optimizer state that weights bring along when they grow, shape (grow,).

        Those looked at bring what the second optimizer has for them, others (just dropped) what they had.

        Args:
            weight: the weight.
            key: name of the number in the optimizer's state.
            tensor: that state of the weight, in the parameter's shape.
            grow: flat positions that join.
        """
        absent = self._absent[weight.name]
        if self._second is None or not len(absent.parameter):
            return weight.at(tensor, grow)
        numbers = self._state(absent).get(key)
        place, found = absent.find(grow)
        joining = tensor.new_zeros(len(grow)) if numbers is None else numbers[place]
        joining.mul_(self._correction(weight, key))
        # weights that were just dropped
        joining[~found] = weight.at(tensor, grow[~found])
        return joining

    def follow(self, weight: Weight, change: Change, leaving: Mapping[str, Tensor]) -> None:
        """Take over what was dropped; call it when the weight has changed, where all absent positions are looked at.

        Args:
            weight: the weight, changed.
            change: what left and joined.
            leaving: by name of the state, the numbers of the weights in `change.drop`.
        """
        absent = self._absent[weight.name]
        for key, numbers in numbers_of(self._state(absent), absent.parameter).items():
            left = leaving.get(key, numbers.new_zeros(len(change.drop))) / self._correction(weight, key)
            # a position that was dropped and came back exists: its number means nothing
            numbers[change.drop] = left
        absent.follow()

    def forget(self, weight: Weight) -> None:
        """Let go of all that is kept for a weight, which is looked at no more."""
        absent = self._absent[weight.name]
        absent.close()
        if self._second is not None:
            self._second.state.pop(absent.parameter, None)
        absent.empty()

    def close(self) -> None:
        """Look at nothing any more."""
        for absent in self._absent.values():
            absent.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the positions and what the second optimizer keeps for them."""
        return {
            "positions": {name: absent.positions for name, absent in self._absent.items()},
            "existing": {name: absent.existing for name, absent in self._absent.items()},
            "optimizer": None if self._second is None else self._second.state_dict(),
        }

    def load_optimizer(self, state: Mapping[str, Any] | None) -> None:
        """Take over what another shadow's second optimizer kept for the same positions, if it had one."""
        if self._second is not None and state is not None:
            self._second.load_state_dict(dict(state))

    def _state(self, absent: Absent) -> dict[str, Any]:
        state: dict[str, Any] = {} if self._second is None else self._second.state.get(absent.parameter, {})
        return state

    def _correction(self, weight: Weight, key: str) -> float:
        """Return what turns a number of the second optimizer into one of the first."""
        own = self._first.state.get(weight.weight, {})
        state = self._state(self._absent[weight.name])
        group = groups_of(self._first)[id(weight.weight)]
        return correction(key, group, steps=float(state.get("step", 0)), into=float(own.get("step", 0)))


def groups_of(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Return the parameter group of each parameter by the parameter's `id`."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def numbers_of(state: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """Return every tensor of a parameter's optimizer state that has a number for each of its elements."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}


def _like(optimizer: Optimizer, absent: Iterable[Absent]) -> Optimizer:
    """Return an optimizer of the same class for the parameters of `absent`, in groups like those of their weights."""
    first = groups_of(optimizer)
    members: dict[int, list[nn.Parameter]] = {}
    groups: dict[int, dict[str, Any]] = {}
    for one in absent:
        group = first[id(one.weight.weight)]
        groups[id(group)] = group
        members.setdefault(id(group), []).append(one.parameter)
    settings = [{"params": members[key], **_settings(group)} for key, group in groups.items()]
    taken = inspect.signature(type(optimizer)).parameters
    arguments = {name: value for name, value in settings[0].items() if name in taken and name not in _NOT_SETTINGS}
    try:
        return type(optimizer)(settings, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the momentum of absent weights wants a second {type(optimizer).__name__} with the settings of the first, "
            f'which failed ({error}): use an optimizer of torch.optim, or regrow.sparsify(..., backend="masked")'
        ) from error


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in _NOT_SETTINGS}
