import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import settings

from regrow.ops.native import instruction_set, use_instruction_set
from two_processes import Pair

# The same examples in every run and on every machine: a red test is a fault, never luck. The slow profile takes more.
_examples = int(os.environ.get("REGROW_TEST_EXAMPLES", "20"))
settings.register_profile("regrow", derandomize=True, deadline=None, database=None, max_examples=_examples)
settings.load_profile("regrow")

# The tensors are tiny: a second thread costs more than it saves, far more on a busy machine. `.ci/sanitize` wants some.
_threads = int(os.environ.get("REGROW_TEST_THREADS", "1"))
torch.set_num_threads(_threads)
if os.environ.get("OMP_NUM_THREADS") == "1" and _threads > 1:
    # Kernels ask PyTorch for the number of threads: they have these, and its own operations one.
    torch.set_num_threads(1)
    torch.get_num_threads = lambda: _threads
    torch.set_num_threads = lambda threads: globals().update(_threads=threads)


def _available() -> list[str]:
    """Return the instruction sets that this processor and this installation have kernels for."""
    try:
        best, names = instruction_set(), []
    except RuntimeError:
        return []
    for name in ("portable", "avx2", "avx512"):
        try:
            use_instruction_set(name)
        except ValueError:
            continue
        names.append(name)
    use_instruction_set(best)
    return names


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the slow tests what adds no pair of values to a grid marked `pairs`."""
    grids: defaultdict[str, list[tuple[pytest.Item, set[Any]]]] = defaultdict(list)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if isinstance(item, pytest.Function) and "pairs" in marks and "slow" not in marks:
            values = [(name, id(value)) for name, value in item.callspec.params.items()]
            grids[item.nodeid.partition("[")[0]].append((item, set(combinations(values, 2))))
    for rows in grids.values():
        met: set[Any] = set()
        # Those that add most first: it comes near the fewest.
        for least in range(max(len(pairs) for _, pairs in rows), 0, -1):
            for _, pairs in rows:
                if len(pairs - met) >= least:
                    met |= pairs
                    pairs.clear()
        for item, pairs in rows:
            if pairs:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes of gloo; they start when they are first called."""
    pair = Pair(tmp_path_factory.mktemp("processes"))
    yield pair
    pair.close()


def _sets_with_kernels() -> list[Any]:
    """Return the instruction sets; those between, of the same source as the others, are for the slow tests."""
    names = _available()
    return [pytest.param(name, marks=pytest.mark.slow) if name in names[1:-1] else name for name in names]


@pytest.fixture(params=_sets_with_kernels())
def any_instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = instruction_set()
    use_instruction_set(request.param)
    yield request.param
    use_instruction_set(before)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill fresh memory with NaN, as far as PyTorch allocates it."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
