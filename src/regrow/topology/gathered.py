"""The source of growth that gathers gradient and momentum of absent weights for some steps before an update.

While it gathers, the parameter covers absent weights too, all or some. They are ordinary elements of the one parameter
that the user's code knows, at zero and without a part in the layer's output. So whatever a training loop does to
gradients (accumulate, clear, clip, scale, add noise) it does to theirs, and the optimizer's state holds the momentum
that they would have. Optimizers that are known step only the active weights, since a step passes over its numbers many
times; the averages of absent ones are taken on here, in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regrow.core.entries import Change, LayerState
from regrow.core.growth import Growth, wanted
from regrow.core.positions import find
from regrow.core.recipe import Recipe
from regrow.storage import Weight
from regrow.storage.aside import Aside
from regrow.topology.activity import Activity
from regrow.topology.averages import Average, average_of
from regrow.topology.optimizer_state import apply_change, correction, momentum, numbers_of
from regrow.topology.source import layer_state

__all__ = ["Gathered"]


@dataclass(frozen=True)
class _Window:
    """What is being gathered.

    Attributes:
        candidates: sorted numbers of the absent units that are looked at; None for all.
        begun_at: the optimizer's own count of steps for the parameter when it began.
    """

    candidates: Tensor | None
    begun_at: float


class Gathered:
    """Gather gradient and momentum of absent weights in the steps before an update, from zero.

    Args:
        weight: the weight, in any storage.
        optimizer: the optimizer of its parameter.
        recipe: what is carried out.
        growth: how many steps are gathered, and of which weights.
        generator: source of the draw of candidates.
    """

    def __init__(
        self,
        weight: Weight,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        growth: Growth,
        generator: torch.Generator,
    ) -> None:
        self.weight = weight
        self._optimizer, self._recipe, self._growth, self._generator = optimizer, recipe, growth, generator
        self._window: _Window | None = None
        self._aside: tuple[Aside, Average] | None = None
        # Another updater, whose optimizer is stepped no more, may have left the layer in a window of its own.
        weight.uncover({})
        self._activity = Activity(weight)

    def look_ahead(self, step: int) -> None:
        """Begin or end to gather, as the steps after `step` want."""
        if not self._is_wanted(step):
            self.close()
        elif self._window is None:
            self._open(self._draw(), begun_at=float(self._state.get("step", 0)))
        ends = self._window is None or self._recipe.updates_in(step + 1)
        if self._growth.guided and ends and self._is_wanted(step + 1):
            self._activity.begin()

    def looks_at(self, step: int) -> int | None:
        """Return at how many absent weights the next gradient is gathered; None for all."""
        if self._window is None:
            return 0
        candidates = self._window.candidates
        return None if candidates is None else len(candidates) * self.weight.units.size

    def recover(self) -> None:
        """Let the parameter cover absent weights again, which a step that failed has left undone."""
        if self._aside is not None:
            aside, _ = self._aside
            aside.bring_back({key: self._state[key] for key in aside.state})
            self._state.update(aside.state)
            self._aside = None

    def before_step(self, group: dict[str, Any] | None) -> None:
        """Let the optimizer step only active weights, where its averages of the others can be told without it."""
        parameter = self.weight.weight
        if self._window is None or group is None or parameter.grad is None or torch.compiler.is_compiling():
            return
        numbers = numbers_of(self._state, parameter)
        average = average_of(self._optimizer, group, numbers)
        aside = None if average is None else self.weight.leave_active(numbers)
        if average is not None and aside is not None:
            self._state.update(aside.active)
            self._aside = aside, average

    def after_step(self) -> None:
        """Take the averages of absent weights on, and set to zero what the optimizer's step has made of them."""
        if self._aside is not None:
            aside, average = self._aside
            average(aside.state, aside.gradient)
            self.recover()
        elif self._window is not None:
            self.weight.clear_absent()

    def layer_state(self, gradient: Tensor | None, group: dict[str, Any], step: int) -> LayerState:
        """Return the weight as the update sees it.

        Raises:
            RuntimeError: if nothing was gathered of absent weights before this step.
        """
        needs, of_absent = self._recipe.needs, self._recipe.needs_of_absent
        if of_absent and self._window is None:
            raise RuntimeError(
                f"nothing is known of the absent weights of {self.weight.name!r} at step {step}: their "
                f"{' and '.join(of_absent)} is gathered only before the steps that the recipe's update_at names; "
                "update at those, or with growth=regrow.growth.exact() on masked storage"
            )
        active: dict[str, Tensor] = {}
        absent: dict[str, Callable[[], Tensor]] = {}
        if gradient is not None:
            active["grad"] = gradient
        if gradient is not None and "gradient" in of_absent:
            absent["grad"] = gradient.detach
        if "momentum" in needs:
            active["momentum"] = momentum(self._optimizer, self.weight.weight, group)
        if "momentum" in of_absent:
            steps = self._own_steps - self._begun_at
            absent["momentum"] = partial(momentum, self._optimizer, self.weight.weight, group, steps=steps)
        candidates = self._draw() if self._window is None else self._window.candidates
        return layer_state(self.weight, active, absent, candidates)

    def carry(self, change: Change, group: dict[str, Any], step: int) -> None:
        """Carry out a change, with the momentum that weights were grown for.

        An average that began with the window is turned into one that reads the same after the parameter's steps.
        """
        state, reset = self._state, self._recipe.reset_state
        numbers = apply_change(self.weight, change, state, reset)
        if self._window is not None and reset == "keep":
            grown = change.grow[~find(change.grow, change.drop.sort().values)[1]]
            gone = change.drop[~find(change.drop, change.grow)[1]]
            steps, own = self._own_steps - self._begun_at, self._own_steps
            for key, tensor in numbers.items():
                if (factor := correction(key, group, steps, into=own)) != 1:
                    self.weight.put(tensor, grown, self.weight.at(tensor, grown) * factor)
                    self.weight.put(tensor, gone, self.weight.at(tensor, gone) / factor)
        state.update(numbers)
        if self._window is not None and not (self._window.candidates is None and self._is_wanted(step)):
            self._let_go()  # candidates are drawn anew for each update

    def leave(self) -> None:
        """Take no part in the steps to come: what is gathered at all times is kept, as dense state would be."""
        if self._growth.steps is not None:
            self.close()

    def close(self) -> None:
        """Let go of what was gathered."""
        self._activity.end()
        self.recover()
        self._let_go()

    def _let_go(self) -> None:
        if self._window is not None:
            self._state.update(self.weight.uncover(numbers_of(self._state, self.weight.weight)))
            self._window = None

    def state_dict(self) -> dict[str, Any] | None:
        """Return which weights are looked at and since when; their numbers are in the optimizer's state."""
        self.recover()
        state: dict[str, Any] = {"watched": True} if self._activity.is_watched else {}
        if self._window is not None:
            state |= {"candidates": self._window.candidates, "begun_at": self._window.begun_at}
        return state or None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a `state_dict`; the states of model and optimizer are those saved beside it."""
        self._aside = None
        # The optimizer's state may have been loaded already, in the shape that the parameter is about to have.
        if self._window is not None:
            self.weight.uncover({})
            self._window = None
        self._activity.end()
        if state is not None and "watched" in state:
            self._activity.begin()
        if state is not None and "begun_at" in state:
            candidates = state["candidates"]
            if candidates is not None:
                candidates = candidates.to(self.weight.weight.device, copy=True)
            self._open(candidates, state["begun_at"], begins=False)

    def _open(self, candidates: Tensor | None, begun_at: float, *, begins: bool = True) -> None:
        positions = None if candidates is None else self.weight.units.positions_of(candidates)
        numbers = numbers_of(self._state, self.weight.weight)
        if not begins and self.weight.holds_absent:
            numbers = {}  # what is there goes on
        self._state.update(self.weight.cover(positions, numbers))
        self._window = _Window(candidates, begun_at)

    def _draw(self) -> Tensor | None:
        return wanted(self._growth, self.weight.index(), self.weight.units, self._generator, self._activity.end())

    def _is_wanted(self, step: int) -> bool:
        """Return whether the steps after `step` gather what growth reads of absent weights."""
        needs = self._recipe.needs_of_absent
        if not needs:
            return False
        steps = self._growth.steps
        if steps is None:
            return True
        # The gradient counts at the update alone.
        steps = steps if "momentum" in needs else 1
        return any(self._recipe.updates_in(step + ahead) for ahead in range(1, steps + 1))

    @property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizer.state.get(self.weight.weight, {})
        return state

    @property
    def _own_steps(self) -> float:
        """The optimizer's own count of steps for the parameter; 0 where it keeps none."""
        return float(self._state.get("step", 0))

    @property
    def _begun_at(self) -> float:
        return 0.0 if self._window is None else self._window.begun_at
