"""Training steps of a preset's network as a user takes them, dense and sparse."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import cycle

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments import data, models
from regrow.experiments.bench.layers.measure import FEWEST_ROUNDS
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import make_recipe
from regrow.experiments.train.run import make_optimizer
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage import sparse_weights

SAMPLES = {"digits": 1_437, "mnist": 60_000, "fashion-mnist": 60_000, "cifar10": 50_000, "imagenet": 1_281_167}
"""Training samples of each data set, validation included."""

SPARSE, DENSE, BFLOAT16 = "sparse", "dense", "bfloat16"

_BATCHES = 4  # in memory, taken in turn
_LEARNING_RATE = 0.01  # a step takes as long with any, and noise learned at a high one diverges
_CLASSES = 1000  # of data sets whose files say it


@dataclass
class Updates:
    """A recipe's timing that updates when it is told to.

    Attributes:
        at: the step after which an update is due; None while there is none in sight.
    """

    at: int | None = None

    def __call__(self, step: int) -> bool:
        """Return whether an update is due after a step."""
        return step == self.at


@dataclass
class Training:
    """A network in training.

    Attributes:
        model: the network.
        optimizer: of its parameters.
        step: takes one step: gradients to None, forward, cross-entropy, backward, the optimizer's step with the
            topology updater on it; returns the loss.
        topology: the updater; None for a dense network.
        updates: says when it updates.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], Tensor]
    topology: regrow.TopologyUpdater | None = None
    updates: Updates = field(default_factory=Updates)


@dataclass(frozen=True)
class Batches:
    """Random images and labels in memory.

    Attributes:
        images: shape (batches, N, C, H, W); each batch in channels-last.
        labels: shape (batches, N), int64.
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]


def make_batches(config: TrainConfig) -> Batches:
    """Return batches of the shape that the preset trains on; equal settings give equal ones."""
    generator = torch.Generator().manual_seed(config.seed)
    shape, size = image_shape(config), config.batch_size
    images = [torch.randn(size, *shape, generator=generator) for _ in range(_BATCHES)]
    labels = [torch.randint(classes(config), (size,), generator=generator) for _ in range(_BATCHES)]
    return Batches(tuple(each.contiguous(memory_format=torch.channels_last) for each in images), tuple(labels))


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """Return channels, height and width of the images that the preset's network sees."""
    dataset = data.DATASETS[config.data]
    size = config.image_size or dataset.image_size
    return dataset.channels, size, size


def classes(config: TrainConfig) -> int:
    """Return the number of classes."""
    return data.DATASETS[config.data].classes or _CLASSES


