"""The data of a run, and how quickly it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from regrow.experiments import data
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig

__all__ = ["LoadingRate", "Waited", "load_data", "loading_rate"]

Batch = TypeVar("Batch")


def load_data(
    config: TrainConfig, root: Path | None, device: torch.device, share: data.Share | None = None
) -> data.Data:
    """Return the batches that the settings ask for.

    Args:
        config: the settings.
        root: folder with the data sets; None looks in the usual places.
        device: where the batches go.
        share: the part of each batch that this process takes; None for all.

    Raises:
        UserError: if the data cannot be had, or a setting does not fit it.
    """
    return data.load(
        config.data,
        root=root,
        batch_size=config.batch_size,
        valid_samples=config.valid_samples,
        train_samples=config.train_samples,
        augment=config.augment,
        image_size=config.image_size,
        seed=config.seed,
        device=device,
        workers=config.workers,
        share=share or data.Share(),
    )


class Waited:
    """Hands batches on and adds up how long it waited for them.

    Attributes:
        seconds: wall time from asking for a batch to having it, of all batches so far.

    Example:
        >>> waited = Waited()
        >>> list(waited.through(iter(["first", "second"]))), waited.seconds > 0
        (['first', 'second'], True)
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def through(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield what `batches` yields."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


@dataclass(frozen=True)
class LoadingRate:
    """How quickly a training set is loaded where nothing else is done.

    Attributes:
        images: how many were loaded.
        seconds: that it took, from the second batch on.
    """

    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images in a second."""
        return self.images / self.seconds


def loading_rate(batches: data.Batches, seconds: float) -> LoadingRate:
    """Load batches for some time, an epoch at most, and return how quickly they came.

    The first batch is left out: workers start with it.

    Args:
        batches: the training set.
        seconds: after which no further batch is asked for.

    Raises:
        UserError: if the set is a single batch.
    """
    if len(batches) < 2:
        raise UserError(f"the training set is one batch of {batches.samples} images: take a smaller batch_size")
    epoch = batches.epoch()
    next(epoch)
    started, images, taken = time.perf_counter(), 0, 0.0
    for _, labels in epoch:
        images += len(labels)
        taken = time.perf_counter() - started
        if taken > seconds:
            break
    return LoadingRate(images, taken)
