"""Accelerate's own processes train a sparse model as one process does, in both storages."""

import pytest
import torch
from torch import nn

import regrow
from cases import assert_same, each_storage

accelerate = pytest.importorskip("accelerate")

from launched import TORCHRUN, ends_of_two, launched  # noqa: E402

from regrow.integrations.accelerate import topology_updater  # noqa: E402

STEPS, STOP, SAMPLES = 9, 5, 8


class Training:
    """A loop as in Accelerate's own examples; each process takes its samples of the batch of one.

    Without `accelerator` it is the plain loop of one process.
    """

    def __init__(self, storage, accelerator=None, seed=0):
        self.accelerator = accelerator
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)).double()
        self.model = regrow.sparsify(model, 0.3, backend=storage, seed=seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.network, recipe = self.model, regrow.sparse_momentum(every=3, steps=STEPS, growth=regrow.growth.window(2))
        if accelerator is None:
            self.topology = regrow.TopologyUpdater(self.model, self.optimizer, recipe)
        else:
            self.network, self.optimizer = accelerator.prepare(self.model, self.optimizer)
            self.topology = topology_updater(accelerator, self.network, self.optimizer, recipe)

    def loss(self, step, part):
        x = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(2 * step + part), dtype=torch.float64)
        if self.accelerator is not None:
            x = x[self.accelerator.process_index :: self.accelerator.num_processes]
        return (self.network(x) - 1).square().mean()

    def train(self, first, last):
        """Take steps of two batches each, with gradients clipped."""
        for step in range(first, last):
            if self.accelerator is None:
                self.optimizer.zero_grad()
                for part in range(2):
                    (self.loss(step, part) / 2).backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                continue
            for part in range(2):
                with self.accelerator.accumulate(self.network):
                    self.accelerator.backward(self.loss(step, part))
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.network.parameters(), 0.1)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self

    def ends(self):
        return dict(regrow.masks(self.model)), dict(regrow.dense_state_dict(self.model)), self.topology.state_dict()


def in_processes(storage, folder):
    """Train without a stop, and with one: save, and go on in another training from what was saved."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == 2
    assert accelerator.distributed_type == accelerate.DistributedType.MULTI_CPU
    whole = Training(storage, accelerator).train(0, STEPS).ends()
    accelerator.free_memory()
    Training(storage, accelerator).train(0, STOP)
    accelerator.save_state(folder)
    accelerator.free_memory()
    second = Training(storage, accelerator, seed=77)
    accelerator.load_state(folder)
    assert second.topology.step == STOP
    assert_same(second.train(STOP, STEPS).ends(), whole)
    return whole


def in_a_process(rank, size, storage, folder):
    with launched(rank, size):
        return in_processes(storage, folder)


def assert_as_one(ends, storage):
    masks, weights, topology = ends
    begun, one = Training(storage), Training(storage).train(0, STEPS)
    assert_same(masks, dict(regrow.masks(one.model)))
    assert any(not torch.equal(mask, masks[name]) for name, mask in regrow.masks(begun.model).items())
    for name, weight in regrow.dense_state_dict(one.model).items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-12)
    assert topology["step"] == STEPS


@each_storage
def test_two_processes_are_as_one_and_go_on_from_save_state(pair, storage, tmp_path):
    first, second = pair(in_a_process, storage, str(tmp_path))
    assert_same(first, second)
    assert_as_one(first, storage)


def to_file(storage, folder):
    """Write what a process ends with to a file of its rank."""
    torch.save(in_processes(storage, f"{folder}/state"), f"{folder}/{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


STARTED = """
import sys
import accelerate
import test_accelerate_processes as test

how, *given = sys.argv[1:]
if how == "torchrun":
    test.to_file(*given)
else:
    accelerate.debug_launcher(test.to_file, given, num_processes=2)
"""


@pytest.mark.slow
@each_storage
@pytest.mark.parametrize("how", ["torchrun", "debug_launcher"])
def test_its_own_launcher_and_torchrun_start_them(how, storage, tmp_path):
    launcher = TORCHRUN if how == "torchrun" else ()
    first, second = ends_of_two(STARTED, tmp_path, how, storage, launcher=launcher)
    assert_same(first, second)
    assert_as_one(first, storage)
