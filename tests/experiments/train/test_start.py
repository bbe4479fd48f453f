"""Runs whose masks come from the dense network: which, counts, going on, and what is refused."""

import json
import signal

import pytest
import torch
from runs import Stopper, assert_same_run, command, refused, tiny
from torch import nn

import regrow
from regrow.experiments.errors import StoppedError, UserError
from regrow.experiments.train.loop import train
from regrow.experiments.train.run import Run
from regrow.experiments.train.start import _of_each_class
from regrow.saliency import SALIENCIES

each_saliency = pytest.mark.parametrize("method", SALIENCIES)
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10


def dense(**settings):
    """A run of the same seed whose model has not been trained: what the masks are chosen from."""
    return Run(tiny(method="dense", **settings))


@each_saliency
def test_a_run_keeps_the_masks_that_its_method_chose(tmp_path, method):
    options = {"synflow": {"rounds": 5}, "grasp": {"samples_of_a_class": 3}}.get(method, {})
    config = tiny(method=method, density=0.07, seed=3, method_options=options)
    run = Run(config)
    model, data = dense(seed=3).model, run.data
    if method == "synflow":
        expected = regrow.saliency.synflow(model, 0.07, (1, 8, 8), rounds=5)
    elif method == "snip":
        expected = regrow.saliency.snip(model, 0.07, *next(dense(seed=3).data.train.epoch()))
    else:
        expected = regrow.saliency.grasp(model, 0.07, *_of_each_class(dense(seed=3).data.train, 10, 3))
    found = regrow.masks(run.model)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert data.train.state_dict() == {"epoch": 0, "position": 0}
    result = train(config, tmp_path)
    assert result["nnz"] == sum(result["nonzeros_by_layer"].values()) == round(0.07 * WEIGHTS)
    assert result["method"] == method
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["nonzeros_by_layer"] == result["nonzeros_by_layer"] and not row["updates"] for row in rows)


@each_saliency
def test_the_weights_start_as_those_of_the_dense_run(method):
    run = Run(tiny(method=method, backend="masked"))
    for name, mask in regrow.masks(run.model).items():
        start = dense().model.get_parameter(name)
        assert torch.equal(run.model.get_parameter(name), start * mask)


@each_saliency
@pytest.mark.parametrize("backend", ["masked", "cpu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, method, backend, optimizer):
    config = tiny(method=method, backend=backend, optimizer=optimizer, learning_rate=0.01, method_options={})
    out, stops = tmp_path / "stopped", 0
    train(config, tmp_path / "whole")
    stopper = Stopper(signal.SIGTERM, lambda step: step % 7 == 0)
    while not (out / "result.json").exists():
        try:
            train(config, out, resume=stops > 0, reporters=(stopper,))
        except StoppedError:
            stops += 1
    assert stops == 2
    assert_same_run(out, tmp_path / "whole")


def test_grasp_takes_each_class_in_turn():
    images, labels = _of_each_class(dense().data.train, 10, 4)
    assert images.shape == (40, 1, 8, 8)
    assert labels.tolist() == list(range(10)) * 4
    assert nn.functional.mse_loss(images[0], images[10]) > 0


@each_saliency
def test_settings_that_a_method_does_not_take_are_refused(method):
    with pytest.raises(UserError, match=f"{method} takes no option wrong; its options: "):
        Run(tiny(method=method, method_options={"wrong": 1}))
    with pytest.raises(UserError, match="leave distribution out"):
        Run(tiny(method=method, distribution="uniform"))
    with pytest.raises(UserError, match="leave block out"):
        Run(tiny(method=method, block="2x1"))


@pytest.mark.parametrize(("method", "options"), [("grasp", {"temperature": "hot"}), ("synflow", {"rounds": "all"})])
def test_options_of_another_type_are_refused(method, options):
    with pytest.raises(UserError, match=f"method_options .* do not fit {method}"):
        Run(tiny(method=method, method_options=options))


def test_a_density_without_a_weight_is_refused(tmp_path):
    call = ("train", "digits-mlp", "--method", "snip", "--density", "1e-9", "--out", tmp_path)
    refused(command(*call), "keeps none of 50200 weights")


def test_recipes_take_options_too():
    with pytest.raises(UserError, match="set takes no option wrong; it has none"):
        Run(tiny(method="set", method_options={"wrong": 1}))
