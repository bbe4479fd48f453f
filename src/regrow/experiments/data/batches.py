"""Batches: what a training loop takes, and the set that is held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from regrow.experiments.data.augment import Border, crop_flip
from regrow.experiments.data.randomness import Purpose, torch_generator
from regrow.experiments.errors import UserError

__all__ = ["WHOLE", "Batches", "Normalise", "Position", "Share", "TensorBatches", "epoch_order"]

Samples = TypeVar("Samples", Tensor, list[tuple[int, int]])


class Share(NamedTuple):
    """The part of each batch that one of several processes has: every n-th sample.

    Example:
        >>> Share(1, 3).of(torch.arange(8)).tolist(), Share(1, 3).count(8)
        ([1, 4, 7], 3)
    """

    rank: int = 0
    size: int = 1

    def of(self, samples: Samples) -> Samples:
        """Return the own samples of a batch; the first if there are fewer samples than processes, and none is left."""
        return samples[self.rank :: self.size] if self.rank < len(samples) else samples[:1]

    def count(self, samples: int) -> int:
        """Return how many samples of a batch are the own."""
        return len(range(self.rank, samples, self.size))


WHOLE = Share()
"""The share of a process that is alone."""


class Batches(Protocol):
    """Batches of one split, in an order that depends on the seed and the epoch only.

    Attributes:
        samples: how many images an epoch has, over all shares.
        whole: how many images the batch that was handed out last has, over all shares.
    """

    samples: int
    whole: int

    def __len__(self) -> int:
        """How many batches an epoch has; the last may be smaller."""
        ...

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the current epoch: images (N, C, H, W) float32, labels (N,) int64.

        Once it is used up, the position is the start of the next epoch.
        """
        ...

    def state_dict(self) -> dict[str, int]:
        """`{"epoch": ..., "position": ...}`; the position counts the batches handed out."""
        ...

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was: the same batches follow, bit for bit.

        Raises:
            UserError: if there is no such position.
        """
        ...


@dataclass
class Position:
    """Where in which epoch; the part that all kinds of batches share.

    Raises:
        UserError: on `load_state_dict`, if the state lies outside an epoch of `steps` batches.
    """

    steps: int
    epoch: int = 0
    batch: int = 0

    def remaining(self) -> Iterator[int]:
        """The numbers of the batches that are left, each counted as handed out; then on to the next epoch."""
        while self.batch < self.steps:
            self.batch += 1
            yield self.batch - 1
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """See `Batches.state_dict`."""
        return {"epoch": self.epoch, "position": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """See `Batches.load_state_dict`."""
        epoch, batch = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= batch <= self.steps:
            raise UserError(
                f"the checkpoint is at batch {batch} of epoch {epoch}, but an epoch has {self.steps} batches here; "
                "resume with the data set and the batch size that it was made with"
            )
        self.epoch, self.batch = epoch, batch


@dataclass(frozen=True)
class Normalise:
    """`(pixels - mean) / std`, all in units of a stored pixel; one value a channel."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...], top: int, device: torch.device | str) -> Normalise:
        """From the mean and deviation of pixels that were divided by `top`."""
        values = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, -1, 1, 1) * top
        return cls(values[0].float().to(device), (1 / values[1]).float().to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8, as float32."""
        return images.to(torch.float32).sub_(self.mean).mul_(self.scale)


class TensorBatches:
    """Batches of a set that lies in memory, on the device that wants it, as bytes.

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,), int64, on the same device.
        normalise: applied to each batch.
        batch_size: images a batch.
        seed: of order and augmentation; None means the stored order.
        border: of the crops of `crop_flip`, by which images are augmented; None means as they are.
        share: which part of each batch is handed out.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        normalise: Normalise,
        batch_size: int,
        seed: int | None = None,
        border: Border | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.samples, self.whole, self._share = len(images), 0, share
        self._images, self._labels = images, labels
        self._normalise, self._batch_size, self._seed, self._border = normalise, batch_size, seed, border
        self._position = Position(-(-self.samples // batch_size))

    def __len__(self) -> int:
        return self._position.steps

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`."""
        epoch = self._position.epoch
        order = epoch_order(self.samples, self._seed, epoch).to(self._images.device)
        for number in self._position.remaining():
            chosen = order[number * self._batch_size : (number + 1) * self._batch_size]
            self.whole, own = len(chosen), self._share.of(chosen)
            if self._border is None or self._seed is None:
                images = self._normalise(self._images.index_select(0, own))
            else:  # the numbers that are drawn are those of the whole batch
                generator = torch_generator(Purpose.AUGMENT, self._seed, epoch, number)
                images = self._normalise(self._images.index_select(0, chosen))
                images = self._share.of(crop_flip(images, generator, border=self._border))
            yield images, self._labels.index_select(0, own)

    def state_dict(self) -> dict[str, int]:
        """See `Batches.state_dict`."""
        return self._position.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """See `Batches.load_state_dict`."""
        self._position.load_state_dict(state)


def epoch_order(samples: int, seed: int | None, epoch: int) -> Tensor:
    """The order (N,), int64, in which an epoch goes through the samples; None for the stored order.

    >>> epoch_order(3, None, 0).tolist()
    [0, 1, 2]
    """
    if seed is None:
        return torch.arange(samples)
    return torch.randperm(samples, generator=torch_generator(Purpose.ORDER, seed, epoch))
