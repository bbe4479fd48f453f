"""Several threads in one process, and several processes: threads of Python, of OpenMP, forks, spawns, data loaders."""

import dataclasses
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import regrow
from regrow.growth import candidates, exact, window

SHAPES = {"linear": (nn.Linear(24, 24), (5, 24)), "conv2d": (nn.Conv2d(8, 8, 3, padding=1), (5, 8, 6, 6))}
each_layer = pytest.mark.parametrize(("layer", "shape"), SHAPES.values(), ids=SHAPES.keys())


def inputs(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def in_threads(*tasks):
    """Run tasks at the same time; raise what one of them raises."""
    failures = []

    def run(task):
        try:
            task()
        except BaseException as error:  # to be raised where the test sees it
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture(autouse=True)
def _quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@each_layer
def test_threads_infer_in_one_layer_at_the_same_time(layer, shape):
    network = regrow.sparsify(nn.Sequential(layer), 0.3, backend="cpu")
    batches = [inputs((batch, *shape[1:])) for batch in (1, 5, 33)]
    with torch.no_grad():
        expected = [network(x) for x in batches]

    @torch.no_grad()
    def infer():
        for _ in range(100):
            for x, right in zip(batches, expected, strict=True):
                assert torch.equal(network(x), right)

    in_threads(infer, infer, infer)


@each_layer
@pytest.mark.parametrize("growth", [exact(), window(2), candidates(2, 1)], ids=["exact", "window", "candidates"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_thread_infers_while_another_updates_the_topology(layer, shape, growth, guard):
    network = regrow.sparsify(nn.Sequential(layer), 0.3, backend="cpu")
    parameter = next(network.parameters())
    # A step of no length: weights change with the topology alone.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    recipe = dataclasses.replace(regrow.sparse_momentum(every=1, steps=400), growth=growth)
    seen, x = [], inputs(shape)
    topologies = []
    topology = regrow.TopologyUpdater(
        network, optimizer, recipe, on_update=lambda *_: topologies.append(regrow.dense_state_dict(network))
    )
    topologies.append(regrow.dense_state_dict(network))
    finished = threading.Event()

    def train():
        try:
            for _ in range(40):
                optimizer.zero_grad()
                network(x).square().mean().backward()
                optimizer.step()
        finally:
            finished.set()

    @guard()
    def infer():
        while not finished.is_set():
            seen.append(network(x).clone())

    in_threads(train, infer)
    assert topology.step == 40
    assert parameter is next(network.parameters())
    reference = regrow.sparsify(type(layer)(*arguments(layer)), 1.0, backend="masked")
    possible = []
    for state in topologies:
        reference.load_state_dict({name.removeprefix("0."): value for name, value in state.items()})
        with torch.no_grad():
            possible.append(reference(x))
    assert seen
    for output in seen:
        assert any(torch.allclose(output, right, rtol=1e-4, atol=1e-5) for right in possible)


def arguments(layer):
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding


NETWORK = """
import os, sys, torch, regrow
from torch import nn
torch.set_num_threads(2)
torch.manual_seed(0)
network = regrow.sparsify(
    nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    0.3, backend="cpu",
)
x = torch.randn(64, 16, 8, 8)
def outputs():
    output = network(x)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(network.parameters()))]
"""

FORK = (
    NETWORK
    + """
before = outputs()
for _ in range(4):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(before, outputs()))
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(before, outputs()))
"""
)

FORK_UNDER_A_LOCK = (
    NETWORK
    + """
import threading
from regrow.nn.sparse_layer import exclusive
with torch.no_grad():
    network(x)
finished = threading.Event()
def hold():
    while not finished.is_set():
        with exclusive:
            pass
thread = threading.Thread(target=hold)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        with torch.no_grad():
            network(x)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
finished.set()
thread.join()
"""
)

SPAWN = """
import torch, regrow
from torch import nn
import torch.multiprocessing as mp

def work(network, x, queue):
    torch.set_num_threads(2)
    queue.put(network(x).detach().tolist())

if __name__ == "__main__":
    torch.set_num_threads(2)
    network = regrow.sparsify(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), 0.3, backend="cpu")
    x = torch.randn(16, 32)
    before = network(x)
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=work, args=(network, x, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert torch.allclose(torch.tensor(queue.get()), before, atol=1e-5)
    for process in processes:
        process.join()
        assert process.exitcode == 0
"""

LOADER = """
import torch, regrow
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Features(Dataset):
    def __init__(self, network):
        self.network = network
    def __len__(self):
        return 40
    def __getitem__(self, at):
        x = torch.full((1, 32), float(at))
        with torch.no_grad():
            return x[0], self.network(x)[0]

if __name__ == "__main__":
    torch.set_num_threads(2)
    network = regrow.sparsify(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), 0.3, backend="cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    regrow.TopologyUpdater(network, optimizer, regrow.set(every=1, steps=50))
    network(torch.randn(64, 32)).sum().backward()
    samples = 0
    for context in ("fork", "spawn"):
        for x, features in DataLoader(Features(network), batch_size=8, num_workers=2, multiprocessing_context=context):
            with torch.no_grad():
                assert torch.allclose(network(x), features, rtol=1e-4, atol=1e-4)
            samples += len(x)
    assert samples == 80
"""


@pytest.mark.parametrize(
    "program",
    [FORK, FORK_UNDER_A_LOCK, *(pytest.param(program, marks=pytest.mark.slow) for program in (SPAWN, LOADER))],
    ids=["fork", "fork under a lock", "spawn", "data loader"],
)
def test_other_processes_compute_after_threads_did(program, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(program)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
