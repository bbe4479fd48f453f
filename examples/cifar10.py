"""CIFAR-10 in one file: a sparse residual network, trained from its first step to its last, timed.

    pip install '.[experiments]'
    python examples/cifar10.py --data DIR                  # 5 % of the weights
    python examples/cifar10.py --data DIR --density 1      # the dense network, to compare with

DIR holds `cifar10/` as published (cifar-10-python.tar.gz) or as parquet files; $REGROW_DATA can name it. Without either
it is downloaded. It is meant to be read and changed: everything but the reading of the data stands here.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regrow
from regrow.experiments.data import Data, load


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/")
    parser.add_argument("--density", type=float, default=0.05, help="weights that exist, of all; 1 is dense")
    parser.add_argument(
        "--compute", type=float, default=1.0, help="bound on multiply-adds, in those of a uniform spread"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--width", type=int, default=64, help="channels of the first convolution")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, keep weights in float32")
    parser.add_argument("--steps", type=int, help="stop after so many steps, to try it")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def block(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = block(channels, channels), block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        block(3, width),
        block(width, 2 * width, pool=True),
        Residual(2 * width),
        block(2 * width, 4 * width, pool=True),
        block(4 * width, 8 * width, pool=True),
        Residual(8 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def batches(data: Data, epochs: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    for epoch in range(epochs):
        for images, labels in data.train.epoch():
            yield epoch, images, labels


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, bfloat16: bool) -> float:
    model.eval()
    right = 0
    for images, labels in data.test.epoch():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            right += int((model(images).argmax(1) == labels).sum())
    model.train()
    return right / data.test.samples


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    data = load(
        "cifar10",
        root=args.data,
        batch_size=args.batch_size,
        valid_samples=0,
        augment="reflect-crop-flip",
        seed=args.seed,
    )
    every, total = len(data.train), args.epochs * len(data.train)
    model = network(args.width).to(memory_format=torch.channels_last)
    if args.density < 1:
        model = regrow.sparsify(model, args.density, seed=args.seed)
    optimizer = torch.optim.SGD(regrow.decay_groups(model, 5e-4), lr=args.learning_rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total, cycle_momentum=False)
    if args.density < 1:
        recipe = regrow.sparse_momentum(every, total, compute=args.compute)
        topology = regrow.TopologyUpdater(model, optimizer, recipe, seed=args.seed)  # noqa: F841 - it hangs on the optimizer
        print(regrow.summary(model))

    trained, last = 0.0, 0
    for step, (epoch, images, labels) in enumerate(batches(data, args.epochs), 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            loss = cross_entropy(model(images).float(), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        trained += time.perf_counter() - start
        if step % every == 0 or step == args.steps:
            found = accuracy(model, data, args.bfloat16)
            print(f"epoch {epoch + 1}: {trained:.1f} s of training, test accuracy {found:.2%}", flush=True)
            last = step
        if step == args.steps:
            break
    weights = sum(int(mask.sum()) for mask in regrow.masks(model).values()) if args.density < 1 else "all"
    print(f"{last} steps, {1000 * trained / last:.0f} ms each; {weights} weights that may be sparse exist")


if __name__ == "__main__":
    main()
