"""How a run's weights are stored: by the rule, and after a stop as its checkpoint holds them."""

import signal

import pytest
import torch
from runs import stop_after, tiny

import regrow
from regrow.experiments.train.checkpoint import load_latest
from regrow.experiments.train.loop import train
from regrow.experiments.train.run import Run


def storages(run):
    return {layer.name: str(layer.storage) for layer in regrow.summary(run.model).layers}


def made(config):
    runs = []

    def make(config, data_root):
        runs.append(Run(config, data_root))
        return runs[0]

    return runs, make


def test_a_run_goes_by_the_rule():
    assert set(storages(Run(tiny(density=0.1))).values()) == {"sparse", "masked"}
    assert set(storages(Run(tiny(density=0.05, precision="bfloat16"))).values()) == {"sparse", "masked"}
    assert set(storages(Run(tiny(density=0.1, backend={"fc1": "masked", "*": "cpu"}))).values()) == {"sparse", "masked"}


@pytest.mark.parametrize("other", [0.0, 1.0])
def test_a_run_goes_on_in_the_storage_of_its_checkpoint(tmp_path, monkeypatch, other):
    config = tiny(density=0.1)
    whole = train(config, tmp_path / "whole")
    stop_after(config, tmp_path / "stopped", 13, signal.SIGTERM)
    before = storages(Run(config))
    # Another version of the rule: nothing sparse, or all linear layers.
    monkeypatch.setattr("regrow.convert.rule._LINEAR", ((0, other),))
    monkeypatch.setattr("regrow.convert.rule._SHORTEST_SIDE", 0)
    assert storages(Run(config)) != before
    runs, make = made(config)
    result = train(config, tmp_path / "stopped", resume=True, make_run=make)
    assert storages(runs[0]) == before
    assert result["test_loss"] == whole["test_loss"]
    first, second = (load_latest(tmp_path / name / "checkpoints")[0]["model"] for name in ("whole", "stopped"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value)
