"""Runs by a rule of every step: counts, going on, settings, and what is refused."""

import json
import signal

import pytest
import torch
from runs import Stopper, assert_same_run, command, refused, tiny

import regrow
from regrow.experiments.errors import StoppedError, UserError
from regrow.experiments.train.loop import train
from regrow.experiments.train.methods import run_name
from regrow.experiments.train.run import Run
from regrow.methods import STEP_METHODS

each_rule = pytest.mark.parametrize("method", STEP_METHODS)
LAYERS = {"fc1.weight": 64 * 300, "fc2.weight": 300 * 100, "fc3.weight": 100 * 10}
OPTIONS = {
    "top-kast": {"backward_density": 0.5, "penalty": 0.001},
    "soft-threshold": {"initial": -4.0, "decay": 0.05},
    "deep-r": {"drift": 0.01, "noise": 0.01},
}


def settings(method, **changes):
    return tiny(method=method, update_every=0.3, method_options=OPTIONS.get(method, {}), **changes)


@each_rule
def test_a_run_has_the_density_of_its_method(tmp_path, method):
    result = train(settings(method), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result["backend"] == "masked"
    assert result["growth"] is None
    assert result["nnz"] == sum(result["nonzeros_by_layer"].values())
    assert all(row["prune_rate"] == 0.0 and row["updates"] > 0 for row in rows)
    if method == "soft-threshold":
        assert 0 < result["nnz"] < sum(LAYERS.values())
        return
    density = 0.5 if method == "sr-ste" else 0.1
    for row in rows:
        assert row["nonzeros_by_layer"] == {name: round(density * count) for name, count in LAYERS.items()}
        for counts in row["changes_by_layer"].values():
            assert counts["dropped"] == counts["grown"]


@each_rule
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, method, optimizer):
    config = settings(method, optimizer=optimizer, learning_rate=0.01)
    out, stops = tmp_path / "stopped", 0
    train(config, tmp_path / "whole")
    stopper = Stopper(signal.SIGTERM, lambda step: step % 3 == 0)
    while not (out / "result.json").exists():
        try:
            train(config, out, resume=stops > 0, reporters=(stopper,))
        except StoppedError:
            stops += 1
    assert stops == 6
    assert_same_run(out, tmp_path / "whole")


@each_rule
def test_computing_in_bfloat16_keeps_the_network_sparse(method):
    run = Run(settings(method, precision="bfloat16"))
    for images, labels in run.data.train.epoch():
        run.train_step(images, labels)
    assert all(bool(parameter.isfinite().all()) for parameter in run.model.parameters())
    for name, mask in regrow.masks(run.model).items():
        assert not run.model.get_parameter(name)[~mask].any()


@each_rule
def test_settings_of_recipes_are_refused(method):
    for name, value in {"prune_rate": 0.3, "growth": "exact", "compute": 1.0, "redistribute": "keep"}.items():
        with pytest.raises(UserError, match=f"{method} has a rule of its own for every step: leave {name} out"):
            Run(settings(method, **{name: value}))
    with pytest.raises(UserError, match=f"{method} takes no option wrong; its options: "):
        Run(tiny(method=method, method_options={"wrong": 1}))
    with pytest.raises(UserError, match="has blocks of weights"):
        Run(settings(method, block="2x1"))
    with pytest.raises(UserError, match="is stored sparsely"):
        Run(settings(method, backend="cpu"))


@each_rule
def test_options_that_do_not_fit_are_refused(method):
    wrong = {"top-kast": {"backward_density": 0.01}, "sr-ste": {"keep": 9}, "deep-r": {"scope": "all"}}
    with pytest.raises(UserError):
        Run(tiny(method=method, method_options=wrong.get(method, {"initial": "low"})))


@pytest.mark.parametrize("method", ["sr-ste", "soft-threshold"])
def test_a_density_that_is_an_outcome_cannot_be_set(tmp_path, method):
    call = ("train", "digits-mlp", "--method", method, "--density", 0.1, "--out", tmp_path)
    refused(command(*call), f"the density of {method} is", "leave --density out")
    with pytest.raises(UserError, match="leave distribution out"):
        Run(settings(method, distribution="uniform"))
    assert run_name(settings(method)) == f"{method}-seed0"


@pytest.mark.parametrize("method", ["top-kast", "deep-r"])
def test_weights_are_spread_as_asked_for(method):
    run = Run(settings(method, distribution="erdos-renyi"))
    shapes = {name: tuple(mask.shape) for name, mask in regrow.masks(run.model).items()}
    assert run.nonzeros_by_layer == regrow.distribution.erdos_renyi(shapes, 0.1)
    assert run_name(settings(method)) == f"{method}-0.1-seed0"


def test_a_rule_starts_from_the_weights_of_the_dense_run():
    run, dense = Run(settings("sr-ste")), Run(tiny(method="dense"))
    for name, mask in regrow.masks(run.model).items():
        assert torch.equal(run.model.get_parameter(name), dense.model.get_parameter(name) * mask)


@pytest.mark.parametrize("method", ["snip", *STEP_METHODS])
def test_only_recipes_are_timed(method):
    refused(command("bench", "train", "digits-mlp", "--method", method), f"{method} is no recipe")
