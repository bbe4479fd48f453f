"""The passes of a run: over whole batches in one process, over its share of each batch in each of several."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regrow.experiments import data
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.evaluate import precision

__all__ = ["Passes"]


class Passes:
    """What goes through a model, and what of it counts.

    Args:
        model: the model.
        config: the settings of the run.
        share: the part of each batch that this process takes.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, share: data.Share) -> None:
        self._model, self._config, self._share = model, config, share
        self._loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._wrapper: DistributedDataParallel | None = None

    def __call__(self, images: Tensor, labels: Tensor, batches: data.Batches) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss of what this process has of a batch, the logits, and their labels.

        Nothing counts where there are fewer samples than processes, and none is left.

        Args:
            images: of the batch.
            labels: of the batch.
            batches: where it is from.
        """
        with precision(self._config, images.device):
            logits: Tensor = self._called()(images)
        logits, count = logits.float(), self._share.count(batches.whole)
        if count != len(labels):
            logits, labels = logits[:count], labels[:count]
        loss: Tensor = self._loss(logits, labels) if len(labels) else logits.sum()
        return loss, logits, labels

    def to_differentiate(self, loss: Tensor, batches: data.Batches) -> Tensor:
        """Return what has the gradient of the whole batch's mean loss, once gradients are averaged over processes."""
        if self._share.size == 1:
            return loss
        return loss * (self._share.count(batches.whole) * self._share.size / batches.whole)

    def _called(self) -> nn.Module:
        """Return what a batch goes through: the model, or what averages its gradients over processes."""
        if self._share.size == 1:
            return self._model
        if self._wrapper is None:
            # Of more than two numbers the sum depends on their order, which is that of the buckets. Those of a wrapper
            # that looks for unused parameters stay as they are, so that a run that goes on adds as the one before.
            self._wrapper = DistributedDataParallel(self._model, find_unused_parameters=self._share.size > 2)
        return self._wrapper