def steps_per_epoch(config: TrainConfig) -> int:
    """Return the optimizer steps of an epoch of the preset.

    Example:
        >>> from regrow.experiments.train.presets import preset
        >>> steps_per_epoch(preset("cifar10-vgg16-d"))
        352
    """
    samples = SAMPLES[config.data] - config.valid_samples
    return -(-min(samples, config.train_samples or samples) // config.batch_size)


def update_interval(recipe: regrow.Recipe, steps: int) -> float | None:
    """Return the steps between two updates, on average over a training of `steps`; None if there are none."""
    count = sum(recipe.update_at(step) for step in range(1, steps + 1))
    return steps / count if count else None


def recipe_of(config: TrainConfig) -> regrow.Recipe:
    """Return the recipe of the preset's own length of training."""
    return make_recipe(config, steps_per_epoch(config))


def dense_model(config: TrainConfig) -> nn.Module:
    """Return the preset's network in channels-last, with weights drawn from the preset's seed."""
    torch.manual_seed(config.seed)
    model = models.build(config.model, image_shape=image_shape(config), classes=classes(config), **config.model_options)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # not in its stubs


def sparse_model(config: TrainConfig, dense: nn.Module, batches: Batches, backend: str) -> nn.Module:
    """Return a copy of the network made sparse as the preset says, in a storage.

    Raises:
        ValueError: if the storage cannot hold it, or there is none of that name.
    """
    return regrow.sparsify(
        deepcopy(dense),
        config.density,
        distribution=config.distribution,
        keep_dense=config.keep_dense,
        backend=backend,  # type: ignore[arg-type]  # sparsify refuses what it does not know
        example_input=batches.images[0] if backend == "auto" else None,
        seed=config.seed,
    )


def dense_training(config: TrainConfig, model: nn.Module, batches: Batches, *, bfloat16: bool = False) -> Training:
    """Return the training of a dense network, as it is, in float32 or under autocast to bfloat16."""
    optimizer = _optimizer(config, model)
    return Training(model, optimizer, _step(model, optimizer, batches, bfloat16=bfloat16))


def sparse_training(config: TrainConfig, model: nn.Module, batches: Batches) -> Training:
    """Return the training of a sparse network; its topology is updated when `updates` says so."""
    optimizer, updates = _optimizer(config, model), Updates()
    recipe = replace(recipe_of(config), update_at=updates)
    topology = regrow.TopologyUpdater(model, optimizer, recipe, seed=config.seed)
    return Training(model, optimizer, _step(model, optimizer, batches), topology, updates)


def compile_training(
    training: Training, config: TrainConfig, batches: Batches, seconds: float, *, bfloat16: bool = False
) -> Training:
    """Return a compiled copy of a dense training, which has taken its first steps.

    Args:
        training: what to copy.
        config: its settings.
        batches: what it trains on.
        seconds: how long compilation may take.
        bfloat16: whether under autocast to bfloat16.

    Raises:
        CompileError: if it does not compile in that time.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CompileError("compilation can be bounded in the main thread only")
    copy = dense_training(config, deepcopy(training.model), batches)
    try:
        with _alarm(seconds):
            compiled = torch.compile(copy.model)
            copy = replace(copy, step=_step(compiled, copy.optimizer, batches, bfloat16=bfloat16))
            copy.step()
            copy.step()
    except Exception as error:  # whatever the compiler or the code that it makes raises
        torch._dynamo.reset()
        if _Alarm.rang_in(error):
            raise CompileError(f"torch.compile was not done after {seconds:g} s") from None
        reason = " ".join(str(error).split())[:160]
        raise CompileError(f"torch.compile fails: {type(error).__name__}: {reason}") from error
    return copy


class CompileError(Exception):
    """A network does not compile here; the message says why."""


class _Alarm(Exception):  # noqa: N818 - no error, but the end of what was allowed
    @staticmethod
    def rang_in(error: BaseException | None) -> bool:
        while error is not None:
            if isinstance(error, _Alarm):
                return True
            error = error.__cause__ or error.__context__
        return False


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(model, override(config, {"learning_rate": min(config.learning_rate, _LEARNING_RATE)}))


def _step(
    forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, batches: Batches, *, bfloat16: bool = False
) -> Callable[[], Tensor]:
    loss_of = nn.CrossEntropyLoss()
    pairs = cycle(zip(batches.images, batches.labels, strict=True))

    def step() -> Tensor:
        images, labels = next(pairs)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            logits = forward(images)
        loss: Tensor = loss_of(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


@dataclass(frozen=True)
class State:
    """What a training holds between steps, in bytes; activations are not in it.

    Attributes:
        weights: parameters and buffers, as running statistics.
        index: positions and index structures, or masks.
        gradients: of the parameters.
        optimizer: its state.
    """

    weights: int
    index: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.index + self.gradients + self.optimizer


def state_of(training: Training) -> State:
    """Count what a training holds after a step."""
    parameters = list(training.model.parameters())
    sparse = sparse_weights(training.model).values()
    layers = [module for module in training.model.modules() if isinstance(module, SparseLayer)]
    # A sparse layer's buffer of positions is part of its index structures.
    positions = sum(layer.index.nbytes for layer in layers)
    buffers = sum(buffer.nbytes for buffer in training.model.buffers())
    index = sum(weight.bytes - weight.weight.nbytes for weight in sparse)
    masks = index - sum(layer.pattern.nbytes for layer in layers)
    kept = [value for state in training.optimizer.state.values() for value in state.values()]
    return State(
        weights=sum(parameter.nbytes for parameter in parameters) + buffers - positions - masks,
        index=index,
        gradients=sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None),
        optimizer=sum(value.nbytes for value in kept if isinstance(value, Tensor)),
    )


def seconds_of(run: Callable[[], object]) -> float:
    """Run something and return the wall time that it took."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def take_turns(steps: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Take a step of each in turn, round after round, in an order that turns; return milliseconds.

    Args:
        steps: for each name what takes a step; each has taken one before the first round.
        rounds: how many rounds at most.
        seconds: no new round begins after so many, once there were three.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for name in names:
        steps[name]()
    start = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds_of(steps[name]) * 1e3)
    return times
