"""Training steps of a preset's network as a user takes them, dense and sparse."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments import data, models
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import make_recipe
from regrow.experiments.train.optimizer import make_optimizer

__all__ = [
    "BFLOAT16", "DENSE", "MEASURED", "SPARSE", "SPARSE_BFLOAT16", "Batches", "Training", "Updates", "classes",
    "dense_model", "dense_training", "image_shape", "make_batches", "make_step", "recipe_of", "sparse_model",
    "sparse_training", "steps_per_epoch", "update_interval",
]  # fmt: skip

SPARSE, DENSE, BFLOAT16 = "sparse", "dense", "bfloat16"
SPARSE_BFLOAT16 = f"{SPARSE} {BFLOAT16}"
MEASURED = "measured"

_BATCHES = 4  # in memory, taken in turn
_LEARNING_RATE = 0.01  # a step takes as long with any, and noise learned at a high one diverges
_CLASSES = 1000  # of data sets whose files say it


@dataclass
class Updates:
    """A recipe's timing that updates when it is told to.

    Attributes:
        at: the step that carries out an update; None while there is none in sight.
    """

    at: int | None = None

    def __call__(self, step: int) -> bool:
        """Return whether an update is due after a step."""
        return step + 1 == self.at


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
        images: shape (batches, N, C, H, W); each batch in channels-last. Of a text, characters (batches, N, 1, 1, T).
        labels: shape (batches, N), int64; of a text (batches, N, T).
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]


def make_batches(config: TrainConfig) -> Batches:
    """Return batches of the shape that the preset trains on; equal settings give equal ones."""
    generator = torch.Generator().manual_seed(config.seed)
    shape, size = image_shape(config), config.batch_size
    if data.DATASETS[config.data].is_text:  # a character after each
        pieces = [torch.randint(classes(config), (size, *shape), generator=generator) for _ in range(_BATCHES)]
        following = tuple(piece.flatten(1).roll(-1, 1) for piece in pieces)
        return Batches(tuple(piece.float() for piece in pieces), following)
    images = [torch.randn(size, *shape, generator=generator) for _ in range(_BATCHES)]
    labels = [torch.randint(classes(config), (size,), generator=generator) for _ in range(_BATCHES)]
    return Batches(tuple(each.contiguous(memory_format=torch.channels_last) for each in images), tuple(labels))


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """Return channels, height and width of the images that the preset's network sees."""
    dataset = data.DATASETS[config.data]
    return dataset.shape(config.image_size or dataset.image_size)


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
    samples = data.DATASETS[config.data].samples - config.valid_samples
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


def sparse_model(
    config: TrainConfig, dense: nn.Module, batches: Batches, backend: str, *, bfloat16: bool = False
) -> nn.Module:
    """Return a copy of the network made sparse as the preset says, in a storage; "measured" measures which.

    Args:
        config: the preset's settings.
        dense: the network.
        batches: of its inputs.
        backend: the storage.
        bfloat16: whether it is to train under autocast to bfloat16.

    Raises:
        ValueError: if the storage cannot hold it, or there is none of that name.
    """
    with _precision(bfloat16):
        return regrow.sparsify(
            deepcopy(dense),
            config.density,
            block=config.block_shape,
            distribution=recipe_of(config).distribution,
            keep_dense=config.keep_dense,
            backend="auto" if backend == MEASURED else backend,  # type: ignore[arg-type]  # sparsify refuses what it does not know
            example_input=batches.images[0] if backend == MEASURED else None,
            seed=config.seed,
        )


def dense_training(config: TrainConfig, model: nn.Module, batches: Batches, *, bfloat16: bool = False) -> Training:
    """Return the training of a dense network, as it is, in float32 or under autocast to bfloat16."""
    optimizer = _optimizer(config, model)
    return Training(model, optimizer, make_step(model, optimizer, batches, bfloat16=bfloat16))


def sparse_training(config: TrainConfig, model: nn.Module, batches: Batches, *, bfloat16: bool = False) -> Training:
    """Return the training of a sparse network, in float32 or under autocast to bfloat16.

    Its topology is updated when `updates` says so.
    """
    optimizer, updates = _optimizer(config, model), Updates()
    recipe = replace(recipe_of(config), update_at=updates)
    topology = regrow.TopologyUpdater(model, optimizer, recipe, seed=config.seed)
    return Training(model, optimizer, make_step(model, optimizer, batches, bfloat16=bfloat16), topology, updates)


def _precision(bfloat16: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(model, override(config, {"learning_rate": min(config.learning_rate, _LEARNING_RATE)}))


def make_step(
    forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, batches: Batches, *, bfloat16: bool = False
) -> Callable[[], Tensor]:
    """Return what takes one training step after another, the batches in turn.

    Args:
        forward: the network, compiled or not.
        optimizer: of its parameters.
        batches: what it trains on.
        bfloat16: whether under autocast to bfloat16.
    """
    loss_of = nn.CrossEntropyLoss()
    pairs = cycle(zip(batches.images, batches.labels, strict=True))

    def step() -> Tensor:
        images, labels = next(pairs)
        optimizer.zero_grad()
        with _precision(bfloat16):
            logits = forward(images)
        loss: Tensor = loss_of(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step
