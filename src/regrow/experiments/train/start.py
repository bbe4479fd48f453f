"""How a run starts sparse, and masks for the methods that choose them by a batch of the training set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments.data import Batches, Data
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.options import method_options
from regrow.saliency import SALIENCIES

__all__ = ["at_start", "masks_at_start"]

_SAMPLES_OF_A_CLASS = 10


def at_start(
    config: TrainConfig, method: regrow.Recipe | regrow.StepRule, masks: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """Return density, distribution and backend, as `regrow.sparsify` takes them.

    Args:
        config: the settings.
        method: what they name. A rule works on masked storage, and may begin with every weight.
        masks: those that were chosen, which say the density.
    """
    if isinstance(method, regrow.Recipe):
        starts_at = config.density if method.density is None else method.density(0)
        density = starts_at if masks is None else None
        return {"density": density, "distribution": method.distribution, "backend": config.backend}
    return {
        "density": 1.0 if method.dense else config.density,
        "distribution": config.distribution or "uniform",
        "backend": "masked" if config.backend == "auto" else config.backend,
    }


def masks_at_start(config: TrainConfig, model: nn.Module, data: Data) -> dict[str, Tensor] | None:
    """Return the masks that the method of a run chooses before its training; None where it draws them.

    SNIP takes the first batch of the run's own order; GraSP the first `samples_of_a_class` (10) of each class in that
    order, class after class in turn, so that both halves have all. The data set is then where it was.

    Args:
        config: the settings.
        model: the network, dense, left as it was.
        data: the data set.

    Raises:
        UserError: if the settings do not fit the method.
        ValueError: as the method raises it.
    """
    choose = SALIENCIES.get(config.method)
    if choose is None:
        return None
    if config.distribution is not None:
        raise UserError(f"{config.method} decides itself how weights are spread over layers: leave distribution out")
    if config.block_shape != (1, 1):
        raise UserError(f"{config.method} chooses single weights: leave block out")
    given = ("model", "density", "inputs", "targets", "input_shape", "loss", "include", "keep_dense")
    more = {"samples_of_a_class": _SAMPLES_OF_A_CLASS} if config.method == "grasp" else {}
    options = {**more, **method_options(config, choose, given, more)}
    before = data.train.state_dict()
    try:
        arguments: tuple[object, ...]
        if config.method == "synflow":
            arguments = (data.image_shape,)
        elif config.method == "grasp":
            arguments = _of_each_class(data.train, data.classes, options.pop("samples_of_a_class"))
        else:
            arguments = next(_first_epoch(data.train))
        return choose(model, config.density, *arguments, keep_dense=config.keep_dense, **options)
    except TypeError as error:
        if not config.method_options:
            raise
        raise UserError(f"method_options {config.method_options} do not fit {config.method}: {error}") from error
    finally:
        data.train.load_state_dict(before)


def _first_epoch(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    batches.load_state_dict({"epoch": 0, "position": 0})
    return batches.epoch()


def _of_each_class(batches: Batches, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Return so many samples of each class, class after class in turn, as the first epoch brings them."""
    images: list[list[Tensor]] = [[] for _ in range(classes)]
    for some, labels in _first_epoch(batches):
        for image, label in zip(some, labels.tolist(), strict=True):
            if len(images[label]) < count:
                images[label].append(image)
        if all(len(each) == count for each in images):
            break
    found = [(number, label) for number in range(count) for label in range(classes) if number < len(images[label])]
    labels = torch.tensor([label for _, label in found], device=some.device)
    return torch.stack([images[label][number] for number, label in found]), labels
