"""The scripts in examples/ run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from data.made import make_parquet

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(folder, *arguments):
    """Run the script on a CIFAR-10 of noise; return what it printed."""
    make_parquet(folder / "cifar10", rows=(40, 10))
    given = ("--data", folder, "--width", 8, "--batch-size", 16, *arguments)
    command = [sys.executable, EXAMPLES / "cifar10.py", *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_single_file_trains_a_sparse_network(tmp_path):
    printed = run(tmp_path, "--density", 0.1, "--epochs", 2, "--steps", 5)
    assert re.search(r"^epoch 1: [\d.]+ s of training, test accuracy [\d.]+%$", printed, re.MULTILINE)
    convolutions = 3 * 8 + 8 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 64 + 2 * 64 * 64
    weights = round(0.1 * (9 * convolutions + 640))
    last = printed.splitlines()[-1]
    assert last.startswith("5 steps, ")
    assert last.endswith(f"; {weights} weights that may be sparse exist")


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--bfloat16",), ("--density", 1)])
def test_its_other_ways(tmp_path, more):
    assert "test accuracy" in run(tmp_path, "--epochs", 1, *more)
