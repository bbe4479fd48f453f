"""A data set as a training loop takes it: batches to train, to validate and to test on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regrow.experiments.data import layouts
from regrow.experiments.data.augment import Border
from regrow.experiments.data.batches import WHOLE, Batches, Normalise, Share, TensorBatches
from regrow.experiments.data.decoding import DecodingBatches
from regrow.experiments.data.randomness import Purpose, torch_generator
from regrow.experiments.data.registry import Dataset, get
from regrow.experiments.data.samples import Samples
from regrow.experiments.data.sources import fetch
from regrow.experiments.errors import UserError

__all__ = ["Data", "Source", "load", "split"]

Source = layouts.Split | Samples
"""Decoded images and labels, or encoded images."""

_BORDERS: Mapping[str, Border | None] = {"none": None, "crop-flip": "zeros", "reflect-crop-flip": "reflect"}
"""Ways to augment the sets in memory, and the border of their crops."""


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: of the data set.
        classes: labels are 0 to classes - 1.
        image_shape: channels, height, width as the model sees them.
        train: shuffled and augmented.
        valid: held out of the training set, in order, as it is.
        test: in order, as it is.
    """

    name: str
    classes: int
    image_shape: tuple[int, int, int]
    train: Batches
    valid: Batches
    test: Batches


def load(
    name: str,
    *,
    root: Path | None = None,
    batch_size: int,
    eval_batch_size: int = 1000,
    valid_samples: int,
    train_samples: int | None = None,
    augment: str = "none",
    image_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    share: Share = WHOLE,
) -> Data:
    """Find (or fetch), verify and open a data set.

    The training and validation sets are a fixed split of the published training set: they do not depend on `seed`.

    Args:
        name: one of `DATASETS`.
        root: folder that holds data sets by name, or this one; None means $REGROW_DATA. Other places follow.
        batch_size: images a batch, in training.
        eval_batch_size: likewise in validation and test.
        valid_samples: how many training images to validate on; 0 means to validate on the test set.
        train_samples: how many to train on at most, for short trials: a fixed random part.
        augment: "none", "crop-flip", "reflect-crop-flip" (sets in memory; borders of zeros, or of the image
            mirrored) or "random-resized-crop" (imagenet, imagenette).
        image_size: height and width, for sets of images of any size; of a text, the characters of a piece.
        seed: of the order and the augmentation.
        device: where the batches are.
        workers: processes that decode, for sets that are not held in memory.
        share: which part of each batch is handed out, where several processes train together.

    Raises:
        UserError: if the set cannot be had or is damaged, or an argument does not fit it.

    >>> data = load("digits", batch_size=100, valid_samples=200)
    >>> images, labels = next(data.train.epoch())
    >>> images.shape, labels.dtype, len(data.train), data.train.state_dict()
    (torch.Size([100, 1, 8, 8]), torch.int64, 13, {'epoch': 0, 'position': 1})
    """
    dataset = get(name)
    size = image_size or dataset.image_size
    if dataset.is_text:
        dataset = replace(dataset, image_size=size)
    _require_fitting(dataset, size, augment)
    _require_whole(batch_size=(batch_size, 1), eval_batch_size=(eval_batch_size, 1), image_size=(size, 1))
    _require_whole(valid_samples=(valid_samples, 0), seed=(seed, 0), workers=(workers, 0))
    folder = fetch(name, root)
    published: tuple[Source, Source] = (layouts.read if dataset.in_memory else layouts.open_samples)(folder, dataset)
    classes = _classes(dataset, folder, *map(_labels, published))
    normalise = Normalise.of(dataset.mean, dataset.std, dataset.top, device)

    def batches(source: Source, chosen: Tensor, training: bool = False) -> Batches:
        count, order_seed = (batch_size, seed) if training else (eval_batch_size, None)
        if isinstance(source, tuple):
            images, labels = (torch.from_numpy(part[chosen.numpy()]).to(device) for part in source)
            border = _BORDERS[augment] if training else None
            return TensorBatches(
                images, labels, normalise=normalise, batch_size=count, seed=order_seed, border=border, share=share
            )
        return DecodingBatches(
            source,
            chosen,
            normalise=normalise,
            batch_size=count,
            size=size,
            device=device,
            workers=workers,
            seed=order_seed,
            augment=training and augment == "random-resized-crop",
            share=share,
        )

    train_source, test_source = published
    train, valid = split(len(_labels(train_source)), valid_samples, train_samples)
    everything = torch.arange(len(_labels(test_source)))
    return Data(
        name,
        classes,
        dataset.shape(size),
        train=batches(train_source, train, training=True),
        valid=batches(train_source, valid) if valid_samples else batches(test_source, everything),
        test=batches(test_source, everything),
    )


def split(samples: int, valid_samples: int, train_samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Which of the published training images to train and to validate on: fixed, disjoint, each in order.

    >>> train, valid = split(10, 3)
    >>> sorted(train.tolist() + valid.tolist()) == list(range(10)), len(valid)
    (True, 3)

    Raises:
        UserError: if nothing is left to train on.
    """
    if valid_samples >= samples:
        raise UserError(f"valid_samples is {valid_samples}, but there are {samples} training samples; take fewer")
    order = torch.randperm(samples, generator=torch_generator(Purpose.SPLIT, 1))
    end = None if train_samples is None else valid_samples + train_samples
    return order[valid_samples:end].sort().values, order[:valid_samples].sort().values


def _labels(source: Source) -> NDArray[np.int64]:
    return source[1] if isinstance(source, tuple) else source.labels


def _classes(dataset: Dataset, folder: Path, train: NDArray[np.int64], test: NDArray[np.int64]) -> int:
    """How many classes there are, every label being one of them."""
    if min(len(train), len(test)) == 0:
        raise UserError(f"{folder} has no {'test' if len(train) else 'training'} images; fetch it again")
    classes = dataset.classes or int(train.max()) + 1
    low, high = min(train.min(), test.min()), max(train.max(), test.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{folder} has labels from {low} to {high}, but {dataset.name} has the classes 0 to {classes - 1}; "
            "use a copy whose evaluation images have labels"
        )
    return classes


def _require_fitting(dataset: Dataset, size: int, augment: str) -> None:
    fitting = tuple(_BORDERS) if dataset.in_memory else ("none", "random-resized-crop")
    fitting = ("none",) if dataset.is_text else fitting
    if augment not in fitting:
        raise UserError(f"augment is {augment!r}, but {dataset.name} takes one of: {', '.join(fitting)}")
    if dataset.in_memory and size != dataset.image_size:
        raise UserError(
            f"image_size is {size}, but {dataset.name} has images of {dataset.image_size}; leave image_size out"
        )


def _require_whole(**values: tuple[int, int]) -> None:
    """Each value with the least that it may be."""
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more")
