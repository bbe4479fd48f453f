"""Batches of a set that is too large for memory: decoded each epoch, by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regrow.experiments.data.augment import centre_box, random_box
from regrow.experiments.data.batches import WHOLE, Normalise, Position, Share, epoch_order
from regrow.experiments.data.randomness import Purpose, numpy_generator
from regrow.experiments.data.samples import Samples, decoded
from regrow.experiments.errors import UserError

__all__ = ["Decoder", "DecodingBatches", "Key"]

Key = tuple[int, int]
"""An epoch and the number of a sample."""


@dataclass(frozen=True)
class Decoder(Dataset[tuple[Tensor, int] | str]):
    """Decodes one sample as the model sees it: (3, size, size) uint8 and its label, or the error as a string.

    A string, because an exception comes out of a worker with its whole traceback as the message.
    """

    samples: Samples
    chosen: Tensor
    size: int
    seed: int | None

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | str:
        epoch, index = key
        sample = int(self.chosen[index])
        try:
            return self._image(sample, epoch, index), int(self.samples.labels[sample])
        except UserError as error:
            return str(error)

    def _image(self, sample: int, epoch: int, index: int) -> Tensor:
        from PIL import Image

        with decoded(self.samples, sample, "RGB") as image:
            width, height = image.size
            box, mirror = centre_box(width, height, self.size), False
            if self.seed is not None:
                generator = numpy_generator(Purpose.AUGMENT, self.seed, epoch, index)
                box, mirror = random_box(width, height, generator), generator.random() < 0.5
            # A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves enough pixels.
            shrink = max(1.0, min(box[2] - box[0], box[3] - box[1]) / self.size)
            image.draft("RGB", (int(width / shrink), int(height / shrink)))
            # Multiplied first: the far edge then stays within the image, to the last bit.
            new = image.size * 2
            scaled = tuple(edge * new[side] / (width, height)[side % 2] for side, edge in enumerate(box))
            cropped = image.resize((self.size,) * 2, Image.Resampling.BILINEAR, box=scaled, reducing_gap=2.0)
            pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)
        return pixels.flip(2) if mirror else pixels


def _collate(parts: Sequence[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    good = []
    for part in parts:
        if isinstance(part, str):
            return part
        good.append(part)
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good])


_STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


@contextmanager
def _hold_stop_signals() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM in this thread and in processes that it starts meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_stop_signals(_: int) -> None:
    """Leave it to the parent to stop a worker: it needs the batches until the step is done and the run saved."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


class DecodingBatches:
    """Batches of encoded images, resized and cropped to one size.

    Args:
        samples: the encoded images.
        chosen: (N,), int64: which of them.
        normalise: applied to each batch, on the device.
        batch_size: images a batch.
        size: height and width.
        device: where the batches go.
        workers: processes that decode; 0 decodes in this one.
        seed: of the order; None means the stored order.
        augment: random crops and mirror images in place of the middle; needs a seed.
        share: which part of each batch is decoded and handed out.
    """

    def __init__(
        self,
        samples: Samples,
        chosen: Tensor,
        *,
        normalise: Normalise,
        batch_size: int,
        size: int,
        device: torch.device | str,
        workers: int = 0,
        seed: int | None = None,
        augment: bool = False,
        share: Share = WHOLE,
    ) -> None:
        self.samples, self.whole, self._share = len(chosen), 0, share
        self._decoder = Decoder(samples, chosen, size, seed if augment else None)
        self._normalise, self._batch_size, self._seed = normalise, batch_size, seed
        self._device, self._workers = device, workers
        self._position = Position(-(-self.samples // batch_size))

    def __len__(self) -> int:
        return self._position.steps

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`.

        Raises:
            UserError: if an image cannot be decoded; names it.
        """
        epoch = self._position.epoch
        keys: list[Key] = [(epoch, index) for index in epoch_order(self.samples, self._seed, epoch).tolist()]
        starts = range(self._position.batch * self._batch_size, self.samples, self._batch_size)
        loader = DataLoader(
            self._decoder,
            batch_sampler=[self._share.of(keys[start : start + self._batch_size]) for start in starts],
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=torch.device(self._device).type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
            worker_init_fn=_ignore_stop_signals,
        )
        with _hold_stop_signals():
            decoded_batches = iter(loader)
        try:
            for number, batch in zip(self._position.remaining(), decoded_batches, strict=True):
                if isinstance(batch, str):
                    raise UserError(batch)
                self.whole = min(self._batch_size, self.samples - number * self._batch_size)
                images, labels = (part.to(self._device, non_blocking=True) for part in batch)
                yield self._normalise(images), labels
        finally:
            # The error would keep the workers until it is forgotten.
            del decoded_batches

    def state_dict(self) -> dict[str, int]:
        """See `Batches.state_dict`."""
        return self._position.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """See `Batches.load_state_dict`."""
        self._position.load_state_dict(state)
