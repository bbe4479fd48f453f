"""Accelerate trains, saves and resumes a sparse model, in both storages, as without the stop."""

import doctest
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import regrow
from cases import STEP_METHODS, assert_same, each_storage

accelerate = pytest.importorskip("accelerate")

import regrow.integrations.accelerate as integration  # noqa: E402
from regrow.integrations.accelerate import topology_updater  # noqa: E402

STEPS, STOP = 9, 5
SETTINGS = {"plain": {}, "accumulated": {"gradient_accumulation_steps": 2}, "bf16": {"mixed_precision": "bf16"}}


@pytest.fixture(autouse=True)
def _alone():
    """What Accelerate keeps for the whole process is not left to other tests."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Training:
    """A loop as in Accelerate's own examples."""

    def __init__(self, storage="masked", seed=0, method=None, density=0.3, made=True, **settings):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(seed)
        self.accelerator = accelerate.Accelerator(cpu=True, **settings)
        layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)]
        model = regrow.sparsify(nn.Sequential(*layers), density, backend=storage, seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        self.scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, self.scheduler)
        self.method = method or regrow.sparse_momentum(every=2, steps=STEPS)
        self.topology = self.updater() if made else None
        self.steps_per_update = settings.get("gradient_accumulation_steps", 1)

    def updater(self, **settings):
        return topology_updater(self.accelerator, self.model, self.optimizer, self.method, **settings)

    def train(self, first, last):
        for batch in range(self.steps_per_update * first, self.steps_per_update * last):
            with self.accelerator.accumulate(self.model):
                x = torch.randn(6, 8, generator=torch.Generator().manual_seed(batch))
                self.accelerator.backward((self.model(x) - 1).square().mean())
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
        return self

    def state(self):
        parts = (self.model, self.optimizer, self.scheduler, self.topology)
        return [dict(part.state_dict()) for part in parts]


def resumed(folder, **settings):
    whole = Training(**settings).train(0, STEPS).state()
    Training(**settings).train(0, STOP).accelerator.save_state(folder)
    second = Training(**settings, seed=77)
    second.accelerator.load_state(folder)
    assert second.topology.step == STOP
    return second.train(STOP, STEPS).state(), whole


@each_storage
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_training_goes_on_from_save_state_to_the_bit(settings, storage, tmp_path):
    second, whole = resumed(tmp_path, storage=storage, **settings)
    assert whole[3]["step"] == STEPS
    assert_same(second, whole)


@each_storage
def test_an_updater_that_is_registered_too_goes_on_the_same(storage, tmp_path):
    first, second = Training(storage), Training(storage, seed=77)
    for each in (first, second):
        each.accelerator.register_for_checkpointing(each.topology)
    first.train(0, STOP).accelerator.save_state(tmp_path)
    second.accelerator.load_state(tmp_path)
    assert_same(second.train(STOP, STEPS).state(), Training(storage).train(0, STEPS).state())


@pytest.mark.parametrize("row", STEP_METHODS, ids=lambda row: row.name)
def test_a_rule_of_every_step_goes_on_to_the_bit(row, tmp_path):
    second, whole = resumed(tmp_path, method=row.rule(), density=row.density)
    assert_same(second, whole)


@each_storage
def test_the_updater_counts_steps_and_not_batches(storage):
    one = Training(storage, gradient_accumulation_steps=2)
    before = regrow.masks(one.model)
    assert one.train(0, STEPS).topology.step == STEPS
    assert any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(one.model).items())


def test_a_folder_without_a_topology_is_refused_before_a_step(tmp_path):
    first = Training(made=False).train(0, STOP)
    first.accelerator.save_state(tmp_path)
    second = Training()
    second.accelerator.load_state(tmp_path)
    with pytest.raises(RuntimeError, match="without that of its topology and the schedule would begin anew"):
        second.train(STOP, STEPS)


def test_an_updater_that_comes_after_load_state_is_refused(tmp_path):
    Training().train(0, STOP).accelerator.save_state(tmp_path)
    second = Training(made=False)
    second.accelerator.load_state(tmp_path)
    with pytest.raises(ValueError, match=r"make the updater before accelerator.load_state"):
        second.updater()


KILLED = """
import os, signal, sys
import test_accelerate as test

test.Training(sys.argv[1]).train(0, test.STOP).accelerator.save_state(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@each_storage
def test_a_process_that_was_killed_goes_on_to_the_bit(storage, tmp_path):
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, storage, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    assert done.returncode == -signal.SIGKILL
    second = Training(storage, seed=77)
    second.accelerator.load_state(tmp_path)
    assert_same(second.train(STOP, STEPS).state(), Training(storage).train(0, STEPS).state())


def test_sharded_parameters_are_refused():
    one = Training(made=False)
    sharding = SimpleNamespace(distributed_type=accelerate.DistributedType.FSDP)
    with pytest.raises(ValueError, match="FSDP shards parameters"):
        topology_updater(sharding, one.model, one.optimizer, one.method)


def test_without_its_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, integration.__name__)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'regrow\[accelerate\]'"):
        importlib.import_module(integration.__name__)


def test_the_examples_run():
    assert doctest.testmod(integration).failed == 0
