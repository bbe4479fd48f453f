"""Measure what masked sparse training costs beside dense training: whole steps, alternating in one process.

    python benchmarks/overhead.py [--networks lenet300-100,vgg16-like,wrn-16-8] [--pairs 15] > docs/results/overhead.md

Each network takes steps of dense SGD and of sparse momentum at 5 % on synthetic batches of the preset's shape, in turn.
A sparse step holds everything but the topology update, which is timed by itself and added as its share of an epoch.
Before it times, it checks that a sparse step is the dense step with absent weights at zero.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

import regrow
from machine import describe
from regrow.experiments.models import build
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.presets import preset
from regrow.experiments.train.run import make_optimizer

DENSITY = 0.05
# preset, shape of an image, optimizer steps in an epoch of the preset
NETWORKS: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "lenet300-100": ("mnist-lenet300-100", (1, 28, 28), 540),
    "lenet5": ("mnist-lenet5", (1, 28, 28), 540),
    "vgg16-like": ("cifar10-vgg16-like", (3, 32, 32), 352),
    "wrn-28-2": ("cifar10-wrn-28-2", (3, 32, 32), 352),
    "wrn-16-8": ("cifar10-wrn-16-8", (3, 32, 32), 352),
}
UPDATES = 5
TITLE = """# Overhead of masked sparse training

Whole training steps (forward, loss, backward, fused SGD with Nesterov momentum and weight decay) of sparse momentum
at 5 % in masked storage beside dense training, on synthetic batches of the presets' shapes, in turn in one process.
The update of the topology is timed by itself and added as its share of an epoch. Medians, with quartiles in brackets.

`python benchmarks/overhead.py --networks {networks} --pairs {pairs}`, {machine}
"""


class Trainer:
    """A model with its optimizer and one batch."""

    def __init__(self, model: nn.Module, config: TrainConfig, shape: tuple[int, int, int]) -> None:
        self.model = model
        self.optimizer = make_optimizer(model, config)
        self.images = torch.randn(config.batch_size, *shape, generator=torch.Generator().manual_seed(1))
        self.labels = torch.arange(config.batch_size) % 10
        self.topology: regrow.TopologyUpdater | None = None

    def step(self) -> None:
        """Take one optimizer step."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()


def pair(config: TrainConfig, shape: tuple[int, int, int], every: int) -> tuple[Trainer, Trainer]:
    """Return a dense and a sparse trainer that start from the same weights."""
    torch.manual_seed(0)
    model = build(config.model, image_shape=shape, classes=10).to(memory_format=torch.channels_last)
    dense = Trainer(deepcopy(model), config, shape)
    sparse = Trainer(regrow.sparsify(model, DENSITY), config, shape)
    recipe = regrow.sparse_momentum(every=every, steps=10**9)
    sparse.topology = regrow.TopologyUpdater(model, sparse.optimizer, recipe)
    return dense, sparse


def check(config: TrainConfig, shape: tuple[int, int, int]) -> None:
    """Raise an AssertionError unless a sparse step equals the dense step with absent weights at zero."""
    dense, sparse = pair(config, shape, every=10**9)
    dense.model.load_state_dict(regrow.dense_state_dict(sparse.model))
    for trainer in (dense, sparse):
        torch.manual_seed(2)  # for dropout
        trainer.step()
    state = dense.model.state_dict()
    for name, mask in regrow.masks(sparse.model).items():
        torch.testing.assert_close(sparse.model.state_dict()[name], state[name] * mask, rtol=0, atol=0)


def seconds(work: Callable[[], object], times: int) -> float:
    """Return the seconds that one call takes, as the mean of a few in a row."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def measure(name: str, pairs: int) -> dict[str, Any]:
    """Time a network and return the figures."""
    preset_name, shape, steps_per_epoch = NETWORKS[name]
    config = preset(preset_name)
    check(config, shape)
    dense, sparse = pair(config, shape, every=10**9)
    once = seconds(dense.step, 1), seconds(sparse.step, 1), seconds(dense.step, 1)
    times = max(1, round(0.3 / min(once)))  # a sample lasts a third of a second or one step
    dense_times, sparse_times = [], []
    for number in range(pairs):
        order = ((dense, dense_times), (sparse, sparse_times))
        for trainer, samples in order if number % 2 else order[::-1]:
            samples.append(seconds(trainer.step, times))
    update = update_seconds(config, shape)
    with_update = [value + update / steps_per_epoch for value in sparse_times]
    return {
        "network": name,
        "dense_ms": spread([1e3 * value for value in dense_times]),
        "sparse_ms": spread([1e3 * value for value in sparse_times]),
        "update_ms": 1e3 * update,
        "ratio": spread([a / b for a, b in zip(with_update, dense_times, strict=True)]),
    }


def update_seconds(config: TrainConfig, shape: tuple[int, int, int]) -> float:
    """Return the median time of a topology update: a step that updates less the work of one that does not."""
    _, sparse = pair(config, shape, every=1)
    sparse.step()
    topology = sparse.topology
    assert topology is not None
    return statistics.median(seconds(topology.update, 1) for _ in range(UPDATES))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def show(figure: dict[str, float], digits: int) -> str:
    """Return a median with its quartiles."""
    return f"{figure['median']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def main() -> None:
    """Parse the arguments, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="lenet300-100,vgg16-like,wrn-16-8")
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    print(TITLE.format(machine=describe(), networks=arguments.networks, pairs=arguments.pairs))
    print("| network | dense step, ms | sparse step, ms | update, ms | ratio with an update an epoch |")
    print("|---|---|---|---|---|")
    for name in arguments.networks.split(","):
        row = measure(name, arguments.pairs)
        times = (show(row["dense_ms"], 2), show(row["sparse_ms"], 2), f"{row['update_ms']:.1f}")
        print(f"| {name} | {' | '.join(times)} | {show(row['ratio'], 3)} |", flush=True)


if __name__ == "__main__":
    main()
