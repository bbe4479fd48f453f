"""What carries out a method that acts in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.recipe import Recipe
from regrow.core.step_rule import StepLayer, StepRule
from regrow.nn.kinds import keeps_inputs_first
from regrow.processes.together import Together
from regrow.storage import enforce
from regrow.storage.holder import hold, release
from regrow.storage.masked import MaskedWeight
from regrow.storage.sharded import group_of
from regrow.topology.carried import Carried
from regrow.topology.checks import check_optimizer, check_state
from regrow.topology.optimizer_state import groups_of, restart
from regrow.topology.selected import selected
from regrow.topology.step_hooks import gradient_scale, once_gradients_are_there, was_skipped
from regrow.topology.updater import OnUpdate
from regrow.topology.watch import Watch
from regrow.topology.wrapped import stepping

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["StepUpdater"]

# Steps between comparisons of the masks of processes that train together, each of which waits for all of them.
_COMPARE_EVERY = 64


class StepUpdater:
    """Carry out a method that acts in every step, as `TopologyUpdater` carries out a recipe.

    It hangs on the optimizer's step hooks, so the training loop stays as it is. Between steps the model holds the
    sparse network: passes, evaluation, `regrow.masks`, `regrow.summary` and the model's state dict see that, and
    `regrow.densify` makes an ordinary one of it. In a step of the optimizer, a rule that trains weights outside of the
    network has the dense weight in its place; the updater keeps it in between, and saves it in its own state dict.

    Its state goes with the optimizer's, as that of a `TopologyUpdater`.

    It takes masked storage and single weights. Layers may be frozen: a weight without a gradient takes no part in a
    step.

    Args:
        model: a model from `regrow.sparsify(..., backend="masked")`; of density 1 where the rule trains dense weights
            (`rule.dense`), which it makes sparse at once.
        optimizer: the optimizer of the model's parameters, any that steps on gradients once.
        rule: what to do, from a factory (`regrow.top_kast`, `sr_ste`, `soft_threshold`, `deep_r`) or made by hand.
        seed: seed of random growth. Equal seeds give equal topologies in processes that train together.
        on_update: called after every step that changed a mask, with the steps taken and the changes of each layer.
        weights: which sparse weights it keeps, by glob over their names; None for all.
        process_group: as of `TopologyUpdater`. Processes compare their masks every 64 steps.

    Raises:
        ValueError: if the model is not sparse, or has weights that are stored sparsely, in blocks, or not all there for
            a dense rule; if one is not in the optimizer, or the optimizer steps more than once or stands around
            another.
        TypeError: if a `Recipe` is given.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Linear(8, 4), density=1.0, backend="masked")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> topology = StepUpdater(model, optimizer, regrow.top_kast(every=5, density=0.25))
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(16, 8)).square().sum().backward()
        ...     optimizer.step()
        >>> topology.step, int(model.weight.count_nonzero()), int(regrow.masks(model)["weight"].sum())
        (10, 8, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rule: StepRule,
        *,
        seed: int = 0,
        on_update: OnUpdate | None = None,
        weights: Sequence[str] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if isinstance(rule, Recipe):
            raise TypeError("this is a Recipe, which acts at updates alone: give it to regrow.TopologyUpdater")
        self._weights = _masked(model, weights, rule)
        self._optimizer, self._rule, self._on_update = optimizer, rule, on_update
        self._check_optimizer()
        self._generator = torch.Generator().manual_seed(seed)
        self._step = 0
        enforce(self._weights)
        self._layers = {weight.name: _layer(weight) for weight in self._weights}
        self._dense = {weight.name: weight.weight.detach().clone() for weight in self._weights} if rule.dense else {}
        self._taking_part: dict[str, StepLayer] = {}
        self._counted: dict[str, tuple[tuple[int, ...], int]] = {}
        with torch.no_grad():
            rule.begin(self._layers, self._generator)
            self._learn()
            for layer in self._layers.values():
                layer.joined = None
                rule.shrink(layer)
        self._carried = Carried(self, optimizer, self._weights)
        self._hooks = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        self._together = Together(model, self._weights, self._generator, process_group)
        self._end = finalize(self, self._together.close)
        hold([weight.module for weight in self._weights], self)
        self._watch = Watch(self._weights, optimizer, self)

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, skipped ones left out."""
        return self._step

    @property
    def rule(self) -> StepRule:
        """The rule that is carried out."""
        return self._rule

    def looks_at(self) -> dict[str, int | None]:
        """Return at how many absent weights the next step's gradient is read, by layer; None for all of a layer."""
        if not self._rule.reads_absent:
            return {}
        return {weight.name: self._absent_trained(weight) for weight in self._weights if weight.weight.requires_grad}

    def _absent_trained(self, weight: MaskedWeight) -> int | None:
        """Return how many absent weights a step trains; None for all."""
        trained, mask = self._layers[weight.name].trained, weight.buffer
        if trained is None:
            return None
        # A count waits for the device: it is made again only where a set has changed since.
        sets = (id(mask), mask._version, trained._version)
        known, count = self._counted.get(weight.name, (None, 0))
        if known != sets:
            count = int((trained & ~mask).sum())
            self._counted[weight.name] = (sets, count)
        return count

    def remove(self) -> None:
        """Leave the optimizer and forget dense weights: from now on nothing keeps the network sparse."""
        for hook in self._hooks:
            hook.remove()
        self._end()
        self._watch.close()
        self._carried.close()
        release([weight.module for weight in self._weights], self)
        learned = {id(number) for layer in self._layers.values() for number in layer.learned.values()}
        for group in self._optimizer.param_groups:
            for number in [each for each in group["params"] if id(each) in learned]:
                self._optimizer.state.pop(number, None)
            group["params"] = [each for each in group["params"] if id(each) not in learned]
        self._dense = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken, the state of the random generator, dense weights and what the rule keeps.

        Masks and the network's weights are in the model's own state, what is learned for the rule in this one, and
        its optimizer state in the optimizer's.
        """
        layers = self._layers.values()
        return {
            "step": self._step,
            "generator": self._generator.get_state(),
            "shapes": {weight.name: list(weight.shape) for weight in self._weights},
            "dense": dict(self._dense),
            "trained": {layer.name: layer.trained for layer in layers if layer.trained is not None},
            "numbers": {layer.name: dict(layer.numbers) for layer in layers},
            "learned": {
                layer.name: {key: number.detach() for key, number in layer.learned.items()} for layer in layers
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; load those of model and optimizer first.

        Raises:
            ValueError: if the state belongs to a model with other sparse weights, or to another rule.
        """
        own = self.state_dict()
        check_state("StepUpdater", state, own, needed=("step", "generator", "shapes"))
        for part in ("dense", "trained", "numbers", "learned"):
            kept, given = _filled(own[part]), _filled(state.get(part, {}))
            if _keys(kept) != _keys(given):
                raise ValueError(f"this state is of another rule: what it keeps as {part} differs")
            _copy(given, kept)
        self._step = state["step"]
        self._generator.set_state(state["generator"].cpu())
        self._carried.settle()

    def _learn(self) -> None:
        """Give the optimizer what a rule wants learned, in the parameter group of the weight."""
        groups = groups_of(self._optimizer)
        for weight in self._weights:
            learned = self._layers[weight.name].learned
            for key, number in learned.items():
                learned[key] = nn.Parameter(number.detach().clone())
                if id(weight.weight) in groups:
                    groups[id(weight.weight)]["params"].append(learned[key])

    def _check_optimizer(self) -> None:
        parameters = {id(weight.weight) for weight in self._weights}
        if stepping(self._optimizer, parameters) is not self._optimizer or isinstance(
            self._optimizer, torch.optim.LBFGS
        ):
            raise ValueError(
                f"{type(self._optimizer).__name__} changes weights more than once in a step, or stands around another "
                "optimizer: a rule of every step takes one that does so once, as SGD, Adam and AdamW do"
            )
        check_optimizer(self._weights, self._optimizer)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # a closure computes with the network, and leaves the optimizer what it steps on
        return once_gradients_are_there(args, kwargs, self._turn)

    @torch.no_grad()
    def _turn(self) -> None:
        """Put what the optimizer trains in the place of the network, with its gradient."""
        groups = groups_of(self._optimizer)
        scale = gradient_scale(self._optimizer)
        for weight in self._weights:
            parameter, layer = weight.weight, self._layers[weight.name]
            if parameter.grad is None or not parameter.requires_grad or id(parameter) not in groups:
                continue
            layer.weight, layer.mask, layer.gradient = parameter.detach(), weight.buffer, parameter.grad
            layer.rate = groups[id(parameter)]["lr"]
            if self._rule.dense:
                layer.weight.copy_(self._dense[weight.name])
            if scale is not None:
                layer.gradient.div_(scale.to(layer.gradient.device))
            if layer.trained is not None:
                layer.gradient.mul_(layer.trained)
            self._rule.before_step(layer, self._step)
            if scale is not None:
                for each in (layer.gradient, *(number.grad for number in layer.learned.values())):
                    if each is not None:
                        each.mul_(scale.to(each.device))
            self._taking_part[weight.name] = layer

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        layers, self._taking_part = self._taking_part, {}
        if was_skipped(optimizer):
            for layer in layers.values():
                self._rule.shrink(layer)
            return
        self._step += 1
        for layer in layers.values():
            self._hold_the_rest(layer)
        before = {name: layer.mask.clone() for name, layer in layers.items()} if self._on_update else {}
        self._rule.after_step(layers, self._step, self._generator)
        for weight in self._weights:
            if weight.name not in layers:
                continue
            layer = layers[weight.name]
            if layer.joined is not None:
                assert layer.trained is not None
                restart(optimizer.state.get(weight.weight, {}), weight.weight, layer.trained, layer.joined)
                layer.joined = None
            if self._rule.dense:
                self._dense[weight.name].copy_(layer.weight)
            self._rule.shrink(layer)
            layer.gradient = None
        self._watch.stepped()
        if self._step % _COMPARE_EVERY == 0:
            self._together.check(self._step)
        changes = {name: _change(mask, layers[name].mask) for name, mask in before.items()}
        if self._on_update and any(len(change.drop) or len(change.grow) for change in changes.values()):
            self._on_update(self._step, changes)

    def _hold_the_rest(self, layer: StepLayer) -> None:
        """Undo what the step, as by weight decay, did to what it may not change."""
        if layer.trained is None:
            return
        if self._rule.dense:
            torch.where(layer.trained, layer.weight, self._dense[layer.name], out=layer.weight)
        else:
            layer.weight.mul_(layer.trained)


def _masked(model: nn.Module, names: Sequence[str] | None, rule: StepRule) -> list[MaskedWeight]:
    """Return the sparse weights of a model, which a rule can work on."""
    weights = selected(model, names)
    for weight in weights:
        if not isinstance(weight, MaskedWeight):
            raise ValueError(
                f"{weight.name!r} is stored sparsely, and a rule of every step works on dense tensors: make the model "
                'by regrow.sparsify(..., backend="masked")'
            )
        if group_of(weight.weight) is not None:
            raise ValueError(
                f"{weight.name!r} is split over processes, as by fully_shard, and a rule of every step works on whole "
                "tensors: use DistributedDataParallel"
            )
        if weight.units.size > 1:
            raise ValueError(f"{weight.name!r} has blocks of weights: a rule of every step takes single ones, no block")
        if rule.dense and weight.nonzeros() < weight.numel:
            raise ValueError(
                f"{type(rule).__name__} trains dense weights and makes them sparse, but {weight.name!r} is so already: "
                'make the model by regrow.sparsify(model, density=1.0, backend="masked")'
            )
    return [weight for weight in weights if isinstance(weight, MaskedWeight)]


def _layer(weight: MaskedWeight) -> StepLayer:
    dimension = 0 if keeps_inputs_first(weight.module) else 1
    return StepLayer(weight.name, dimension, weight.weight.detach(), weight.buffer)


def _change(before: Tensor, after: Tensor) -> Change:
    drop, grow = (part.reshape(-1).nonzero().squeeze(1) for part in (before & ~after, after & ~before))
    return Change(drop, grow)


def _filled(part: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty dictionaries: some kinds of checkpoints lose them."""
    return {name: value for name, value in part.items() if isinstance(value, Tensor) or value}


def _keys(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: set(value) if isinstance(value, Mapping) else None for name, value in part.items()}


def _copy(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Copy the numbers of nested tensors into others of the same names."""
    for name, value in target.items():
        if isinstance(value, Tensor):
            value.copy_(source[name])
        else:
            _copy(source[name], value)
