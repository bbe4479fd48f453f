"""The topology of a model in training: the one stateful object of the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.entries import Change, Entries, LayerState
from regrow.core.growth import wanted
from regrow.core.recipe import Recipe
from regrow.core.units import Units
from regrow.core.update import update
from regrow.storage import Weight, sparse_weights
from regrow.storage.masked import MaskedWeight, enforce
from regrow.topology.momentum import check_momentum, momentum
from regrow.topology.shadow import Shadow, groups_of, numbers_of

# What the state of growth holds of positions.
_POSITIONS = ("positions", "existing")

OnUpdate = Callable[[int, Mapping[str, Change]], None]


class TopologyUpdater:
    """Keep a sparse model sparse while it trains, and carry out its recipe's updates.

    It hangs on the optimizer's official step hooks, so the training loop stays as it is: after every
    `optimizer.step()` absent weights are zero again, and when the recipe says so the topology is updated. A step
    that a GradScaler skips does not count. Gradients may be accumulated, clipped, set to None or to zero. With
    masked storage the gradient of absent weights is there too, for growth: a norm for clipping counts it.

    With sparse storage it computes what growth needs of absent weights, as `recipe.growth` says, while it is needed;
    gradients are to be cleared between steps, as usual. A norm for clipping counts the weights that exist alone, and
    what was shortened or unscaled is taken to be so by one number in each layer. After an update the gradient of a
    weight is None. Processes that train together would each see their own batches: use masked storage for that.

    It also serves static training: with masked storage an optimizer would fill the absent weights without it.

    Args:
        model: a model from `regrow.sparsify`. Absent weights are zeroed at once.
        optimizer: the optimizer of the model's parameters. Any that steps on gradients; recipes that need
            momentum take those that keep `momentum_buffer` or `exp_avg`.
        recipe: what to do and when, from a method's factory or made by hand.
        seed: seed of random growth. Equal seeds give equal topologies in processes that train together.
        on_update: called after every update with the step and the changes of each layer.

    Raises:
        ValueError: if the model is not sparse, a sparse weight is not in the optimizer, the recipe needs
            momentum that the optimizer does not keep, the optimizer is LBFGS, it has an updater already, or a
            second of its kind cannot be made where sparse storage needs one.

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
    ) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the model many times in a step, between which weights would have to stay zero: "
                "use SGD, Adam or AdamW"
            )
        self._weights = [weight for weight in sparse_weights(model).values() if weight.weight.requires_grad]
        if not self._weights:
            raise ValueError("the model has no sparse weights that train: call regrow.sparsify(model, density) first")
        self._optimizer = optimizer
        self._recipe = recipe
        self._generator = torch.Generator().manual_seed(seed)
        self._on_update = on_update
        self._step = 0
        self._gradients: dict[str, Tensor] = {}
        self._absent_gradients: dict[str, Tensor] = {}
        self._shadow: Shadow | None = None
        self._check_groups()
        self._check_alone()
        enforce(self._masked())
        self._look_ahead()
        self._hooks = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, skipped ones left out."""
        return self._step

    @property
    def recipe(self) -> Recipe:
        """The recipe that is carried out."""
        return self._recipe

    def remove(self) -> None:
        """Leave the optimizer: from now on nothing updates the topology or keeps absent weights at zero."""
        for hook in self._hooks:
            hook.remove()
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken, the state of the random generator and what growth has gathered.

        Where weights exist is in the model's own state.
        """
        return {
            "step": self._step,
            "generator": self._generator.get_state(),
            "shapes": {weight.name: list(weight.shape) for weight in self._weights},
            "growth": None if self._shadow is None else self._shadow.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; load those of model and optimizer beside it.

        Raises:
            ValueError: if the state belongs to a model with other sparse weights.
        """
        shapes = {weight.name: list(weight.shape) for weight in self._weights}
        if state["shapes"] != shapes:
            different = sorted(
                name for name in shapes.keys() | state["shapes"] if shapes.get(name) != state["shapes"].get(name)
            )
            raise ValueError(
                f"this topology state is of another model: the sparse weights differ in {', '.join(different)}; "
                "load it beside the model it was saved with"
            )
        self._step = state["step"]
        self._generator.set_state(state["generator"])
        self._close()
        growth = state["growth"]
        if growth is not None:
            weights = [weight for weight in self._weights if weight.name in growth["positions"]]
            # copies: the state that was loaded from stays as it is
            positions, existing = ({w.name: _copy(growth[key][w.name], w) for w in weights} for key in _POSITIONS)
            with_momentum = growth["optimizer"] is not None
            self._shadow = Shadow(self._optimizer, weights, positions, with_momentum=with_momentum, existing=existing)
            self._shadow.load_optimizer(growth["optimizer"])

    def _masked(self) -> list[MaskedWeight]:
        return [weight for weight in self._weights if isinstance(weight, MaskedWeight)]

    def _check_groups(self) -> None:
        groups = groups_of(self._optimizer)
        for weight in self._weights:
            if id(weight.weight) not in groups:
                raise ValueError(
                    f"{weight.name!r} is sparse but not in the optimizer: make the optimizer after "
                    "regrow.sparsify and give it model.parameters()"
                )
            if "momentum" in self._recipe.needs:
                check_momentum(self._optimizer, groups[id(weight.weight)])

    def _check_alone(self) -> None:
        for hook in self._optimizer._optimizer_step_post_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, TopologyUpdater) and set(other._weights) & set(self._weights):
                raise ValueError("this optimizer has a TopologyUpdater for these weights already: remove() it first")

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # SGD's foreach form adds Nesterov's momentum into `.grad` itself, so it is read before that: before the
        # step or, where a closure makes the gradient during the step, as soon as the closure returns.
        self._gradients, self._absent_gradients = {}, {}
        if self._shadow is None and not self._reads_gradients():
            return None
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._reading(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._reading(args[1]), *args[2:]), kwargs
        self._read_gradients()
        return None

    def _reading(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that also reads the gradients it has made."""

        def reading() -> Any:
            value = closure()
            self._read_gradients()
            return value

        return reading

    def _read_gradients(self) -> None:
        if self._shadow is not None:
            self._shadow.collect()
        if not self._reads_gradients():
            return
        # Optimizers that unscale by themselves are handed the scale of the GradScaler for the step.
        scale = getattr(self._optimizer, "grad_scale", None)
        for weight in self._weights:
            grad = _gradient(weight)
            self._gradients[weight.name] = grad.clone() if scale is None else grad / scale.to(grad.device)
            if self._shadow is not None and weight in self._shadow:
                self._absent_gradients[weight.name] = self._shadow.gradient(weight)

    def _reads_gradients(self) -> bool:
        """Return whether the step that comes wants the gradients."""
        return "gradient" in self._recipe.needs and self._recipe.update_at(self._step + 1)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Optimizers that unscale by themselves are stepped even when the GradScaler found an infinity.
        infinities = getattr(optimizer, "found_inf", None)
        if infinities is not None and bool(infinities):
            return
        self._step += 1
        enforce(self._masked())
        if self._shadow is not None:
            self._shadow.step()
        if self._recipe.update_at(self._step):
            self.update()
        self._look_ahead()

    @torch.no_grad()
    def update(self) -> None:
        """Update the topology now, whatever the recipe's timing; call it after `optimizer.step()`.

        Growth by gradient then reads `.grad` as the optimizer left it.

        Raises:
            RuntimeError: if the recipe needs what only a step before an update gathers.
        """
        layers = {weight.name: self._layer_state(weight) for weight in self._weights}
        self._gradients, self._absent_gradients = {}, {}
        changes = update(self._recipe, layers, self._step, self._generator)
        del layers  # as large as all that was gathered, and the new index structures are still to be made
        for weight in self._weights:
            self._carry_out(weight, changes[weight.name])
        if not self._goes_on():
            self._close()
        if self._on_update is not None:
            self._on_update(self._step, changes)

    def _layer_state(self, weight: Weight) -> LayerState:
        """Return a layer as the update sees it."""
        index, parameter = weight.index(), weight.weight.detach()
        shadow = self._shadow if self._shadow is not None and weight in self._shadow else None
        if shadow is None and self._recipe.needs and not self._reads_dense(weight):
            raise self._nothing_gathered(weight)
        if shadow is None:
            positions = wanted(self._recipe.growth, index, Units(weight.shape), self._generator)
        else:
            positions = shadow.positions(weight)
            if not shadow.fits(weight, index):
                raise RuntimeError(
                    f"the positions of {weight.name!r} changed under its TopologyUpdater: load the updater's state "
                    "beside the model's, or make a new updater"
                )

        existing: dict[str, Tensor] = {}
        missing: dict[str, Callable[[], Tensor]] = {}
        if "gradient" in self._recipe.needs:
            grad = self._gradients.get(weight.name)
            grad = _gradient(weight) if grad is None else grad
            existing["grad"] = weight.existing(grad)
            if shadow is None:
                missing["grad"] = partial(_absent_numbers, weight, grad, positions)
            elif weight.name in self._absent_gradients:
                missing["grad"] = partial(torch.Tensor.detach, self._absent_gradients[weight.name])
            else:
                raise self._nothing_gathered(weight)
        if "momentum" in self._recipe.needs:
            group = groups_of(self._optimizer)[id(weight.weight)]
            kept = momentum(self._optimizer, weight.weight, group)
            existing["momentum"] = weight.existing(kept)
            if shadow is None:
                missing["momentum"] = partial(_absent_numbers, weight, kept, positions)
            else:
                missing["momentum"] = partial(shadow.momentum, weight)

        zero = parameter.new_zeros(())
        candidates: Entries
        if positions is None:
            units = Units(weight.shape)
            candidates = Entries.absent(units, index, zero, missing.get("grad"), missing.get("momentum"))
        else:
            numbers = {name: read() for name, read in missing.items()}
            zeros = zero.expand(len(positions))
            candidates = Entries(positions, zeros, numbers.get("grad"), numbers.get("momentum"))
        return LayerState(
            active=Entries(index, weight.existing(parameter), existing.get("grad"), existing.get("momentum")),
            candidates=candidates,
            numel=weight.numel,
            shape=weight.shape,
        )

    def _nothing_gathered(self, weight: Weight) -> RuntimeError:
        return RuntimeError(
            f"nothing is known of the absent weights of {weight.name!r} at step {self._step}: their "
            f"{' and '.join(self._recipe.needs)} is gathered only before the steps that the recipe's update_at names; "
            "update at those, or with growth=regrow.growth.exact() on masked storage"
        )

    def _carry_out(self, weight: Weight, change: Change) -> None:
        """Change where a weight exists, and take its optimizer state along."""
        shadow = self._shadow if self._shadow is not None and weight in self._shadow else None
        goes_on = shadow if self._goes_on() else None
        state = self._optimizer.state.get(weight.weight, {})
        numbers = numbers_of(state, weight.weight)
        leaving = {key: weight.at(tensor, change.drop) for key, tensor in numbers.items() if goes_on is not None}
        joining = {}
        for key, tensor in numbers.items():
            if self._recipe.reset_state:
                joining[key] = tensor.new_zeros(len(change.grow))
            elif shadow is None:
                joining[key] = weight.at(tensor, change.grow)
            else:
                joining[key] = shadow.joining(weight, key, tensor, change.grow)
        if shadow is not None and goes_on is None:
            shadow.forget(weight)
        state.update(weight.apply(change, numbers, joining))
        if goes_on is not None:
            goes_on.follow(weight, change, leaving)

    def _reads_dense(self, weight: Weight) -> bool:
        """Return whether gradient and momentum of absent weights are read off the weight's own, dense ones."""
        return weight.holds_absent and self._recipe.growth.steps is None

    def _gathers(self) -> bool:
        """Return whether the steps that come gather what growth reads of absent weights."""
        if not self._recipe.needs:
            return False
        # The gradient counts at the update alone.
        steps = self._recipe.growth.steps if "momentum" in self._recipe.needs else 1
        return steps is None or any(self._recipe.update_at(self._step + ahead) for ahead in range(1, steps + 1))

    def _goes_on(self) -> bool:
        """Return whether what is gathered now serves the next update too; candidates are drawn anew for each."""
        return self._shadow is not None and self._shadow.sees_all and self._gathers()

    def _look_ahead(self) -> None:
        """Begin or end to gather, as the steps that come want."""
        if not self._gathers():
            self._close()
            return
        weights = [weight for weight in self._weights if not self._reads_dense(weight)]
        if self._shadow is None and weights:
            growth, generator = self._recipe.growth, self._generator
            positions = {w.name: wanted(growth, w.index(), Units(w.shape), generator) for w in weights}
            with_momentum = "momentum" in self._recipe.needs
            self._shadow = Shadow(self._optimizer, weights, positions, with_momentum=with_momentum)

    def _close(self) -> None:
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None


def _gradient(weight: Weight) -> Tensor:
    grad = weight.weight.grad
    return torch.zeros_like(weight.weight) if grad is None else grad.detach()


def _absent_numbers(weight: Weight, numbers: Tensor, positions: Tensor | None) -> Tensor:
    """Return numbers in the parameter's shape at absent positions; for all of them, at every position of the weight."""
    if positions is not None:
        return weight.at(numbers, positions)
    return numbers.reshape(-1)


def _copy(positions: Tensor | None, weight: Weight) -> Tensor | None:
    return None if positions is None else positions.to(weight.weight.device, copy=True)
