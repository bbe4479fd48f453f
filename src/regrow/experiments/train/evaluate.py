"""Loss and accuracy of a network, in training and after it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from regrow.experiments.data import Batches
from regrow.experiments.processes import add_up
from regrow.experiments.train.config import TrainConfig

__all__ = ["add_batch", "evaluate", "precision"]


@torch.no_grad()
def evaluate(
    judge: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], batches: Batches, device: torch.device
) -> tuple[float | None, float | None]:
    """Return mean loss and accuracy over all batches, those of all processes together; None for both if there are none.

    Args:
        judge: from images and labels to the mean loss, the logits, shape (N, classes), and their labels.
        batches: of images and labels.
        device: where they are.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for images, labels in batches.epoch():
        add_batch(sums, *judge(images, labels))
    total, correct, samples = add_up(sums).tolist()
    return (total / samples, correct / samples) if samples else (None, None)


def add_batch(sums: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add loss times samples, correct answers and samples of a batch to `sums`; waits for no device."""
    with torch.no_grad():
        sums[0].add_(loss, alpha=len(labels))
        # of a text: the part of the characters of a piece
        sums[1].add_((logits.argmax(dim=1) == labels).sum(), alpha=len(labels) / labels.numel())
        sums[2].add_(len(labels))


def precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return what a network computes under."""
    autocast = config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()
