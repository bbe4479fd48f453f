"""Training steps in several processes of gloo: the bytes that each sends for gradients, and the time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import regrow
from regrow.experiments import models
from regrow.experiments.bench.common.spreads import Spread, ratios, spread
from regrow.experiments.bench.common.tables import Table, mib
from regrow.experiments.bench.steps.training import classes, image_shape, make_batches
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.optimizer import make_optimizer

__all__ = ["KINDS", "Figures", "bench_processes", "measure", "table"]

KINDS = ("dense", "masked", "masked, active sent", "sparse")
"""Dense training; masked storage, with all gradients or those of weights that exist sent; sparse storage."""

_WINDOW = 2
_WARM_UP = 3  # steps: in the second, buckets are put in the order of the backward pass


@dataclass(frozen=True)
class Figures:
    """What one kind of training takes.

    Attributes:
        sent: bytes of gradients that a process gives to be averaged in an ordinary step.
        sent_in_window: the same in a step in which growth looks at absent weights.
        milliseconds: of ordinary steps.
        speed: the dense step's time over that of this kind, round by round.
    """

    sent: int
    sent_in_window: int
    milliseconds: Spread
    speed: Spread


@dataclass
class _Training:
    """One kind of training under way.

    Attributes:
        step: takes a step.
        looks: says whether the next step is one of a window.
        taken: whether it was, bytes that were sent, and seconds, for each step that counts.
    """

    step: Callable[[], None]
    looks: Callable[[], bool]
    taken: list[tuple[bool, int, float]] = field(default_factory=list)

    def sent(self, *, window: bool) -> int:
        """Return the bytes of the last step of a kind."""
        return [sent for each, sent, _ in self.taken if each is window][-1]


def bench_processes(
    configs: Sequence[TrainConfig], density: float, size: int, steps: int, threads: int
) -> dict[str, dict[str, Figures]]:
    """Measure every kind for some presets; return the figures of the first process by preset and kind.

    Args:
        configs: presets; the batch of each is shared among the processes.
        density: of the sparse kinds.
        size: how many processes.
        steps: ordinary steps of each kind, taken in turn.
        threads: of each process.

    Raises:
        UserError: if one process is asked for.
    """
    if size < 2:
        raise UserError("one process sends nothing: give --processes 2 or more")
    found = {}
    for config in configs:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(size, get_context("spawn")) as workers,
        ):
            given = (size, str(Path(folder) / "store"), config, density, steps, threads)
            answers = [workers.submit(_process, rank, *given) for rank in range(size)]
            found[config.preset], *_ = [answer.result() for answer in answers]
    return found


def measure(rank: int, size: int, config: TrainConfig, density: float, steps: int) -> dict[str, Figures]:
    """Take steps of every kind in turn, in one process of PyTorch's group; return its figures by kind."""
    # The last steps are the window: that of the update is its end.
    every = _WARM_UP + steps + _WINDOW - 1
    trainings = {kind: _training(kind, config, density, rank, size, every) for kind in KINDS}
    for step in range(_WARM_UP + steps + _WINDOW):
        for training in trainings.values():
            _take_step(training, counts=step >= _WARM_UP)
    dense, *_ = trainings.values()
    return {kind: _figures(each, dense) for kind, each in trainings.items()}


def table(found: dict[str, dict[str, Figures]], density: float, size: int, *, times: bool = True) -> Table:
    """Return the figures as a table; without times where something else ran beside."""
    columns: tuple[str, ...] = ("network, kind", "MiB a step", "of dense", "MiB in a window")
    if times:
        columns = (*columns, "ms a step", "times as fast as dense")
    rows = []
    for preset, kinds in found.items():
        for kind, each in kinds.items():
            part = f"{each.sent / kinds['dense'].sent:.1%}"
            row = (f"{preset}, {kind}", mib(each.sent, 2), part, mib(each.sent_in_window, 2))
            rows.append((*row, each.milliseconds.text(), each.speed.text()) if times else row)
    return Table(f"Gradients that each of {size} processes sends, density {density:g}", columns, tuple(rows))


def _process(
    rank: int, size: int, store: str, config: TrainConfig, density: float, steps: int, threads: int
) -> dict[str, Figures]:
    torch.set_num_threads(threads)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        return measure(rank, size, config, density, steps)
    finally:
        distributed.destroy_process_group()


def _training(kind: str, config: TrainConfig, density: float, rank: int, size: int, every: int) -> _Training:
    torch.manual_seed(config.seed)
    model = models.build(config.model, image_shape=image_shape(config), classes=classes(config), **config.model_options)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
    if kind != "dense":
        storage: Any = "auto" if kind == "sparse" else "masked"
        model = regrow.sparsify(model, density, backend=storage, keep_dense=config.keep_dense, seed=config.seed)
    wrapper = DistributedDataParallel(model)
    optimizer = make_optimizer(model, config)
    topology: regrow.TopologyUpdater | None = None
    if kind != "dense":
        growth = regrow.growth.window(_WINDOW)
        recipe = regrow.sparse_momentum(every=every, steps=10 * every, growth=growth)
        topology = regrow.TopologyUpdater(wrapper, optimizer, recipe)
    if topology is not None and kind == "masked, active sent":
        regrow.processes.send_active(wrapper, topology)
    else:
        wrapper.register_comm_hook(None, allreduce_hook)
    batches = make_batches(config)
    images, labels = batches.images[0][rank::size], batches.labels[0][rank::size]

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(wrapper(images), labels)
        loss.backward()
        optimizer.step()

    # A dense network has no window: the same steps stand for it.
    taken = iter(range(1 << 62))
    return _Training(step, lambda: bool(topology.looks_at()) if topology else next(taken) > every - _WINDOW)


def _figures(training: _Training, dense: _Training) -> Figures:
    rounds = zip(training.taken, dense.taken, strict=True)
    own, other = zip(*((a[2], b[2]) for a, b in rounds if not a[0] and not b[0]), strict=True)
    return Figures(
        training.sent(window=False),
        training.sent(window=True),
        spread([1e3 * seconds for seconds in own]),
        ratios(other, own),
    )


def _take_step(training: _Training, *, counts: bool) -> None:
    window = training.looks()
    distributed.barrier()
    with _counted() as sent:
        begun = time.perf_counter()
        training.step()
        seconds = time.perf_counter() - begun
    if counts:
        training.taken.append((window, sum(sent), seconds))


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Note the bytes of every tensor that is given to be averaged."""
    sent: list[int] = []
    reduce = distributed.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.nbytes)
        return reduce(tensor, *args, **kwargs)

    distributed.all_reduce = counting
    try:
        yield sent
    finally:
        distributed.all_reduce = reduce
