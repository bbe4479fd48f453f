"""Time sparse convolutions and linear layers beside PyTorch's dense ones; refuse to time what is wrong.

    OMP_NUM_THREADS=1 python benchmarks/layers.py --densities 0.05 0.2 --json layers.json

Every figure is a median over rounds, and in every round dense and sparse run one after the other, so that
a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from time import perf_counter, thread_time

import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.ops import sparse_conv2d, sparse_linear
from regrow.ops.conv2d.reference import dense_weight
from regrow.ops.native import instruction_set
from regrow.pattern import Pattern

PASSES = ("forward", "input", "weight")


@dataclass(frozen=True)
class Layer:
    """One layer of a network: a linear layer has a kernel of None and a plane of 1."""

    name: str
    inputs: int
    outputs: int
    plane: int
    kernel: int | None = 3
    stride: int = 1
    batch: int = 128

    def __str__(self) -> str:
        shape = f"{self.inputs}-{self.outputs}"
        return (
            f"{self.name} {shape}"
            if self.kernel is None
            else f"{self.name} {shape} {self.kernel}x{self.kernel} @{self.plane}/{self.stride}"
        )


LAYERS = (
    Layer("vgg16-d", 64, 64, 32),
    Layer("vgg16-d", 64, 128, 16),
    Layer("vgg16-d", 128, 128, 16),
    Layer("vgg16-d", 128, 256, 8),
    Layer("vgg16-d", 256, 256, 8),
    Layer("vgg16-d", 256, 512, 4),
    Layer("vgg16-d", 512, 512, 4),
    Layer("vgg16-d", 512, 512, 2),
    Layer("wrn-22-8", 128, 128, 32),
    Layer("wrn-22-8", 128, 256, 32, stride=2),
    Layer("wrn-22-8", 128, 256, 32, kernel=1, stride=2),
    Layer("wrn-22-8", 256, 256, 16),
    Layer("wrn-22-8", 256, 512, 16, stride=2),
    Layer("wrn-22-8", 256, 512, 16, kernel=1, stride=2),
    Layer("wrn-22-8", 512, 512, 8),
    Layer("linear", 1024, 4096, 1, kernel=None, batch=2048),
)


@dataclass(frozen=True)
class Case:
    """The same layer twice, ready to run."""

    flops: float  # multiply-adds of one dense pass, times two
    dense: dict[str, Callable[[], Tensor]]
    sparse: dict[str, Callable[[], Tensor]]
    positions: Tensor


def build(layer: Layer, density: float, generator: torch.Generator) -> Case:
    """Return the passes of a layer, dense in channels-last and sparse in batch-last.

    Args:
        layer: what to build.
        density: share of the weights that exist.
        generator: source of all numbers.
    """
    convolution = layer.kernel is not None
    kernel = (layer.kernel, layer.kernel) if layer.kernel is not None else ()
    shape = (layer.outputs, layer.inputs, *kernel)
    exists = torch.randperm(prod(shape), generator=generator)[: round(density * prod(shape))].sort().values
    pattern = Pattern(shape, exists)
    values = torch.randn(pattern.nonzeros, generator=generator)
    weight = dense_weight(values, pattern)
    stride, padding = (layer.stride,) * 2, ((layer.kernel or 1) // 2,) * 2
    plane = (layer.plane, layer.plane) if convolution else ()
    x = torch.randn(layer.batch, layer.inputs, *plane, generator=generator)

    dense_x, sparse_x = x, x.movedim(0, -1).contiguous().movedim(-1, 0)
    if convolution:
        dense_x = x.to(memory_format=torch.channels_last)
        weight = weight.to(memory_format=torch.channels_last)

    def dense_forward(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding) if convolution else F.linear(x, weight)

    def sparse_forward(x: Tensor, values: Tensor) -> Tensor:
        if convolution:
            return sparse_conv2d(x, values, None, pattern, stride, padding)
        return sparse_linear(x, values, None, pattern)

    y = dense_forward(dense_x, weight)
    gradient = torch.randn(y.shape, generator=generator)
    return Case(
        flops=2.0 * prod(shape) * y.numel() / layer.outputs,
        dense=_passes(dense_forward, dense_x, weight, gradient),
        sparse=_passes(sparse_forward, sparse_x, values, gradient),
        positions=exists,
    )


def _passes(
    forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, gradient: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Return each pass alone: a graph in which only the input, or only the weight, wants a gradient."""

    def backward(x: Tensor, weight: Tensor, wanted: Tensor) -> Callable[[], Tensor]:
        y = forward(x, weight)
        y_gradient = torch.empty_like(y).copy_(gradient)
        return lambda: torch.autograd.grad(y, wanted, y_gradient, retain_graph=True)[0]

    x_wanted, weight_wanted = (tensor.detach().requires_grad_() for tensor in (x, weight))
    return {
        "forward": lambda: forward(x, weight),
        "input": backward(x_wanted, weight, x_wanted),
        "weight": backward(x, weight_wanted, weight_wanted),
    }


