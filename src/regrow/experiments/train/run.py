"""A training run: the model, its optimizer and topology, the data, and where it stands. It can be saved whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from glob import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments import data, models, processes
from regrow.experiments.errors import DivergedError, UserError
from regrow.experiments.train.changes import ChangeCounts
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.evaluate import add_batch, evaluate, precision
from regrow.experiments.train.generators import generator_states, seed_generators, set_generators
from regrow.experiments.train.learning_rate import learning_rate
from regrow.experiments.train.loading import Waited, load_data
from regrow.experiments.train.methods import DENSE, make_method
from regrow.experiments.train.network import build_network
from regrow.experiments.train.optimizer import make_optimizer
from regrow.experiments.train.passes import Passes
from regrow.experiments.train.start import at_start, masks_at_start
from regrow.experiments.train.work import Work, layer_costs
from regrow.saliency import SALIENCIES
from regrow.storage import sparse_weights

__all__ = ["Metrics", "Run", "pick_device"]

Metrics = dict[str, Any]


class Run:
    """A training run from its settings.

    Args:
        config: the settings.
        data_root: folder with the data sets; None looks in the usual places.

    Raises:
        UserError: if a setting does not fit the model, the data or this machine.

    Attributes:
        model: the network.
        data: the batches of training, validation and test.
        topology: what keeps the network sparse; None for the dense method.
        step: optimizer steps taken.
        epoch: epochs finished.
        rows: metrics of every finished epoch.
        seconds: wall time spent in training steps, and in waiting for their batches.
        waited: counts the part of it that was waiting.
        work: counts multiply-adds and FLOPs.
        small: the width of the network and what it has; None unless the method is small-dense.
        warnings: what a user should know and was not told.
    """

    def __init__(self, config: TrainConfig, data_root: Path | None = None) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self._share = data.Share(processes.rank(), processes.size())
        self._data_root = data_root
        self.data = load_data(config, data_root, self.device, self._share)
        seed_generators(config.seed)
        self.model, self.small = build_network(config, self.data.image_shape, self.data.classes)
        self.model.to(self.device)
        # channels last: the faster layout of convolutions and pooling on CPUs and of convolutions on CUDA
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
        self.steps_per_epoch = len(self.data.train)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.epoch = 0
        self.rows: list[Metrics] = []
        self.seconds = 0.0
        self.waited = Waited()
        self.topology: regrow.TopologyUpdater | regrow.StepUpdater | None = None
        self._changes = ChangeCounts()
        costs = layer_costs(self.model, self._one_sample())
        self._optimizer = self._make_sparse_and_optimizer()
        self._explored = regrow.Explored(self.model)
        self.warnings = self._changes.find_thin(sparse_weights(self.model))
        whole = None if self.small is None else self._whole_costs()
        self.work = Work(costs, sparse_weights(self._as_sparse()), sparse_weights(self.model), whole)
        self._passes = Passes(self.model, config, self._share)
        # loss times samples, correct, samples: kept on the device, so that no step waits for it
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        if self._share.size > 1:  # the model is made; from here on each process drops out its own units
            seed_generators((config.seed + self._share.rank) % 2**64)

    @property
    def recipe(self) -> regrow.Recipe | None:
        """The recipe that is carried out; None where there is none."""
        return self.topology.recipe if isinstance(self.topology, regrow.TopologyUpdater) else None

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.epoch >= self.config.epochs

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one optimizer step on a batch."""
        if not self.model.training:
            self.model.train()
        rate = learning_rate(self.config, self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss, logits, labels = self._passes(images, labels, self.data.train)
        whole: Any = self._passes.to_differentiate(loss, self.data.train)
        whole.backward()
        add_batch(self._sums, loss, logits, labels)
        self.work.add(self.data.train.whole, self.topology.looks_at() if self.topology else {})
        if self.config.clip_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_gradient_norm)
        try:
            self._optimizer.step()
        except ValueError as error:  # from the update of the topology, whose scores may have met a NaN
            self.train_metrics()
            if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
                raise self._diverged("the weights are") from error
            raise UserError(str(error)) from error
        self.step += 1

    def train_metrics(self, *, of_all: bool = True) -> tuple[float, float]:
        """Return loss and accuracy of the epoch so far; waits for the device.

        Args:
            of_all: over all processes, each of which must call it then; else over the own samples.

        Raises:
            DivergedError: if the loss is not finite.
        """
        loss, correct, samples = (processes.add_up(self._sums) if of_all else self._sums).tolist()
        if not math.isfinite(loss):
            raise self._diverged("the loss is")
        return loss / max(samples, 1), correct / max(samples, 1)

    def finish_epoch(self) -> Metrics:
        """Evaluate on the validation set, write down the epoch's metrics, and return them."""
        train_loss, train_accuracy = self.train_metrics()
        valid_loss, valid_accuracy = self.evaluate(self.data.valid)
        row: Metrics = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "valid_loss": valid_loss,
            "valid_accuracy": valid_accuracy,
            "learning_rate": learning_rate(self.config, self.step - 1, self.steps),
            "prune_rate": self.recipe.fraction(self.step) if self.recipe else 0.0,
            "density": self.density,
            "nonzeros_by_layer": self.nonzeros_by_layer,
            **self.work.row(),
            "explored": self.explored,
            "updates": self._changes.updates,
            "changes_by_layer": self._changes.row(),
            "seconds": self.seconds,
            "seconds_waiting": self.waited.seconds,
        }
        self.rows.append(row)
        self.epoch += 1
        self._sums.zero_()
        return row

    def evaluate(self, batches: data.Batches) -> tuple[float | None, float | None]:
        """Return mean loss and accuracy over all batches; None for both if there are none."""
        self.model.eval()
        return evaluate(lambda images, labels: self._passes(images, labels, batches), batches, self.device)

    @property
    def nonzeros_by_layer(self) -> dict[str, int]:
        """Nonzeros of every sparse weight; empty for the dense method."""
        return {name: weight.nonzeros() for name, weight in sparse_weights(self.model).items()}

    @property
    def density(self) -> float:
        """Nonzeros over all weights that may be sparse; 1 for the dense method, of a small one its weights over all."""
        if self.small is not None:
            return self.small.weights / self.small.of
        weights = sparse_weights(self.model).values()
        return (
            sum(weight.nonzeros() for weight in weights) / sum(weight.numel for weight in weights) if weights else 1.0
        )

    @property
    def explored(self) -> float:
        """The part of all weights that may be sparse that were ever active; 1 for the dense method."""
        return self._explored.rate if self.topology else 1.0

    @property
    def stored(self) -> str:
        """How the weights are stored, in one line; empty for the dense method."""
        return regrow.summary(self.model).stored if self.topology else ""

    def summary(self) -> regrow.Summary:
        """Describe the model; a dense one as if every weight that may be sparse were there."""
        return regrow.summary(self._as_sparse(), self._one_sample())

    def _as_sparse(self) -> nn.Module:
        """Return the model, a dense one as if every weight that may be sparse were there."""
        if self.topology is not None:
            return self.model
        dense = deepcopy(self.model)
        return regrow.sparsify(dense, density=1.0, keep_dense=self.config.keep_dense, backend="masked")

    def _whole_costs(self) -> dict[str, tuple[float, int]]:
        """Return the costs of the layers of the network that a small one was made of."""
        config, shape = self.config, self.data.image_shape
        with torch.random.fork_rng(devices=[]):
            whole = models.build(config.model, image_shape=shape, classes=self.data.classes, **config.model_options)
        return layer_costs(whole, torch.zeros(1, *shape))

    def _one_sample(self) -> Tensor:
        """Return a batch of one sample."""
        return torch.zeros(1, *self.data.image_shape, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; every process must call it."""
        return {
            "config": self.config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "topology": self.topology.state_dict() if self.topology else {},
            "changes": self._changes.state_dict(),
            "explored": self._explored.state_dict(),
            "work": self.work.state_dict(),
            "data": self.data.train.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "rows": self.rows,
            "seconds": self.seconds,
            "seconds_waiting": self.waited.seconds,
            "own": processes.from_all({"sums": self._sums.cpu(), "generators": generator_states()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a run with the same settings.

        Raises:
            UserError: if it is the state of another model.
        """
        try:
            if self.topology and not state["topology"]:
                raise ValueError("it is that of a dense model")
            self._store_as(state["model"])
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self.topology:
                self.topology.load_state_dict(state["topology"])
                self.work.look(sparse_weights(self.model))
            self._changes.load_state_dict(state["changes"])
            self._explored.load_state_dict(state["explored"])
            self.work.load_state_dict(state["work"])
            self.data.train.load_state_dict(state["data"])
            self.step, self.epoch, self.rows = state["step"], state["epoch"], state["rows"]
            self.seconds, self.waited.seconds = state["seconds"], state["seconds_waiting"]
            self._load_own(state["own"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = shorten(str(error), 300)
            raise UserError(f"the checkpoint does not fit this model: {reason}; take another --out") from error

    def _load_own(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take what was the own of this process; in another number of processes what was that of all."""
        if len(states) == self._share.size:
            self._sums.copy_(states[self._share.rank]["sums"])
        else:
            self._sums.copy_(sum(state["sums"] for state in states) if self._share.rank == 0 else self._sums * 0)
        if self._share.rank < len(states):
            set_generators(states[self._share.rank]["generators"])

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what} no longer finite at step {self.step} (epoch {self.epoch + 1}): lower the learning rate "
            f"(--set learning_rate={self.config.learning_rate / 10:g}) or clip (--set clip_gradient_norm=1)"
        )

    def _make_sparse_and_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        try:
            if config.method in DENSE:
                return make_optimizer(self.model, config)
            method = make_method(config, self.steps_per_epoch)
            # What chooses masks by samples takes those of all processes.
            shared = config.method in SALIENCIES and self._share.size > 1
            whole = load_data(config, self._data_root, self.device) if shared else self.data
            masks = masks_at_start(config, self.model, whole)
            with precision(config, self.device):
                regrow.sparsify(
                    self.model,
                    masks=masks,
                    keep_dense=config.keep_dense if masks is None else (),
                    block=config.block_shape,
                    seed=config.seed,
                    **at_start(config, method, masks),
                )
            optimizer = make_optimizer(self.model, config)
            self.topology = self._make_topology(optimizer, method)
        except ValueError as error:
            raise UserError(str(error)) from error
        return optimizer

    def _store_as(self, state: Mapping[str, Any]) -> None:
        """Give every sparse weight the storage that it has in a state of the model: "auto" may have chosen another."""
        if self.topology is None:
            return
        weights = sparse_weights(self.model)
        saved = {}
        for name in weights:
            if f"{name}_mask" in state:
                saved[name] = "masked"
            elif name.removesuffix("weight") + "index" in state:
                saved[name] = "cpu"
        if all(backend == weights[name].storage.backend for name, backend in saved.items()):
            return
        masks = regrow.masks(self.model)
        self.topology.remove()
        self.model = regrow.densify(self.model)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
        backend = {escape(name): each for name, each in saved.items()}
        regrow.sparsify(self.model, masks=masks, block=self.config.block_shape, backend=backend)  # type: ignore[arg-type]
        self._passes = Passes(self.model, self.config, self._share)
        self._optimizer = make_optimizer(self.model, self.config)
        self.topology = self._make_topology(self._optimizer, make_method(self.config, self.steps_per_epoch))

    def _make_topology(
        self, optimizer: torch.optim.Optimizer, method: regrow.Recipe | regrow.StepRule
    ) -> regrow.TopologyUpdater | regrow.StepUpdater:
        seed, count = self.config.seed, self._count_changes
        if isinstance(method, regrow.Recipe):
            return regrow.TopologyUpdater(self.model, optimizer, method, seed=seed, on_update=count)
        return regrow.StepUpdater(self.model, optimizer, method, seed=seed, on_update=count)

    def _count_changes(self, step: int, changes: Mapping[str, regrow.Change]) -> None:
        self._explored.add(step, changes)
        self._changes.add(changes, self.recipe is not None and self.recipe.keep_returning)
        self.work.look(sparse_weights(self.model))
        self.warnings += self._changes.find_thin(sparse_weights(self.model))


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
