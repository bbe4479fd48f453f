"""The topology of a model in training by a recipe."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regrow.convert.uses import Uses
from regrow.core.entries import Change
from regrow.core.growth import or_default
from regrow.core.recipe import Recipe
from regrow.core.update import update
from regrow.ops.layout import release_memory
from regrow.processes.together import Together
from regrow.storage import Storage, Weight, enforce, unwrapped
from regrow.storage.holder import hold, release
from regrow.topology.carried import Carried
from regrow.topology.checks import check_optimizer, check_state
from regrow.topology.decay import undecayed
from regrow.topology.dense import Dense
from regrow.topology.gathered import Gathered
from regrow.topology.optimizer_state import check_momentum, groups_of
from regrow.topology.selected import selected
from regrow.topology.source import Source
from regrow.topology.step_hooks import acts_last, gradient_scale, once_gradients_are_there, was_skipped
from regrow.topology.watch import Watch
from regrow.topology.wrapped import enforce_after, stepping

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["OnUpdate", "TopologyUpdater"]

OnUpdate = Callable[[int, Mapping[str, Change]], None]


class TopologyUpdater:
    """Keep a sparse model sparse while it trains, and carry out its recipe's updates.

    It hangs on the optimizer's official step hooks, so the training loop stays as it is: after every
    `optimizer.step()` absent weights are zero again, and when the recipe says so the topology is updated. An update
    that is due after a step is carried out by the next one, when the training goes on: an evaluation at the end of an
    epoch sees the network as it was trained, not one whose weights have just been dropped. A step that a GradScaler
    skips does not count. Gradients may be accumulated, clipped, set to None or to zero. With masked storage the
    gradient of absent weights is there too, for growth: a norm for clipping counts it.

    With sparse storage the parameters of sparse layers have a number for each active weight. In the steps in which
    `recipe.growth` gathers, they have one for each absent weight that is looked at too: whatever the loop does to
    gradients then counts for both alike. Where a parameter changes its size, its gradient goes along.

    Processes may train the model together by `DistributedDataParallel`, in either storage: growth then reads gradients
    that are averaged over all, the same weights grow in each, and at the first pass and at every update they compare
    their positions.

    Where the recipe needs the cost of weights, as under a bound on compute, it is observed in the training passes of
    `model`, as a mean over the samples so far, of all processes.

    Layers may be frozen and unfrozen at any time. Absent weights stay zero in all of them. In an update takes part what
    trains: weights of the optimizer with `requires_grad`, then and after the step before, so that growth has seen
    them. A frozen layer keeps its positions, and what is redistributed is so among the others.

    Its state goes with the optimizer's: `optimizer.state_dict()` holds it, and `optimizer.load_state_dict` gives it
    back where the model's was loaded before. A step after a load that had none raises: the schedule would begin anew.

    It also serves static training: with masked storage an optimizer would fill the absent weights without it.

    An optimizer that stands around another (SAM, Lookahead, Accelerate's) is given as it is: the updater hangs on the
    inner one, and absent weights are zero again after what the outer one does, SAM's first step among that. Where
    weights change without the optimizer it warns, and another optimizer that is about to step them raises.

    Args:
        model: a model from `regrow.sparsify`, or `DistributedDataParallel` of it. Absent weights are zeroed at once.
        optimizer: the optimizer of the model's parameters. Any that steps on gradients; recipes that need
            momentum take those that keep `momentum_buffer` or `exp_avg`.
        weights: which sparse weights it keeps, by glob over their names; None for all. Give this where several
            optimizers train the model, each with its own updater.
        recipe: what to do and when, from a method's factory or made by hand.
        seed: seed of random growth. Equal seeds give equal topologies in processes that train together.
        on_update: called after every update with the steps taken and the changes of each layer.
        process_group: processes that train together and average gradients without `DistributedDataParallel`, which is
            found by itself.

    Raises:
        ValueError: if the model is not sparse, a sparse weight that trains is not in the optimizer, the recipe needs
            momentum that the optimizer does not keep, the optimizer is LBFGS, or it has an updater already.
        TypeError: if what is given is no `Recipe`.
        RuntimeError: if the processes of a group begin with other positions; later, in every process, from the first
            pass or a step, if they no longer agree.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Linear(8, 4), density=0.25)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> topology = TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=5, steps=20))
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(16, 8)).square().sum().backward()
        ...     optimizer.step()
        >>> topology.step, int(model.weight.count_nonzero())
        (20, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        *,
        seed: int = 0,
        on_update: OnUpdate | None = None,
        weights: Sequence[str] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if not isinstance(recipe, Recipe):
            raise TypeError(
                f"{type(recipe).__name__} is no Recipe: methods that act in every step go to regrow.StepUpdater"
            )
        self._weights = selected(model, weights)
        given, optimizer = optimizer, stepping(optimizer, {id(weight.weight) for weight in self._weights})
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the model many times in a step, between which weights would have to stay zero: "
                "use SGD, Adam or AdamW"
            )
        self._optimizer = optimizer
        self._recipe = recipe
        self._generator = torch.Generator().manual_seed(seed)
        self._on_update = on_update
        self._step = 0
        self._gradients: dict[str, Tensor] = {}
        self._held_back: list[tuple[nn.Parameter, Tensor]] = []
        check_optimizer(self._weights, optimizer)
        self._check_groups()
        enforce(self._weights)
        self._sources = [self._source(weight) for weight in self._weights]
        self._training: set[str] = set()
        self._look_ahead()
        self._carried = Carried(self, optimizer, self._weights)
        self._index_versions = self._versions()
        self._hooks = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        self._ends = enforce_after(given, optimizer, self.enforce)
        self._uses: Uses | None = None
        if "cost" in recipe.needs:
            self._uses = Uses(unwrapped(model), {each.name: each for each in self._weights}, training_only=True)
            self._ends.append(weakref.finalize(self, self._uses.close))
        self._together = Together(model, self._weights, self._generator, process_group)
        self._ends.append(weakref.finalize(self, self._together.close))
        hold([weight.module for weight in self._weights], self)
        self._watch = Watch(self._weights, optimizer, self)

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, skipped ones left out."""
        return self._step

    @property
    def recipe(self) -> Recipe:
        """The recipe that is carried out."""
        return self._recipe

    def looks_at(self) -> dict[str, int | None]:
        """Return at how many absent weights the next step's gradient is read, by layer; None for all of a layer.

        Layers of which none is read are not in it: most steps, unless momentum is gathered at all times.
        """
        counts = {source.weight.name: source.looks_at(self._step) for source in self._sources}
        return {name: count for name, count in counts.items() if count != 0 and name in self._training}

    def remove(self) -> None:
        """Leave the optimizer: from now on nothing updates the topology or keeps absent weights at zero."""
        for hook in self._hooks:
            hook.remove()
        for end in self._ends:
            end()
        self._watch.close()
        self._carried.close()
        for source in self._sources:
            source.close()
        release([weight.module for weight in self._weights], self)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken, the state of the random generator, what growth has gathered and uses of weights.

        Where weights exist is in the model's own state.
        """
        return {
            "step": self._step,
            "generator": self._generator.get_state(),
            "shapes": {weight.name: list(weight.shape) for weight in self._weights},
            "units": {weight.name: list(weight.units.unit) for weight in self._weights},
            "growth": {source.weight.name: source.state_dict() for source in self._sources},
            "training": {weight.name: weight.name in self._training for weight in self._weights},
            "uses": self._uses.state_dict() if self._uses else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; load those of model and optimizer first.

        Raises:
            ValueError: if the state belongs to a model with other sparse weights, or other units.
        """
        own = self.state_dict()
        check_state("TopologyUpdater", state, own, needed=own.keys())
        self._step = state["step"]
        self._generator.set_state(state["generator"].cpu())
        for source in self._sources:
            source.load_state_dict(state["growth"][source.weight.name])
        self._training = {name for name, trains in state["training"].items() if trains}
        # The recipe may be another, as that of a longer training.
        for source in self._sources:
            if source.weight.name in self._training:
                source.look_ahead(self._step)
        if self._uses and state["uses"]:
            self._uses.load_state_dict(state["uses"])
        self._index_versions = self._versions()
        self._carried.settle()

    def _source(self, weight: Weight) -> Source:
        growth = or_default(self._recipe.growth, holds_absent=weight.holds_absent)
        if weight.holds_absent and growth.steps is None and growth.per_nonzero is None:
            return Dense(weight, self._optimizer, self._recipe)
        return Gathered(weight, self._optimizer, self._recipe, growth, self._generator)

    def _versions(self) -> dict[str, object]:
        return {weight.name: weight.index_version() for weight in self._weights}

    def _check_groups(self) -> None:
        groups = groups_of(self._optimizer)
        for weight in self._weights:
            if "momentum" in self._recipe.needs and id(weight.weight) in groups:
                check_momentum(self._optimizer, groups[id(weight.weight)])
        if missed := undecayed(self._weights, self._optimizer):
            warnings.warn(
                f"no sparsely stored weight decays ({', '.join(missed)}), though the optimizer has groups that do: the "
                "parameter of such a layer is `values`, with one dimension, so rules by `ndim` or by the name `weight` "
                "miss it; make the groups by regrow.decay_groups(model, weight_decay)",
                stacklevel=3,
            )

    def _names_that_train(self) -> set[str]:
        groups = groups_of(self._optimizer)
        return {weight.name for weight in self._weights if weight.weight.requires_grad and id(weight.weight) in groups}

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._check_index()
        for source in self._sources:
            source.recover()
        # SGD's foreach form adds Nesterov's momentum into `.grad` itself, so it is read before that: before the
        # step or, where a closure makes the gradient during the step, as soon as the closure returns.
        self._gradients = {}
        return once_gradients_are_there(args, kwargs, self._take_gradients)

    def _check_index(self) -> None:
        for weight in self._weights:
            if weight.index_version() is not self._index_versions[weight.name]:
                raise RuntimeError(
                    f"the positions of {weight.name!r} changed under its TopologyUpdater: load the updater's state "
                    "after the model's, or make a new updater"
                )

    def _take_gradients(self) -> None:
        """Read what the update needs, and hold gradients back from a step that need not take them.

        All of them where the update takes the place of the step, else those of absent weights.
        """
        updates = self._recipe.updates_in(self._step + 1)
        if updates and "gradient" in self._recipe.needs:
            self._read_gradients()
        if updates and self._recipe.replaces_step:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._held_back = [(parameter, parameter.grad) for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
        elif acts_last(self._optimizer, self._hooks[0]):  # another hook may do something to gradients yet
            groups = groups_of(self._optimizer)
            for source in self._sources:
                source.before_step(groups.get(id(source.weight.weight)))

    def _give_gradients_back(self) -> None:
        for parameter, gradient in self._held_back:
            parameter.grad = gradient
        self._held_back = []

    def _read_gradients(self) -> None:
        scale = gradient_scale(self._optimizer)
        for weight in self._weights:
            if weight.name not in self._training:
                continue
            grad = _gradient(weight)
            self._gradients[weight.name] = grad.clone() if scale is None else grad / scale.to(grad.device)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._give_gradients_back()
        if was_skipped(optimizer):
            return
        self._step += 1
        self.enforce()
        if self._recipe.updates_in(self._step):
            self._carry_out(due=self._step - 1)
        self._look_ahead()
        self._watch.stepped()

    def enforce(self) -> None:
        """Zero all absent weights, as after each step; call it after what else changes weights while they train."""
        # Without a gradient an optimizer leaves a parameter alone.
        enforce([weight for weight in self._weights if weight.weight.requires_grad or weight.weight.grad is not None])
        for source in self._sources:
            source.after_step()

    def update(self) -> None:
        """Update the topology now, whatever the recipe's timing; call it after `optimizer.step()`.

        Growth by gradient then reads `.grad` as the optimizer left it.

        Raises:
            RuntimeError: if the recipe needs what only a step before an update gathers.
        """
        self._carry_out(due=self._step)

    @torch.no_grad()
    def _carry_out(self, due: int) -> None:
        """Carry out the update that is due after so many steps."""
        self._check_index()
        stored_sparsely = any(weight.storage is Storage.SPARSE for weight in self._weights)
        if stored_sparsely:
            release_memory()  # no activations are in it: there is room for what is as large as a dense weight
        groups = groups_of(self._optimizer)
        taking_part = self._training & self._names_that_train()
        sources = [source for source in self._sources if source.weight.name in taking_part]
        costs, layers = self._costs(), {}
        for source in sources:
            weight = source.weight
            gradient = self._gradients.get(weight.name)
            if gradient is None and "gradient" in self._recipe.needs:
                gradient = _gradient(weight)
            layer = source.layer_state(gradient, groups[id(weight.weight)], self._step)
            layers[weight.name] = replace(layer, cost=costs.get(weight.name))
        self._gradients = {}
        changes = update(self._recipe, layers, due, self._generator) if layers else {}
        # What a layer's numbers are cut from may be as large as the dense weight, and new index structures come.
        del layers
        for source in sources:
            source.carry(changes[source.weight.name], groups[id(source.weight.weight)], self._step)
        self._index_versions = self._versions()
        self._together.check(self._step)
        if stored_sparsely:
            release_memory()
        if self._on_update is not None:
            self._on_update(self._step, changes)

    def _costs(self) -> dict[str, float]:
        """Return the cost of a weight of each layer; nothing where the recipe reads none, or no pass was seen."""
        return (self._uses.costs(self._together.total) if self._uses else None) or {}

    def _look_ahead(self) -> None:
        self._training = self._names_that_train()
        for source in self._sources:
            if source.weight.name in self._training:
                source.look_ahead(self._step)
            else:
                source.leave()


def _gradient(weight: Weight) -> Tensor:
    grad = weight.weight.grad
    return torch.zeros_like(weight.weight) if grad is None else grad.detach()
