"""Runs of a dense network with as many weights as the sparse one."""

import signal

import pytest
from runs import Stopper, assert_same_run, tiny

from regrow.experiments.errors import StoppedError, UserError
from regrow.experiments.train.loop import train
from regrow.experiments.train.methods import run_name
from regrow.experiments.train.run import Run

WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10


def test_a_run_trains_a_narrow_network(tmp_path):
    config = tiny(method="small-dense", density=0.1)
    result = train(config, tmp_path)
    assert result["backend"] == "dense"
    assert result["density"] == 0.1
    assert result["density_actual"] == result["nnz"] / WEIGHTS == pytest.approx(0.1, rel=0.05)
    assert 0 < result["width"] < 0.4
    # Held against the whole network.
    assert result["flops_inference_dense"] == 2 * WEIGHTS
    assert result["flops_inference"] == 2 * result["nnz"]
    assert result["flops_train"] / result["flops_train_dense"] == pytest.approx(result["density_actual"])
    assert run_name(config) == "small-dense-0.1-seed0"


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    config, out = tiny(method="small-dense"), tmp_path / "stopped"
    train(config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(config, out, reporters=(Stopper(signal.SIGTERM, lambda step: step == 13),))
    train(config, out, resume=True)
    assert_same_run(out, tmp_path / "whole")


def test_a_width_that_is_none_is_an_error():
    for width in ("wide", 0, -1):
        with pytest.raises(UserError, match="mlp"):
            Run(tiny(method="small-dense", model_options={"width": width}))


@pytest.mark.parametrize("method", ["dense", "small-dense"])
def test_a_dense_network_takes_no_options_of_a_method(method):
    with pytest.raises(UserError, match=f"{method} takes no option"):
        Run(tiny(method=method, method_options={"wrong": 1}))
