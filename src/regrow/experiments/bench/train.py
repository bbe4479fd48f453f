"""Whole training steps of sparse networks beside the dense ones, in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

import regrow
from regrow.experiments.bench.measure import Spread, spread
from regrow.experiments.bench.tables import Table
from regrow.experiments.models import build

NETWORKS: dict[str, tuple[tuple[int, int, int], int]] = {
    "lenet300-100": ((1, 28, 28), 128),
    "lenet5": ((1, 28, 28), 128),
    "vgg16-d": ((3, 32, 32), 128),
    "wrn-16-8": ((3, 32, 32), 128),
    "wrn-22-8": ((3, 32, 32), 128),
    "resnet50": ((3, 224, 224), 16),
}
"""Shape of an image and batch of each network."""


@dataclass(frozen=True)
class Steps:
    """What a step takes.

    Attributes:
        network: the network.
        density: share of the weights that exist.
        batch: samples in a step.
        sparse: how many weights are stored sparsely.
        weights: how many are sparse.
        dense: milliseconds of a dense step.
        own: milliseconds of a sparse step.
        ratio: dense over sparse, in the same round.
    """

    network: str
    density: float
    batch: int
    sparse: int
    weights: int
    dense: Spread
    own: Spread
    ratio: Spread


def time_steps(
    network: str,
    density: float,
    *,
    batch: int | None = None,
    backend: str = "auto",
    batch_last: bool = True,
    rounds: int,
    seconds: float,
) -> Steps:
    """Time steps of SGD with momentum, dense and under static sparse training, in turn.

    A step is zero_grad, forward, cross-entropy, backward, and the optimizer's step with what keeps absent weights at
    zero.

    Args:
        network: a name of `NETWORKS`.
        density: share of the weights that exist.
        batch: samples in a step; None takes the network's own.
        backend: storage of the sparse weights.
        batch_last: whether norms and pools follow the layout of sparse convolutions.
        rounds: rounds at most.
        seconds: no new round begins after so many, once there were three.
    """
    image, own_batch = NETWORKS[network]
    torch.manual_seed(0)
    images = torch.randn(batch or own_batch, *image).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(images)) % 10
    dense = build(network, image_shape=image, classes=10)
    dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
    sparse = regrow.sparsify(
        deepcopy(dense),
        density,
        backend=backend,  # type: ignore[arg-type]  # sparsify refuses what it does not know
        example_input=images if backend == "auto" else None,
        batch_last=batch_last,
    )
    layers = regrow.summary(sparse).layers
    runs = (_step(dense, images, labels, updated=False), _step(sparse, images, labels, updated=True))
    times: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        run()
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > seconds:
            break
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            began = time.perf_counter()
            runs[which]()
            times[which].append((time.perf_counter() - began) * 1e3)
    return Steps(
        network=network,
        density=density,
        batch=len(images),
        sparse=sum(layer.storage == "sparse" for layer in layers),
        weights=len(layers),
        dense=spread(times[0]),
        own=spread(times[1]),
        ratio=spread([a / b for a, b in zip(*times, strict=True)]),
    )


def steps_table(rows: list[Steps], backend: str) -> Table:
    """Return the table of these measurements."""

    def show(each: Spread) -> str:
        return f"{each.median:.3g} ({each.low:.3g}-{each.high:.3g})"

    columns = ("network", "batch", "density", "layers stored sparsely", "dense ms", f"{backend} ms", "dense / sparse")
    return Table(
        "Whole training steps: median (quartiles)",
        columns,
        tuple(
            (
                row.network,
                str(row.batch),
                f"{row.density:.3g}",
                f"{row.sparse} of {row.weights}",
                show(row.dense),
                show(row.own),
                show(row.ratio),
            )
            for row in rows
        ),
    )


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, updated: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    if updated:
        regrow.TopologyUpdater(model, optimizer, regrow.static())

    loss = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return step
