"""The Trainer of transformers in two processes trains a sparse model as in one, in both storages."""

import os

import pytest
import torch

import regrow
from cases import assert_same, each_storage

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from launched import ends_of_two, launched
from test_transformers import STEPS, STOP, StopAfter, method, sparse, trainer

from regrow.integrations.transformers import TopologyCallback

OFF = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def trained(storage, folder, *more, samples, seed=0, resume=False):
    """Train; return the masks, the dense weights and the steps of the topology."""
    model = sparse("gpt2", storage, seed=seed, **OFF).double()
    callback = TopologyCallback(method(growth=regrow.growth.window(2)))
    made = trainer(model, folder, callback, *more, per_device_train_batch_size=samples)
    made.train(resume_from_checkpoint=resume or None)
    return dict(regrow.masks(model)), dict(regrow.dense_state_dict(model)), callback.topology.step


def in_processes(storage, folder):
    """Train without a stop, and with one: save, and go on in another Trainer from what was saved."""
    whole = trained(storage, f"{folder}/whole", samples=4)
    trained(storage, f"{folder}/cut", StopAfter(STOP), samples=4)
    assert_same(trained(storage, f"{folder}/cut", samples=4, seed=7, resume=True), whole)
    return whole


def in_a_process(rank, size, storage, folder):
    with launched(rank, size):
        return in_processes(storage, folder)


def assert_as_one(ends, storage, folder):
    masks, weights, step = ends
    one_masks, one_weights, one_step = trained(storage, folder, samples=8)
    assert step == one_step == STEPS
    assert_same(masks, one_masks)
    for name, weight in one_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("storage", ["cpu", pytest.param("masked", marks=pytest.mark.slow)])
def test_two_processes_are_as_one_and_go_on_from_a_checkpoint(pair, storage, tmp_path):
    first, second = pair(in_a_process, storage, str(tmp_path))
    assert_same(first, second)
    assert_as_one(first, storage, tmp_path / "one")


LAUNCHED = """
import sys
import torch
import test_transformers_processes as test

storage, folder = sys.argv[1:]
ends = test.in_processes(storage, folder)
torch.save(ends, f"{folder}/{torch.distributed.get_rank()}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@each_storage
def test_torchrun_starts_them(storage, tmp_path):
    first, second = ends_of_two(LAUNCHED, tmp_path, storage)
    assert_same(first, second)
    assert_as_one(first, storage, tmp_path / "one")
