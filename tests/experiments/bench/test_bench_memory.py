"""The measurement of memory: what it counts, by hand for a small layer, and how it is asked for."""

import json

import pytest
import torch
from runs import command, refused
from torch._subclasses.fake_tensor import FakeTensorMode

from regrow.experiments.bench.memory.linear import Memory, Problem, measure, table

SIZE = 256
DENSE = SIZE * SIZE * 4
NONZEROS = round(0.05 * SIZE * SIZE)


def measured(kind, profiled=False):
    return measure(Problem(SIZE, 0.05, 16), kind, profiled)


def test_dense_training_holds_weight_gradient_and_momentum():
    memory = measured("dense")
    assert (memory.weights, memory.index, memory.gradients, memory.momentum) == (DENSE, 0, DENSE, DENSE)
    assert memory.while_growth_looks == 0


def test_what_holds_no_memory_is_not_counted():
    with FakeTensorMode():
        left_behind = torch.ones(8)
    assert left_behind.shape == (8,)
    assert measured("dense").weights == DENSE


def test_masked_training_holds_its_mask_too():
    memory = measured("masked")
    assert (memory.weights, memory.gradients, memory.momentum) == (DENSE + SIZE * SIZE, DENSE, DENSE)


@pytest.mark.parametrize(
    "kind", ["static", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("candidates:2:1", "window:2"))]
)
def test_sparse_training_holds_what_exists(kind):
    memory = measured(kind)
    assert (memory.weights, memory.gradients, memory.momentum) == (4 * NONZEROS,) * 3
    assert 16 * NONZEROS < memory.index < 30 * NONZEROS
    assert memory.state == memory.weights + memory.index + memory.gradients + memory.momentum
    assert memory.state < 0.15 * 3 * DENSE


@pytest.mark.slow
def test_what_growth_looks_at_counts():
    looks = {kind: measured(kind).while_growth_looks for kind in ("static", "candidates:2:1", "window:2")}
    assert looks["static"] == 0
    # for each candidate a zero, its gradient and momentum, 4 bytes each; for candidates and active weights together
    # positions and an index structure, and where the active ones stand
    assert 16 * NONZEROS < looks["candidates:2:1"] < 48 * NONZEROS
    # a zero, its gradient and momentum for every position where no weight is
    assert looks["window:2"] == 12 * (SIZE * SIZE - NONZEROS)


@pytest.mark.slow
def test_candidates_take_no_piece_as_large_as_the_dense_weight():
    assert measured("candidates:2:1", profiled=True).largest < DENSE / 2
    assert measured("guided:2:1", profiled=True).largest < DENSE / 2
    assert measured("window:2", profiled=True).largest >= 0.9 * DENSE


@pytest.mark.slow
def test_the_table_and_the_file(tmp_path):
    options = ("--size", 128, "--batch", 8, "--kinds", "static", "--out", tmp_path / "memory.json")
    result = command("bench", "memory", *options, "--markdown", tmp_path / "memory.md")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads((tmp_path / "memory.json").read_text())
    assert [row["kind"] for row in report["memory"]] == ["dense", "static"]
    assert report["memory"][0]["state"] == 3 * 128 * 128 * 4
    assert report["problem"] == {"size": 128, "density": 0.05, "batch": 8}
    assert report["machine"]["threads"] >= 1
    assert "| static |" in (tmp_path / "memory.md").read_text()


def test_ratios_are_to_dense():
    rows = [Memory("dense", 100, 0, 100, 100, 0, 1000, 50), Memory("static", 10, 20, 10, 5, 0, 100, 5)]
    _, static = table(Problem(5, 0.1, 2), rows).rows
    assert static[6] == "15.0%"
    assert static[9] == "10.0%"


def test_a_kind_that_does_not_exist_is_refused():
    refused(command("bench", "memory", "--kinds", "sparse"), "there is no growth 'sparse'", "masked")


def test_a_layer_that_fits_in_what_was_held_has_no_share():
    dense = Memory("dense", 4, 0, 4, 4, 0, peak=0, largest=4)
    (cells,) = table(Problem(1, 0.5, 1), [dense]).rows
    assert cells[-2] == "-"
