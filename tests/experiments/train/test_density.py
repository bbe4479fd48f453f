"""Runs whose density changes: they start where the recipe says and end at the density that was asked for."""

import json

import pytest
from runs import assert_same_run, metrics, refused, stop_after, tiny
from runs import command as regrow_command

from regrow.experiments.train.loop import train

START = {"gmp": 1.0, "granet": 0.5}
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10
each_method = pytest.mark.parametrize("method", START)


@each_method
def test_a_run_starts_at_the_density_of_the_recipe_and_ends_at_that_asked_for(method, tmp_path):
    options = ("--density", 0.08, "--epochs", 4, "--set", "batch_size=128", "--set", "update_every=0.5")
    assert regrow_command("train", "digits-mlp", "--method", method, "--out", tmp_path, *options).exit_code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["density"], result["nnz"]) == (0.08, round(0.08 * WEIGHTS))
    first = metrics(tmp_path)[0]
    assert first["density"] > 0.08
    assert 0.3 * START[method] < first["multiply_adds_train"] / first["multiply_adds_train_dense"] <= START[method]


@each_method
@pytest.mark.parametrize("backend", ["masked", "cpu"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(method, backend, tmp_path):
    config = tiny(method=method, backend=backend, update_every=0.3)
    train(config, tmp_path / "whole")
    stop_after(config, tmp_path / "stopped", 13, 15)
    train(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@each_method
def test_a_run_that_is_too_short_is_refused(method, tmp_path):
    result = regrow_command("train", "digits-mlp", "--method", method, "--epochs", 1, "--out", tmp_path)
    refused(result, "comes too late in a training of", "update more often, or train longer")
