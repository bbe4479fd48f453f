"""Every argument of every operator, and every constant of exported programs, altered in some twenty ways: none ends it.

The calls run in a process of their own, which names the call it is at: a crash is a failed test with a name.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow

pytest.importorskip("regrow._kernels")

NUMBERS = (0, -1, 1, 2, 1 << 20, 1 << 31, 1 << 40, -(1 << 40), 1 << 62)


def altered_tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor with another type, shape, layout or numbers, with words for it."""
    for dtype in (torch.float64, torch.float16, torch.int32, torch.int64, torch.bool, torch.complex64):
        yield str(dtype), tensor.to(dtype)
    yield "on no device", tensor.to("meta")
    yield "a scalar", torch.zeros((), dtype=tensor.dtype)
    yield "one dimension more", tensor.unsqueeze(0)
    yield "twice as long", torch.cat([tensor, tensor])
    yield "strided", torch.stack([tensor, tensor], -1)[..., 0]
    yield "flipped", tensor.flip(0)
    for dimension, size in enumerate(tensor.shape):
        yield f"dimension {dimension} empty", tensor.narrow(dimension, 0, 0).clone()
        if size:
            yield f"dimension {dimension} shorter", tensor.narrow(dimension, 0, size - 1).clone()
            sides = [3 * size if each == dimension else -1 for each in range(tensor.dim())]
            yield f"dimension {dimension} repeated", tensor.narrow(dimension, 0, 1).expand(sides)
    if not tensor.is_floating_point() and tensor.numel():
        limits = torch.iinfo(tensor.dtype)
        for number in {limits.min, limits.max, max(limits.min, -1), 0, 1, 7}:
            yield f"full of {number}", torch.full_like(tensor, number)
            for at in {0, tensor.numel() // 2, tensor.numel() - 1}:
                changed = tensor.clone()
                changed.view(-1)[at] = number
                yield f"{number} at {at}", changed


def altered_lists(given: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield a list of numbers, shorter, longer, or with other numbers in it."""
    yield from (("short", given[:-1]), ("empty", []), ("long", [*given, 1]), ("twice", [*given, *given]))
    for number in NUMBERS:
        yield f"all {number}", [number] * len(given)
        for at in range(len(given)):
            yield f"{number} at {at}", [*given[:at], number, *given[at + 1 :]]
    for at, number in enumerate(given):
        for other in (int(number) - 1, int(number) + 1):
            yield f"{other} at {at}", [*given[:at], other, *given[at + 1 :]]


def altered(argument: Any) -> Iterator[tuple[str, Any]]:
    """Yield an argument altered, whatever it is."""
    if isinstance(argument, Tensor):
        yield "none", None
        yield from altered_tensors(argument)
    elif isinstance(argument, list) and argument and isinstance(argument[0], Tensor):
        yield from (
            ("short", argument[:-1]),
            ("reversed", argument[::-1]),
            ("twice", argument + argument),
            ("none", []),
        )
        for at, tensor in enumerate(argument):
            for words, other in altered_tensors(tensor):
                yield f"part {at} {words}", [*argument[:at], other, *argument[at + 1 :]]
    elif isinstance(argument, list):
        yield from altered_lists(argument)
    elif isinstance(argument, bool):
        yield "the other", not argument
    elif isinstance(argument, int | float):
        yield from ((str(number), number) for number in (-1, 0, 1 << 40, float("nan")))
    else:
        yield "a tensor", torch.randn(3)


def calls() -> Iterator[tuple[str, Any]]:
    """Yield each altered call with its name."""
    from test_wrong_calls import OPERATORS

    for name, (operator, fitting) in OPERATORS.items():
        for key, argument in fitting().items():
            if name.endswith("of units") and key not in ("values", "index", "weight_shape", "geometry"):
                continue  # altered for single weights, and no other for units
            for words, other in altered(argument):
                yield f"{name}: {key} {words}", partial(_with_argument, operator, fitting, key, other)
    layers = ((nn.Linear(9, 5), (4, 9)), (nn.Conv1d(4, 6, 3), (2, 4, 7)), (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 7, 7)))
    for layer, shape in layers:
        sparse = regrow.sparsify(nn.Sequential(layer), 0.5, backend="cpu").requires_grad_(False)
        program = torch.export.export(sparse, (torch.randn(shape),)).module()
        for owner in program.modules():
            for key, constant in list(vars(owner).items()):
                if isinstance(constant, Tensor):
                    for words, other in altered_tensors(constant):
                        given = (program, owner, key, constant, other, shape)
                        yield f"exported {shape}: {key} {words}", partial(_with_constant, *given)


def _with_argument(operator: Any, fitting: Any, key: str, other: Any) -> Any:
    return operator(**{**fitting(), key: other})


def _with_constant(program: Any, owner: Any, key: str, constant: Tensor, other: Tensor, shape: tuple[int, ...]) -> Any:
    try:
        setattr(owner, key, other)
        return program(torch.randn(shape))
    finally:
        setattr(owner, key, constant)


def main() -> None:
    """Make all calls, naming each before it is made; then say how many there were, and how many were refused."""
    count = refused = 0
    for name, call in calls():
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        count += 1
        try:
            result = call()
        except Exception:  # an error of Python, whichever, is what is asked for
            refused += 1
            continue
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                tensor.sum()
    sys.stdout.write(f"{count} calls, {refused} refused\n")


def test_no_altered_argument_ends_the_process() -> None:
    # `test_wrong_calls` looks at each kind of error; here it counts that the process lives.
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, f"ended by {run.returncode} at {run.stdout.splitlines()[-1:]}: {run.stderr[-2000:]}"
    count, _, refused, *_ = run.stdout.splitlines()[-1].split()
    assert int(count) > 3000
    assert int(refused) > 0.75 * int(count)


if __name__ == "__main__":
    main()