def check(case: Case, layer: Layer) -> None:
    """Compare every pass with the dense layer's.

    Raises:
        AssertionError: if one differs by more than float32 sums may.
    """
    for name in PASSES:
        expected = case.dense[name]()
        if name == "weight":
            expected = (
                expected.reshape(-1)[case.positions]
                if expected.is_contiguous()
                else expected.contiguous().reshape(-1)[case.positions]
            )
        actual = case.sparse[name]()
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error < 1e-4:
            raise AssertionError(f"{layer}: {name} is wrong: relative error {error:.1e}")


def time_passes(case: Case, rounds: int, clock: Callable[[], float]) -> dict[str, dict[str, list[float]]]:
    """Return the milliseconds of every round, by kind and pass; dense and sparse take turns."""
    times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in PASSES} for kind in ("dense", "sparse")}
    for _ in range(rounds):
        for name in PASSES:
            for kind, passes in (("dense", case.dense), ("sparse", case.sparse)):
                start = clock()
                passes[name]()
                times[kind][name].append((clock() - start) * 1e3)
    return times


def measure(layer: Layer, density: float, rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    """Check a layer, time it, and return one row of the table."""
    case = build(layer, density, torch.Generator().manual_seed(0))
    check(case, layer)
    times = time_passes(case, rounds, clock)
    row: dict[str, object] = {"layer": asdict(layer), "density": density}
    for kind in times:
        row[kind] = {name: median(each) for name, each in times[kind].items()}
        row[kind + "_spread"] = {name: _spread(each) for name, each in times[kind].items()}
    dense, sparse = ({name: median(each) for name, each in times[kind].items()} for kind in ("dense", "sparse"))
    row["ratio"] = {name: dense[name] / sparse[name] for name in PASSES}
    row["ratio_all"] = sum(dense.values()) / sum(sparse.values())
    row["dense_gflops"] = case.flops * 3e-6 / sum(dense.values())
    row["sparse_gflops"] = {name: case.flops * density * 1e-6 / sparse[name] for name in PASSES}
    _print_row(layer, density, dense, sparse, row)
    return row


def _spread(times: Sequence[float]) -> float:
    """Return the distance between the quartiles over the median."""
    low, middle, high = quantiles(times, n=4)
    return (high - low) / middle


def _print_row(
    layer: Layer, density: float, dense: dict[str, float], sparse: dict[str, float], row: dict[str, object]
) -> None:
    ratio, gflops = row["ratio"], row["sparse_gflops"]
    assert isinstance(ratio, dict)
    assert isinstance(gflops, dict)
    cells = "  ".join(f"{sparse[name]:7.1f} x{ratio[name]:4.1f} {gflops[name]:4.0f}" for name in PASSES)
    dense_cell = f"dense {sum(dense.values()):7.1f} ({row['dense_gflops']:4.0f})"
    print(f"{layer!s:34} {density:5.0%} {dense_cell}  {cells}  all x{row['ratio_all']:.2f}", flush=True)


def main() -> None:
    """Parse the arguments, measure, print a table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="layers whose line contains this text")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of the processor, not of the wall: one thread, busy machine"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time and torch.get_num_threads() > 1:
        parser.error("--cpu-time sees one thread only: set OMP_NUM_THREADS=1")
    clock = thread_time if arguments.cpu_time else perf_counter
    machine = {
        "processor": _processor(),
        "clock": clock.__name__,
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(machine)
    print("milliseconds, ratio to dense and GFLOP/s over the nonzeros: forward, input gradient, weight gradient")
    rows = []
    for density in arguments.densities:
        chosen = [layer for layer in LAYERS if arguments.only in str(layer)]
        part = [measure(layer, density, arguments.rounds, clock) for layer in chosen]
        convolutions = [row["ratio_all"] for layer, row in zip(chosen, part, strict=True) if layer.kernel is not None]
        if convolutions:
            print(f"{density:.0%}: convolutions, geometric mean x{geometric_mean(convolutions):.2f}\n")
        rows += part
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
