"""The most memory that training a preset's network takes: each contender in a process of its own."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from regrow.experiments.bench.common.process_memory import forget_peak, held, peak
from regrow.experiments.bench.common.processes import ProcessError, answer, in_process
from regrow.experiments.bench.steps.training import (
    BFLOAT16,
    SPARSE,
    SPARSE_BFLOAT16,
    Training,
    dense_model,
    dense_training,
    make_batches,
    recipe_of,
    sparse_model,
    sparse_training,
    steps_per_epoch,
    update_interval,
)
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.presets import preset
from regrow.ops.layout import release_memory

__all__ = ["measure", "peaks"]

_STEPS = 3
_LOOKING = 2  # steps that look at absent weights before the update
_SECONDS = 300  # for one contender


def peaks(config: TrainConfig, kinds: Sequence[str], backend: str) -> tuple[dict[str, int], dict[str, str]]:
    """Measure each contender in a fresh process with as many threads as this one.

    Args:
        config: the preset's settings.
        kinds: of `sparse`, `sparse bfloat16`, `dense`, `bfloat16`; the dense ones as they are, not compiled.
        backend: storage of the sparse weights.

    Returns:
        Bytes of each as `measure` counts them, those with an update as `KIND, update`; and of what could not be
        measured, why.
    """
    found: dict[str, int] = {}
    failed: dict[str, str] = {}
    threads = torch.get_num_threads()
    for kind in kinds:
        given = {"config": config.model_dump(mode="json"), "kind": kind, "backend": backend, "threads": threads}
        try:
            plain, update = in_process(__name__, given, seconds=_SECONDS)
        except ProcessError as error:
            failed[kind] = f"its peak memory {error}"
            continue
        found[kind] = plain
        if update is not None:
            found[f"{kind}, update"] = update
    return found, failed


def measure(config: TrainConfig, kind: str, backend: str) -> tuple[int, int | None]:
    """Take some whole steps, and return the most bytes that were held in ordinary ones, and around an update.

    Counted is what the process held in these steps beyond what it held before the model was made, so activations and
    all that is made and freed are in it. What making the model took for a moment is not, where the system lets a
    process forget its peak. None stands for a contender without updates.
    """
    # Code and caches that any training loads.
    small = {"method": config.method, "growth": config.growth, "density": 0.5, "batch_size": 8}
    _train(override(preset("mnist-lenet5"), small), kind, "masked" if backend == "masked" else "cpu")
    gc.collect()
    release_memory()
    before = held()
    plain, update = _train(config, kind, backend)
    return plain - before, None if update is None else update - before


def _train(config: TrainConfig, kind: str, backend: str) -> tuple[int, int | None]:
    training = _training(config, kind, backend)
    gc.collect()
    release_memory()  # of the dense network that a sparse one was copied from
    with suppress(OSError):
        forget_peak()
    for _ in range(_STEPS):
        training.step()
    plain = peak()
    if training.topology is None or update_interval(recipe_of(config), config.epochs * steps_per_epoch(config)) is None:
        return plain, None
    # The window opens at the end of a first step; the step after the update makes new index structures.
    training.updates.at = training.topology.step + 1 + _LOOKING
    for _ in range(_LOOKING + 2):
        training.step()
    return plain, peak()


def _training(config: TrainConfig, kind: str, backend: str) -> Training:
    batches, model = make_batches(config), dense_model(config)
    if kind in (SPARSE, SPARSE_BFLOAT16):
        half = kind == SPARSE_BFLOAT16
        sparse = sparse_model(config, model, batches, backend, bfloat16=half)
        return sparse_training(config, sparse, batches, bfloat16=half)
    return dense_training(config, model, batches, bfloat16=kind == BFLOAT16)


def _answer(config: dict[str, Any], kind: str, backend: str, threads: int) -> tuple[int, int | None]:
    torch.set_num_threads(threads)
    return measure(TrainConfig(**config), kind, backend)


if __name__ == "__main__":
    answer(_answer)
