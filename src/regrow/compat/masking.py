"""`Masking` with the calls of `sparselearning.core`, its work done by `sparsify` and a `TopologyUpdater`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from glob import escape

import torch
from torch import Tensor, nn

from regrow.compat.decay import Decay
from regrow.compat.recipe import recipe_of
from regrow.convert.densify import densify
from regrow.convert.eligible import eligible
from regrow.convert.sparsify import masks, sparsify
from regrow.storage import Weight, sparse_weights
from regrow.topology.updater import TopologyUpdater

__all__ = ["Masking"]

# How weights are spread at the start, by the names of the authors' code. Its "linear" counts the sides of kernels, as
# Erdős-Rényi-kernel does. "resume" reads the positions off the weights.
_DISTRIBUTIONS = {"constant": "uniform", "random": "uniform", "linear": "erdos-renyi-kernel"}
_RESUME = "resume"


@dataclass
class _Part:
    """A module that was added, and what makes it sparse again where a weight is to be left out.

    Attributes:
        module: the module.
        density: as it was given.
        sparse_init: likewise.
        seed: seed of its positions.
        initial: its weights before it was made sparse, while no step was taken.
        left_out: globs of the weights that stay dense.
    """

    module: nn.Module
    density: float
    sparse_init: str
    seed: int
    initial: dict[str, Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def sparsify(self) -> None:
        slots = eligible(self.module, keep_dense=self.left_out)
        self.initial = self.initial or {slot.name: slot.weight.detach().clone() for slot in slots}
        if self.sparse_init == _RESUME:
            sparsify(
                self.module,
                masks={slot.name: slot.weight.detach() != 0 for slot in slots},
                backend="masked",
                batch_last=False,
            )
            return
        sparsify(
            self.module,
            self.density,
            distribution=_DISTRIBUTIONS[self.sparse_init],
            keep_dense=self.left_out,
            backend="masked",
            batch_last=False,
            seed=self.seed,
        )

    @torch.no_grad()
    def densify(self) -> None:
        densify(self.module)
        for name, weight in self.initial.items():
            self.module.get_parameter(name).copy_(weight)


class Masking:
    """Train the modules that are added sparse, by the calls of the authors' `sparselearning.core.Masking`.

    `step()` takes the optimizer's step, keeps absent weights at zero and lets the prune rate fall;
    `at_end_of_epoch()` updates the topology at once. Weights are in masked storage, so parameters and optimizer stay
    the objects that they are. Warns once that this is a way over: regrow's own three lines have faster storage, more
    methods and checkpoints of the topology.

    Unlike there: the number of weights is exact; sparse are the weights that `regrow.sparsify` takes, so embeddings and
    layer norms are dense; nothing is printed unless it is asked for; `masks` are bool tensors; the state dict of a
    module holds its masks too.

    Args:
        optimizer: the optimizer of the modules' parameters.
        prune_rate_decay: a `CosineDecay`, a `LinearDecay`, or what has their two methods.
        prune_rate: share of a layer's weights that is dropped before the decay's first step.
        prune_mode: "magnitude", "SET" (the smallest positive and the largest negative), "global_magnitude".
        growth_mode: "momentum", "random", "momentum_neuron", "global_momentum_growth".
        redistribution_mode: "momentum", "magnitude", "nonzeros", "none".
        prune_every_k_steps: steps after which the topology is updated without being told; 0 for never.
        verbose: print the numbers of nonzeros after every update.
        fp16: only False: the library that this stood for is gone.
        seed: seed of the first positions and of random growth. PyTorch's own generator is not drawn from.

    Raises:
        ValueError: if there is no such mode, or `fp16` is asked for.
        TypeError: if a mode is a function: write a `regrow.Recipe`.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> from regrow.compat import CosineDecay
        >>> mask = Masking(optimizer, CosineDecay(0.5, T_max=10))
        >>> mask.add_module(model, density=0.25)
        >>> model(torch.randn(4, 8)).sum().backward()
        >>> mask.step()
        >>> mask.at_end_of_epoch()
        >>> sum(int(each.sum()) for each in mask.masks.values())
        48
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        prune_rate_decay: Decay,
        prune_rate: float = 0.5,
        prune_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        prune_every_k_steps: int = 0,
        verbose: bool = False,
        fp16: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        _tell()
        if fp16:
            raise ValueError(
                "fp16 was for an optimizer of apex that is no more: train under torch.autocast instead, with a "
                "GradScaler and a regrow.TopologyUpdater if in float16"
            )
        self.optimizer = optimizer
        self.prune_rate_decay = prune_rate_decay
        self.prune_rate = prune_rate
        self.prune_every_k_steps = prune_every_k_steps
        self.verbose = verbose
        self._seed = seed
        self._parts: list[_Part] = []
        self._topology: TopologyUpdater | None = None
        self._before: dict[str, int] = {}
        self._recipe = recipe_of(prune_mode, growth_mode, redistribution_mode, lambda: self.prune_rate)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that were added."""
        return [part.module for part in self._parts]

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return 0 if self._topology is None else self._topology.step

    @property
    def masks(self) -> dict[str, Tensor]:
        """Where weights exist, by name: new bool tensors. Of several modules the names begin with their numbers."""
        return masks(self._model())

    @property
    def topology(self) -> TopologyUpdater:
        """What does the work; a checkpoint wants its `state_dict()`.

        Raises:
            RuntimeError: if no module was added.
        """
        if self._topology is None:
            raise RuntimeError("nothing is sparse yet: call add_module(module, density) first")
        return self._topology

    def add_module(
        self,
        module: nn.Module,
        density: float,
        sparse_init: str = "constant",
        remove_param_names: Sequence[str] = (),
    ) -> None:
        """Make a module sparse, in place. What is dropped of several modules is one pool.

        Args:
            module: the module.
            density: nonzeros over the weights that are sparse, in (0, 1].
            sparse_init: "constant" (also "random"): every layer at this density; "linear": Erdős-Rényi-kernel;
                "resume": weights that are not zero exist, whatever the density.
            remove_param_names: parts of names of weights that stay dense.

        Raises:
            ValueError: if there is no such `sparse_init`, or as `regrow.sparsify` and `TopologyUpdater` raise it.
            RuntimeError: if training has begun.
        """
        known = (*_DISTRIBUTIONS, _RESUME)
        if sparse_init not in known:
            raise ValueError(f"there is no sparse_init {sparse_init!r}: choose among {', '.join(known)}")
        self._check_beginning("add modules")
        part = _Part(module, density, sparse_init, self._seed + len(self._parts))
        names = (slot.name for slot in eligible(module))
        part.left_out = [escape(name) for name in names if any(each in name for each in remove_param_names)]
        part.sparsify()
        self._parts.append(part)
        self._renew()

    def remove_weight(self, name: str) -> None:
        """Leave a weight dense, as it was before, by its name or that of its module.

        Raises:
            ValueError: if no module that was added has it.
            RuntimeError: if training has begun.
        """
        names = {name, f"{name}.weight"}
        if not any(names & dict(module.named_parameters()).keys() for module in self.modules):
            raise ValueError(f"there is no parameter {name!r} in what was added")
        self._remove(lambda weight: weight.name in names)

    def remove_weight_partial_name(self, partial_name: str, verbose: bool = False) -> None:
        """Leave the weights dense whose names hold `partial_name`; there may be none.

        Raises:
            RuntimeError: if training has begun.
        """
        self._remove(lambda weight: partial_name in weight.name)

    def remove_type(self, nn_type: type[nn.Module], verbose: bool = False) -> None:
        """Leave the weights of all modules of a type dense; there may be none.

        Raises:
            RuntimeError: if training has begun.
        """
        self._remove(lambda weight: isinstance(weight.module, nn_type))

    def step(self) -> None:
        """Take the optimizer's step, keep absent weights at zero, and let the prune rate fall.

        Raises:
            RuntimeError: if no module was added.
        """
        topology = self.topology
        for part in self._parts:
            part.initial = {}
        self.optimizer.step()
        self.prune_rate_decay.step()
        self.prune_rate = self.prune_rate_decay.get_dr(self.prune_rate)
        if self.prune_every_k_steps and topology.step % self.prune_every_k_steps == 0:
            self.at_end_of_epoch()

    def at_end_of_epoch(self) -> None:
        """Update the topology, and print the numbers of nonzeros if `verbose`."""
        self.truncate_weights()
        if self.verbose:
            self.print_nonzero_counts()

    def truncate_weights(self) -> None:
        """Update the topology now: drop, redistribute, grow.

        Raises:
            RuntimeError: if no module was added.
            ValueError: as `regrow.update`, for one if momentum is read before the first step.
        """
        before = {weight.name: weight.nonzeros() for weight in self._weights()}
        self.topology.update()
        self._before = before

    def apply_mask(self) -> None:
        """Set absent weights to zero; `step()` does so by itself.

        Raises:
            RuntimeError: if no module was added.
        """
        self.topology.enforce()

    def print_nonzero_counts(self) -> None:
        """Print how many weights each layer has, and had before the last update, and the prune rate."""
        for weight in self._weights():
            before = f"{self._before[weight.name]} -> " if weight.name in self._before else ""
            density = weight.nonzeros() / weight.numel
            print(f"{weight.name}: {before}{weight.nonzeros()} nonzeros, density {density:.3f}")  # noqa: T201
        print(f"prune rate {self.prune_rate:.4g}")  # noqa: T201

    def _model(self) -> nn.Module:
        """Return the module that was added, or one that holds all."""
        return self.modules[0] if len(self._parts) == 1 else nn.ModuleList(self.modules)

    def _weights(self) -> Iterable[Weight]:
        return sparse_weights(self._model()).values()

    def _check_beginning(self, what: str) -> None:
        if self.steps:
            raise RuntimeError(f"training has begun: {what} before the first step")

    def _remove(self, chosen: Callable[[Weight], bool]) -> None:
        """Draw the modules anew without some weights, as `keep_dense` of `regrow.sparsify` does."""
        self._check_beginning("remove weights")
        for part in self._parts:
            names = [weight.name for weight in sparse_weights(part.module).values() if chosen(weight)]
            if names:
                self._release()
                part.left_out += map(escape, names)
                part.densify()
                part.sparsify()
        if self._topology is None and self._parts:
            self._renew()

    def _release(self) -> None:
        if self._topology is not None:
            self._topology.remove()
        self._topology = None

    def _renew(self) -> None:
        self._release()
        self._topology = TopologyUpdater(self._model(), self.optimizer, self._recipe, seed=self._seed)


@cache
def _tell() -> None:
    warnings.warn(
        "regrow.compat is a way over from sparselearning, with masks on dense weights: regrow.sparsify and "
        "regrow.TopologyUpdater are faster and can do more; docs/moving-over.md shows both side by side",
        stacklevel=3,
    )
